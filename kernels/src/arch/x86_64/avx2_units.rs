//! AVX2, with AVX-VNNI or without: half a unit, 32 weights, a step.

use super::{
    avx2::both,
    bytes::Dot,
    fetch::{SidePace, fetch_units_ahead},
};
use crate::{
    arch::{
        units::{BLOCK, UnitRow, UnitRows},
        vector::Vector,
    },
    quantized_input::HALF,
    scheme::UNIT,
};
use std::arch::x86_64::*;

/// Rows that are multiplied together.
const ROWS: usize = 2;

/// # Safety
/// The processor has AVX2, FMA, F16C and `D`'s instruction set.
pub(super) unsafe fn units_dot<D: Dot>(rows: UnitRows, out: &mut [f32]) {
    rows.check(out.len());
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match rows.bits {
            2 => all::<D, 2>(&rows, out),
            3 => all::<D, 3>(&rows, out),
            4 => all::<D, 4>(&rows, out),
            _ => all::<D, 8>(&rows, out),
        }
    }
}

/// # Safety
/// The processor has `D`'s instruction set.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn all<D: Dot, const BITS: usize>(rows: &UnitRows, out: &mut [f32]) {
    let (halves, pace) = (rows.group < UNIT, SidePace::new(rows));
    let (pairs, rest) = out.as_chunks_mut::<ROWS>();
    let tail = ROWS * pairs.len();
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        for (i, out) in pairs.iter_mut().enumerate() {
            match halves {
                true => some::<D, BITS, true, ROWS>(rows, pace, ROWS * i, out),
                false => some::<D, BITS, false, ROWS>(rows, pace, ROWS * i, out),
            }
        }
        for (i, out) in rest.as_chunks_mut::<1>().0.iter_mut().enumerate() {
            match halves {
                true => some::<D, BITS, true, 1>(rows, pace, tail + i, out),
                false => some::<D, BITS, false, 1>(rows, pace, tail + i, out),
            }
        }
    }
}

/// `R` rows from `first` on. With `HALVES`, each half of a unit has its scale.
///
/// # Safety
/// The processor has `D`'s instruction set.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn some<D: Dot, const BITS: usize, const HALVES: bool, const R: usize>(
    rows: &UnitRows,
    pace: SidePace,
    first: usize,
    out: &mut [f32; R],
) {
    let table = both(rows.table);
    let (x, row): (_, [UnitRow; R]) = (rows.x, std::array::from_fn(|r| rows.row(first + r)));
    let (values, mut sums) = (x.values().as_chunks::<UNIT>().0, [_mm256_setzero_ps(); R]);
    for start in (0..values.len()).step_by(BLOCK) {
        let block = start..values.len().min(start + BLOCK);
        for row in &row {
            fetch_units_ahead(row, pace, BITS, start);
        }
        // Scales of weights times those of the input: one a unit, or two.
        let mut scales = [[[0f32; BLOCK]; 2]; R];
        if HALVES {
            let halves = 2 * start..2 * block.end;
            for r in 0..R {
                let scales = scales[r].as_flattened_mut();
                floats(&row[r].scales[halves.clone()], scales);
                let input = &x.half_scales().as_flattened()[halves.clone()];
                scales.iter_mut().zip(input).for_each(|(scale, input)| *scale *= input);
                if let Some(stored) = row[r].minima.get(halves.clone()) {
                    let mut minima = [0f32; 2 * BLOCK];
                    floats(stored, &mut minima);
                    let halves = x.half_sums().as_flattened()[halves.start..].as_chunks::<8>().0;
                    for (minima, halves) in minima.as_chunks::<8>().0.iter().zip(halves) {
                        let halves = _mm256_mul_ps(load_floats(halves), _mm256_set1_ps(rows.level_unit));
                        sums[r] = _mm256_fmadd_ps(load_floats(minima), halves, sums[r]);
                    }
                }
            }
        } else {
            let (group, within) = rows.groups(start);
            let groups = group..group + usize::from(within[block.len() - 1]) + 1;
            for r in 0..R {
                let mut stored = [0f32; BLOCK];
                floats(&row[r].scales[groups.clone()], &mut stored);
                let input = within.iter().zip(&x.scales()[block.clone()]);
                for (scale, (&group, input)) in scales[r][0].iter_mut().zip(input) {
                    *scale = input * stored[usize::from(group) % BLOCK];
                }
            }
        }
        for u in block.clone() {
            let halves = values[u].as_chunks::<HALF>().0;
            let values = [load(&halves[0]), load(&halves[1])];
            for r in 0..R {
                let unit = &row[r].codes[u * 8 * BITS..(u + 1) * 8 * BITS];
                let levels = levels::<BITS>(unit, table);
                // SAFETY: the caller vouches for the instruction set.
                let add = |sum, half: usize| unsafe { D::add_signed(sum, levels[half], values[half]) };
                let zero = _mm256_setzero_si256();
                if HALVES {
                    for half in 0..2 {
                        let scale = _mm256_set1_ps(scales[r].as_flattened()[2 * (u - start) + half]);
                        sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(add(zero, half)), scale, sums[r]);
                    }
                } else {
                    let (sum, scale) = (add(add(zero, 0), 1), _mm256_set1_ps(scales[r][0][u - start]));
                    sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, sums[r]);
                }
            }
        }
    }
    // SAFETY: this function has the instruction set.
    *out = sums.map(|sum| unsafe { Vector::sum(sum) } / rows.level_unit);
}

