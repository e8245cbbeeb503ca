//! AVX-512 with byte permutations and integer dot products: a unit of 64 weights in about seven instructions.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. So levels are looked up with 128 added.

use super::{fetch::fetch_units_ahead, vbmi::load};
use crate::{
    arch::{
        level_panel::OFFSET,
        units::{BLOCK, UnitRows},
    },
    scheme::UNIT,
};
use std::arch::x86_64::*;

/// # Safety
/// The processor has AVX-512 F, BW, VL, VBMI and VNNI.
pub(super) unsafe fn units_dot(rows: UnitRows, out: &mut [f32]) {
    rows.check(out.len());
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match rows.bits {
            2 => all::<2>(&rows, out),
            3 => all::<3>(&rows, out),
            4 => all::<4>(&rows, out),
            _ => all::<8>(&rows, out),
        }
    }
}

/// One row after the other, as they lie in memory: several at a time would share what is made of the input, but be that many
/// short streams, of which memory delivers less.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn all<const BITS: usize>(rows: &UnitRows, out: &mut [f32]) {
    let tables = UnitLevels::new(rows.table, BITS);
    for (r, out) in out.iter_mut().enumerate() {
        *out = match rows.group < UNIT {
            true => one::<BITS, true>(rows, &tables, r),
            false => one::<BITS, false>(rows, &tables, r),
        };
    }
}

/// A row. With `HALVES`, each half of a unit has its scale.
///
/// Products are of levels with 128 added, so that 128 times the sum of the input's values is taken off again, for sixteen units at a
/// time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn one<const BITS: usize, const HALVES: bool>(rows: &UnitRows, tables: &UnitLevels, r: usize) -> f32 {
    let (unit, offset) = (_mm512_set1_ps(rows.level_unit), _mm512_set1_ps(OFFSET as f32));
    let (x, row) = (rows.x, rows.row(r));
    let (values, mut sums) = (x.values().as_chunks::<UNIT>().0, [_mm512_setzero_ps(); 2]);
    for start in (0..values.len()).step_by(BLOCK) {
        let block = start..values.len().min(start + BLOCK);
        fetch_units_ahead(&row, BITS, start, BLOCK);
        // Scales of weights times those of the input: one a unit, or two.
        let mut scales = [[0f32; BLOCK]; 2];
        if HALVES {
            for (part, scales) in scales.iter_mut().enumerate() {
                let halves = 2 * start + BLOCK * part..(2 * start + BLOCK * (part + 1)).min(2 * block.end);
                let halves = halves.start.min(halves.end)..halves.end;
                let input = twice(&x.scales()[block.clone()], part);
                let scale = _mm512_mul_ps(input, floats(&row.scales[halves.clone()]));
                store(scales, scale);
                let of_x = _mm512_cvtepi32_ps(integers(&x.sums().as_flattened()[halves.clone()]));
                sums[0] = _mm512_fnmadd_ps(_mm512_mul_ps(of_x, offset), scale, sums[0]);
                if let Some(minima) = row.minima.get(halves) {
                    let input = _mm512_mul_ps(_mm512_mul_ps(input, unit), of_x);
                    sums[1] = _mm512_fmadd_ps(floats(minima), input, sums[1]);
                }
            }
        } else {
            let (first, within) = rows.groups_of_lanes(start);
            let stored = halves_of(&row.scales[first..row.scales.len().min(first + BLOCK)]);
            let stored = _mm512_cvtph_ps(_mm256_permutexvar_epi16(within, stored));
            let scale = _mm512_mul_ps(stored, some_floats(&x.scales()[block.clone()]));
            store(&mut scales[0], scale);
            let of_x = _mm512_cvtepi32_ps(integers(&x.totals()[block.clone()]));
            sums[0] = _mm512_fnmadd_ps(_mm512_mul_ps(of_x, offset), scale, sums[0]);
        }
        let term = |sum, u: usize, codes: &[u8], values: &[i8; UNIT]| {
            let products =
                _mm512_dpbusd_epi32(_mm512_setzero_si512(), tables.levels::<BITS>(codes), load(values));
            let scale = match HALVES {
                true => both(scales.as_flattened().as_chunks::<2>().0[u]),
                false => _mm512_set1_ps(scales[0][u]),
            };
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, sum)
        };
        // Two sums, so that an addition need not wait for the one before.
        let codes = &row.codes[block.start * 8 * BITS..block.end * 8 * BITS];
        let (pairs, last) = values[block.clone()].as_chunks::<2>();
        for (i, (codes, values)) in codes.chunks_exact(16 * BITS).zip(pairs).enumerate() {
            sums[0] = term(sums[0], 2 * i, &codes[..8 * BITS], &values[0]);
            sums[1] = term(sums[1], 2 * i + 1, &codes[8 * BITS..], &values[1]);
        }
        if let [values] = last {
            let u = block.len() - 1;
            sums[0] = term(sums[0], u, &codes[u * 8 * BITS..], values);
        }
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])) / rows.level_unit
}

