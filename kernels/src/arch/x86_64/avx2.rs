//! AVX2 with fused multiply-add: eight lanes.

use super::avx2_units::{products, sum_pairs};
use crate::arch::{
    Kernels,
    generic::{self, Panel},
    integer::TileRun,
    page,
    tiles::{Tiles, Windows, row_bits},
    units::UnitRows,
    vector::Vector,
};
use crate::{
    quantized_input::GROUP,
    scheme::{TILE, UNIT},
};
use std::arch::x86_64::*;

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
        .then_some(Kernels {
            isa: "avx2",
            panel_dot,
            lookup,
            tiles: decode_tiles,
            units_dot,
            tiles_dot,
            panels: None,
            pages: page::x86_64::avx2().unwrap_or(page::SCALAR),
        })
}

impl Vector for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for the instruction set and the memory.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self), _mm256_extractf128_ps(self, 1));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)))
        }
    }
}

fn panel_dot(panel: Panel, y: &mut [f32]) {
    #[target_feature(enable = "avx2,fma")]
    fn instance(panel: Panel, y: &mut [f32]) {
        // SAFETY: this function has the instruction set.
        unsafe { generic::panel_dot::<__m256, 2>(panel, y) }
    }
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { instance(panel, y) }
}

/// Sixteen levels, times a step.
#[inline]
#[target_feature(enable = "avx2")]
fn store_levels(levels: __m128i, step: __m256, out: &mut [f32; 16]) {
    let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(levels));
    let high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(levels, levels)));
    // SAFETY: the pointers are those of eight f32 each.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(low, step));
        _mm256_storeu_ps(out.as_mut_ptr().add(8), _mm256_mul_ps(high, step));
    }
}

/// Sixteen codes a step: the table is one register of bytes, which `pshufb` indexes with the codes.
fn lookup(codes: &[u8; UNIT], table: &[i8; 16], step: f32, out: &mut [f32; UNIT]) {
    #[target_feature(enable = "avx2")]
    fn instance(codes: &[u8; UNIT], table: &[i8; 16], step: f32, out: &mut [f32; UNIT]) {
        let step = _mm256_set1_ps(step);
        for (codes, out) in codes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            // SAFETY: the pointers are those of arrays of 16 bytes.
            let (table, codes) =
                unsafe { (_mm_loadu_si128(table.as_ptr().cast()), _mm_loadu_si128(codes.as_ptr().cast())) };
            store_levels(_mm_shuffle_epi8(table, codes), step, out);
        }
    }
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { instance(codes, table, step, out) }
}

/// Two rows of a tile a step, one in each half of a register.
fn decode_tiles(tiles: Tiles, out: &mut [f32]) {
    #[target_feature(enable = "avx2")]
    fn instance<const K: usize>(tiles: Tiles, out: &mut [f32]) {
        let Tiles { first, steps, stride, .. } = tiles;
        let table = tiles.table.as_chunks::<16>().0;
        let table: [__m256i; 16] = std::array::from_fn(|i| both(&table[i]));
        for (t, tile) in tiles.codes.chunks_exact(32 * K).enumerate() {
            for (pair, steps) in steps.chunks(2).enumerate() {
                let row = first + 2 * pair;
                let high = row_bytes::<K>(tile, row + steps.len() - 1);
                let levels =
                    levels_of(windows::<K>(_mm256_set_m128i(high, row_bytes::<K>(tile, row))), &table);
                let halves = [_mm256_castsi256_si128(levels), _mm256_extracti128_si256(levels, 1)];
                for (r, (&step, half)) in steps.iter().zip(halves).enumerate() {
                    // SAFETY: `check` made sure of 16 values for every row and tile.
                    let out = unsafe { &mut *out.as_mut_ptr().add((2 * pair + r) * stride + 16 * t).cast() };
                    store_levels(half, _mm256_set1_ps(step), out);
                }
            }
        }
    }
    tiles.check(out);
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe {
        match tiles.bits {
            2 => instance::<2>(tiles, out),
            3 => instance::<3>(tiles, out),
            4 => instance::<4>(tiles, out),
            _ => instance::<5>(tiles, out),
        }
    }
}

/// Sixteen bytes, in both halves of a register.
#[inline]
#[target_feature(enable = "avx2")]
fn both<T>(bytes: &[T]) -> __m256i {
    assert!(size_of_val(bytes) >= 16);
    // SAFETY: sixteen bytes are readable.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// [`row_bits`] in a register.
#[inline]
#[target_feature(enable = "avx2")]
fn row_bytes<const K: usize>(tile: &[u8], row: usize) -> __m128i {
    match tile.get(2 * K * row..2 * K * row + 16) {
        // SAFETY: the pointer is that of sixteen bytes.
        Some(bytes) => unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) },
        None => {
            let bits = row_bits::<K>(tile, row);
            _mm_set_epi64x((bits >> 64) as i64, bits as i64)
        }
    }
}

