//! AVX-512 with byte permutations and integer dot products (VBMI, VNNI): 64 products an instruction.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. So levels are looked up with 128 added, and sums begin at `-128 sum x`.

use super::vbmi::{Quarter, load, load_bytes, lookup};
use crate::{
    arch::integer::{TileRun, TilesDot, UnitRun, UnitsDot},
    quantized_input::GROUP,
    scheme::{TILE, UNIT},
};
use std::arch::x86_64::*;

/// What is added to levels.
const OFFSET: i32 = 128;

/// Bytes from a tile to what is fetched ahead of its use.
const AHEAD: usize = 2048;

/// Dot products with units and with tiles, if the processor has them.
pub fn dots() -> Option<(UnitsDot, TilesDot)> {
    (is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni"))
    .then_some((units_dot, tiles_dot))
}

fn units_dot(run: UnitRun) -> f32 {
    // SAFETY: `dots` hands this function out only where the processor has the instruction set.
    unsafe {
        match run.bits {
            2 => units::<2>(run),
            3 => units::<3>(run),
            4 => units::<4>(run),
            _ => units::<8>(run),
        }
    }
}

fn tiles_dot(run: TileRun) -> [f32; TILE] {
    // SAFETY: `dots` hands this function out only where the processor has the instruction set.
    unsafe {
        match run.bits {
            2 => tiles::<2>(run),
            3 => tiles::<3>(run),
            4 => tiles::<4>(run),
            _ => tiles::<5>(run),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn units<const BITS: usize>(run: UnitRun) -> f32 {
    run.check();
    // SAFETY: the pointer is that of 16 bytes.
    let table = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(run.table.as_ptr().cast()) });
    let table = _mm512_xor_si512(table, _mm512_set1_epi8(i8::MIN));
    // Two sums, so that one addition need not wait for the other.
    let mut sums = [_mm512_setzero_ps(); 2];
    let units = run.codes.chunks_exact(8 * BITS).zip(run.values.as_chunks::<UNIT>().0);
    for (u, ((unit, values), (scales, parts))) in units.zip(run.scales.iter().zip(run.sums)).enumerate() {
        let levels = match BITS {
            8 => _mm512_xor_si512(bytes::<64>(unit), _mm512_set1_epi8(i8::MIN)),
            _ => _mm512_shuffle_epi8(table, codes::<BITS>(unit)),
        };
        // Lanes 0 to 7 are the first half of a unit.
        let start = halves_i32(parts.map(|sum| -(OFFSET / 8) * sum));
        let products = _mm512_dpbusd_epi32(start, levels, load(values));
        let scales = halves_f32(*scales);
        sums[u % 2] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scales, sums[u % 2]);
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}

/// The codes of a unit, one a byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn codes<const BITS: usize>(unit: &[u8]) -> __m512i {
    if BITS == 4 {
        let both = _mm512_inserti64x4(bytes::<32>(unit), _mm512_castsi512_si256(bytes::<32>(unit)), 1);
        let shifted = _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4));
        return _mm512_and_si512(shifted, _mm512_set1_epi8(15));
    }
    let four = _mm512_broadcast_i32x4(_mm512_castsi512_si128(bytes::<16>(unit)));
    let shifted = _mm512_srlv_epi64(four, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6));
    let low = _mm512_and_si512(shifted, _mm512_set1_epi8(3));
    if BITS == 2 {
        return low;
    }
    let high = u64::from_le_bytes(*unit[16..].first_chunk().expect("a unit of 3 bits has 24 bytes"));
    _mm512_mask_add_epi8(low, high, low, _mm512_set1_epi8(4))
}

/// The first 16, 32 or 64 bytes of a unit; nothing is said of those after them.
#[inline]
#[target_feature(enable = "avx512f")]
fn bytes<const N: usize>(unit: &[u8]) -> __m512i {
    assert!(unit.len() >= N);
    // SAFETY: so many bytes are read.
    unsafe {
        match N {
            16 => _mm512_castsi128_si512(_mm_loadu_si128(unit.as_ptr().cast())),
            32 => _mm512_castsi256_si512(_mm256_loadu_si256(unit.as_ptr().cast())),
            _ => {
                assert!(N == 64);
                _mm512_loadu_si512(unit.as_ptr().cast())
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn halves_i32([low, high]: [i32; 2]) -> __m512i {
    _mm512_inserti64x4(_mm512_set1_epi32(low), _mm256_set1_epi32(high), 1)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn halves_f32([low, high]: [f32; 2]) -> __m512 {
    _mm512_castsi512_ps(halves_i32([low.to_bits().cast_signed(), high.to_bits().cast_signed()]))
}

/// A quarter of a tile, four rows, is one register of levels; each row's products fall into four lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn tiles<const K: usize>(run: TileRun) -> [f32; TILE] {
    run.check();
    let table: [__m512i; 4] = std::array::from_fn(|i| {
        let levels = load(run.table[64 * i..].first_chunk().expect("256 levels"));
        _mm512_xor_si512(levels, _mm512_set1_epi8(i8::MIN))
    });
    let shifts = load(&Quarter::<K>::SHIFTS);
    let indices: [__m512i; 4] = std::array::from_fn(|quarter| load(&Quarter::<K>::BYTES[quarter]));
    let mut sums = [_mm512_setzero_ps(); 4];
    let groups = run.codes.chunks(GROUP / TILE * 32 * K).zip(run.x.values().as_chunks::<GROUP>().0);
    for (((tiles, values), scale), parts) in groups.zip(run.x.scales()).zip(run.x.sums()) {
        let mut products = [_mm512_set1_epi32(-(OFFSET / 4) * (parts[0] + parts[1])); 4];
        for (tile, values) in tiles.chunks_exact(32 * K).zip(values.as_chunks::<TILE>().0) {
            // SAFETY: the pointer is that of 16 bytes.
            let values = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(values.as_ptr().cast()) });
            // The strip's next tiles are on their way while these are looked up. An address past the end is not an error.
            _mm_prefetch::<_MM_HINT_T0>(tile.as_ptr().wrapping_add(AHEAD).cast());
            for quarter in 0..4 {
                let bytes = load_bytes(tile, Quarter::<K>::STARTS[quarter]);
                // Eight bytes for each eight windows. What has wrapped around is in this register only if it is all of the tile.
                let lanes = if K == 2 || quarter < 3 {
                    _mm512_permutexvar_epi8(indices[quarter], bytes)
                } else {
                    _mm512_permutex2var_epi8(bytes, indices[quarter], load_bytes(tile, 0))
                };
                let levels = lookup(&table, _mm512_multishift_epi64_epi8(shifts, lanes));
                products[quarter] = _mm512_dpbusd_epi32(products[quarter], levels, values);
            }
        }
        let scale = _mm512_set1_ps(*scale);
        for (sum, products) in sums.iter_mut().zip(products) {
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, *sum);
        }
    }
    let mut rows = [0.0; TILE];
    for (rows, sum) in rows.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
        let mut lanes = [0.0; 16];
        // SAFETY: the pointer is that of 16 values.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
        for (row, lanes) in rows.iter_mut().zip(lanes.as_chunks::<4>().0) {
            *row = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        }
    }
    rows
}