impl UnitRows<'_> {
    /// The first group of the sixteen units from `start` on, and the group of each, counted from that.
    ///
    /// For groups of whole units.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn groups_of_lanes(&self, start: usize) -> (usize, __m256i) {
        let units = self.group / UNIT;
        let (first, skip) = (start / units, start % units);
        // floor((skip + lane) / units). That half is more than what rounding does to it as long as there are fewer than 2^20 units.
        let lanes = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
        let places = _mm512_add_ps(lanes, _mm512_set1_ps(skip as f32 + 0.5));
        let groups = _mm512_cvttps_epi32(_mm512_mul_ps(places, _mm512_set1_ps(1.0 / units as f32)));
        (first, _mm512_cvtepi32_epi16(groups))
    }
}

/// The level of each code, with 128 added, for permutations that look at six bits of a code.
pub(super) struct UnitLevels {
    lower: __m512i,
    upper: __m512i,
}

impl UnitLevels {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn new(table: &[i8; 16], bits: usize) -> Self {
        // Above a code's own bits are those of its neighbour, whatever they are.
        let repeat =
            |first: usize, codes: usize| load(&std::array::from_fn(|i| table[first + i % codes] ^ i8::MIN));
        match bits {
            2 => Self { lower: repeat(0, 4), upper: repeat(0, 4) },
            3 => Self { lower: repeat(0, 4), upper: repeat(4, 4) },
            _ => Self { lower: repeat(0, 16), upper: repeat(0, 16) },
        }
    }

    /// The levels of a unit.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub fn levels<const BITS: usize>(&self, unit: &[u8]) -> __m512i {
        match BITS {
            8 => {
                let levels = array::<64>(unit);
                // SAFETY: the pointer is that of 64 bytes.
                let levels = unsafe { _mm512_loadu_si512(levels.as_ptr().cast()) };
                _mm512_xor_si512(levels, _mm512_set1_epi8(i8::MIN))
            }
            4 => {
                let bytes = array::<32>(unit);
                // SAFETY: the pointer is that of 32 bytes.
                let bytes = _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) });
                let codes = _mm512_srlv_epi64(bytes, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4));
                _mm512_permutexvar_epi8(codes, self.lower)
            }
            _ => {
                let bytes = array::<16>(unit);
                // SAFETY: the pointer is that of 16 bytes.
                let bytes = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
                let codes = _mm512_srlv_epi64(bytes, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6));
                let lower = _mm512_permutexvar_epi8(codes, self.lower);
                if BITS == 2 {
                    return lower;
                }
                let high = u64::from_le_bytes(*array::<8>(&unit[16..]));
                _mm512_mask_permutexvar_epi8(lower, high, codes, self.upper)
            }
        }
    }
}

/// The first bytes of a unit.
#[inline(always)]
fn array<const N: usize>(unit: &[u8]) -> &[u8; N] {
    unit.first_chunk().expect("a unit has so many bytes")
}

/// The lowest `count` lanes, of at most 16.
#[inline(always)]
fn mask(count: usize) -> u16 {
    ((1u32 << count.min(16)) - 1) as u16
}

/// Up to sixteen f16, and zeros after them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn halves_of(stored: &[[u8; 2]]) -> __m256i {
    // SAFETY: the mask leaves the slice's values.
    unsafe { _mm256_maskz_loadu_epi16(mask(stored.len()), stored.as_ptr().cast()) }
}

/// Up to sixteen f16 as f32, and zeros after them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn floats(stored: &[[u8; 2]]) -> __m512 {
    _mm512_cvtph_ps(halves_of(stored))
}

/// Up to sixteen f32, and zeros after them.
#[inline]
#[target_feature(enable = "avx512f")]
fn some_floats(from: &[f32]) -> __m512 {
    // SAFETY: the mask leaves the slice's values.
    unsafe { _mm512_maskz_loadu_ps(mask(from.len()), from.as_ptr()) }
}

/// Up to sixteen i32, and zeros after them.
#[inline]
#[target_feature(enable = "avx512f")]
fn integers(from: &[i32]) -> __m512i {
    // SAFETY: the mask leaves the slice's values.
    unsafe { _mm512_maskz_loadu_epi32(mask(from.len()), from.as_ptr()) }
}

/// Scales 8 `part` to 8 `part` + 7, each twice; zeros after the last one.
#[inline]
#[target_feature(enable = "avx512f")]
fn twice(scales: &[f32], part: usize) -> __m512 {
    let eight = some_floats(&scales[scales.len().min(8 * part)..scales.len().min(8 * (part + 1))]);
    _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), eight)
}

/// The first of the pair in lanes 0 to 7, the second in the others.
#[inline]
#[target_feature(enable = "avx512f")]
fn both(pair: [f32; 2]) -> __m512 {
    _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(pair[0]), _mm512_set1_ps(pair[1]))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [f32; 16], values: __m512) {
    // SAFETY: the pointer is that of sixteen values.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
}