/// The windows of a row in each half, from its bits.
#[inline]
#[target_feature(enable = "avx2")]
fn windows<const K: usize>(bits: __m256i) -> __m256i {
    // A window in two bytes, times 2^(8 - shift), has its bits in the upper byte.
    let factors = |shifts: [i16; 8]| both(&shifts.map(|shift| 1i16 << (8 - shift)));
    let (even, odd) = (both(&Windows::<K, 0>::BYTES), both(&Windows::<K, 1>::BYTES));
    let even = _mm256_mullo_epi16(_mm256_shuffle_epi8(bits, even), factors(Windows::<K, 0>::SHIFTS));
    let odd = _mm256_mullo_epi16(_mm256_shuffle_epi8(bits, odd), factors(Windows::<K, 1>::SHIFTS));
    let upper = _mm256_set1_epi16(0xff00u16.cast_signed());
    _mm256_or_si256(_mm256_srli_epi16(even, 8), _mm256_and_si256(odd, upper))
}

/// The level of each window: 16 tables of 16 bytes looked up at its low nibble, and the one that its high nibble names chosen.
#[inline]
#[target_feature(enable = "avx2")]
fn levels_of(windows: __m256i, table: &[__m256i; 16]) -> __m256i {
    // `pshufb` yields 0 where an index has its highest bit set. Index `j` has it clear only where bits 4 and 5 of the window
    // are `j`: there the lower six bits xor 16 j are below 16, and stay below 128 when 112 is added.
    let six = _mm256_and_si256(windows, _mm256_set1_epi8(63));
    let index: [__m256i; 4] = std::array::from_fn(|j| {
        _mm256_add_epi8(_mm256_xor_si256(six, _mm256_set1_epi8(16 * j as i8)), _mm256_set1_epi8(112))
    });
    let at = |i: usize, j: usize| _mm256_shuffle_epi8(table[4 * i + j], index[j]);
    let four = |i| _mm256_or_si256(_mm256_or_si256(at(i, 0), at(i, 1)), _mm256_or_si256(at(i, 2), at(i, 3)));
    // `blendv` looks at the highest bit of each byte: bit 6 shifted there, then bit 7.
    let bit6 = _mm256_slli_epi16(windows, 1);
    let (lower, upper) =
        (_mm256_blendv_epi8(four(0), four(1), bit6), _mm256_blendv_epi8(four(2), four(3), bit6));
    _mm256_blendv_epi8(lower, upper, windows)
}

fn units_dot(rows: UnitRows, out: &mut [f32]) {
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { super::avx2_units::units_dot(rows, out) }
}

/// Two rows of a tile a step, as in [`decode_tiles`]; a row's products fall into the four lanes of its half.
fn tiles_dot(run: TileRun) -> [f32; TILE] {
    #[target_feature(enable = "avx2,fma")]
    fn instance<const K: usize>(run: TileRun) -> [f32; TILE] {
        let table = run.table.as_chunks::<16>().0;
        let table: [__m256i; 16] = std::array::from_fn(|i| both(&table[i]));
        let mut sums = [_mm256_setzero_ps(); TILE / 2];
        let groups = run.codes.chunks(GROUP / TILE * 32 * K).zip(run.x.values().as_chunks::<GROUP>().0);
        for ((tiles, values), &scale) in groups.zip(run.x.scales()) {
            let mut integers = [_mm256_setzero_si256(); TILE / 2];
            for (tile, values) in tiles.chunks_exact(32 * K).zip(values.as_chunks::<TILE>().0) {
                let values = both(values);
                for (pair, integer) in integers.iter_mut().enumerate() {
                    let rows =
                        _mm256_set_m128i(row_bytes::<K>(tile, 2 * pair + 1), row_bytes::<K>(tile, 2 * pair));
                    let levels = levels_of(windows::<K>(rows), &table);
                    *integer = _mm256_add_epi32(*integer, sum_pairs(products(levels, values)));
                }
            }
            for (sum, integer) in sums.iter_mut().zip(integers) {
                *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(integer), _mm256_set1_ps(scale), *sum);
            }
        }
        let mut rows = [0.0; TILE];
        for (rows, sum) in rows.as_chunks_mut::<2>().0.iter_mut().zip(sums) {
            let mut lanes = [0.0; 8];
            // SAFETY: the pointer is that of eight values.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
            for (row, lanes) in rows.iter_mut().zip(lanes.as_chunks::<4>().0) {
                *row = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
            }
        }
        rows
    }
    run.check();
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe {
        match run.bits {
            2 => instance::<2>(run),
            3 => instance::<3>(run),
            4 => instance::<4>(run),
            _ => instance::<5>(run),
        }
    }
}