/// The levels of a unit's halves.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn levels<const BITS: usize>(unit: &[u8], table: __m256i) -> [__m256i; 2] {
    match BITS {
        8 => {
            let halves = unit.as_chunks::<HALF>().0;
            [load(&halves[0]), load(&halves[1])]
        }
        4 => {
            let (bytes, nibble) = (load(unit.first_chunk().expect("32 bytes")), _mm256_set1_epi8(15));
            let codes =
                [_mm256_and_si256(bytes, nibble), _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble)];
            [_mm256_shuffle_epi8(table, codes[0]), _mm256_shuffle_epi8(table, codes[1])]
        }
        _ => {
            let bytes: &[u8; 16] = unit.first_chunk().expect("16 bytes");
            // SAFETY: the pointer is that of sixteen bytes.
            let bytes = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
            let three = _mm256_set1_epi8(3);
            let mut codes = [
                _mm256_and_si256(_mm256_srlv_epi64(bytes, _mm256_setr_epi64x(0, 0, 2, 2)), three),
                _mm256_and_si256(_mm256_srlv_epi64(bytes, _mm256_setr_epi64x(4, 4, 6, 6)), three),
            ];
            if BITS == 3 {
                let high = unit[16..].as_chunks::<4>().0;
                codes[0] = _mm256_or_si256(codes[0], fours(high[0]));
                codes[1] = _mm256_or_si256(codes[1], fours(high[1]));
            }
            [_mm256_shuffle_epi8(table, codes[0]), _mm256_shuffle_epi8(table, codes[1])]
        }
    }
}

/// Bytes that are 4 where a bit is set, else 0.
#[inline]
#[target_feature(enable = "avx2")]
fn fours(bits: [u8; 4]) -> __m256i {
    // Each byte of the bits eight times, and of each copy one bit alone.
    let copies = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let alone = _mm256_set1_epi64x(0x8040_2010_0804_0201u64.cast_signed());
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(bits)), copies);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, alone), alone);
    _mm256_and_si256(set, _mm256_set1_epi8(4))
}

/// f16 as f32, as many as there are.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn floats(stored: &[[u8; 2]], out: &mut [f32]) {
    let (eights, rest) = stored.as_chunks::<8>();
    let (out_eights, out_rest) = out[..stored.len()].as_chunks_mut::<8>();
    for (eight, out) in eights.iter().zip(out_eights) {
        // SAFETY: the pointers are those of eight values each.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(eight.as_ptr().cast())))
        };
    }
    for (&half, out) in rest.iter().zip(out_rest) {
        let bits = _mm_cvtsi32_si128(i32::from(u16::from_le_bytes(half)));
        *out = _mm_cvtss_f32(_mm_cvtph_ps(bits));
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load<T>(bytes: &[T; HALF]) -> __m256i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: the pointer is that of 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_floats(values: &[f32; 8]) -> __m256 {
    // SAFETY: the pointer is that of eight values.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}
