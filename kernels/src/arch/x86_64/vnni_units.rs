//! AVX-512 with byte permutations and integer dot products: a unit of 64 weights in about seven instructions.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. So levels are looked up with 128 added, and sums begin at `-128 sum x`.

use super::vbmi::load;
use crate::{
    arch::{
        level_panel::OFFSET,
        units::{BLOCK, UnitRow, UnitRows},
    },
    scheme::UNIT,
};
use std::arch::x86_64::*;

/// Rows that are multiplied together: what is made of the input serves all of them.
const ROWS: usize = 4;

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

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn all<const BITS: usize>(rows: &UnitRows, out: &mut [f32]) {
    let (tables, halves) = (UnitLevels::new(rows.table, BITS), rows.group < UNIT);
    let (fours, rest) = out.as_chunks_mut::<ROWS>();
    let tail = ROWS * fours.len();
    for (i, out) in fours.iter_mut().enumerate() {
        if halves {
            some::<BITS, true, ROWS>(rows, &tables, ROWS * i, out)
        } else {
            some::<BITS, false, ROWS>(rows, &tables, ROWS * i, out)
        }
    }
    for (i, out) in rest.as_chunks_mut::<1>().0.iter_mut().enumerate() {
        if halves {
            some::<BITS, true, 1>(rows, &tables, tail + i, out)
        } else {
            some::<BITS, false, 1>(rows, &tables, tail + i, out)
        }
    }
}

/// `R` rows from `first` on. With `HALVES`, each half of a unit has its scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn some<const BITS: usize, const HALVES: bool, const R: usize>(
    rows: &UnitRows,
    tables: &UnitLevels,
    first: usize,
    out: &mut [f32; R],
) {
    let unit = _mm512_set1_ps(rows.level_unit);
    let (x, row): (_, [UnitRow; R]) = (rows.x, std::array::from_fn(|r| rows.row(first + r)));
    let (values, mut sums) = (x.values().as_chunks::<UNIT>().0, [_mm512_setzero_ps(); R]);
    // The same place in the rows that come next.
    let ahead = R * values.len() * 8 * BITS;
    for start in (0..values.len()).step_by(BLOCK) {
        let block = start..values.len().min(start + BLOCK);
        // Scales of weights times those of the input: one a unit, or two.
        let mut scales = [[[0f32; 16]; 2]; R];
        for row in &row {
            let groups = row.scales.len();
            for side in [row.scales, row.minima] {
                _mm_prefetch::<_MM_HINT_T0>(
                    side.as_ptr().wrapping_add(R * groups + start * groups / values.len()).cast(),
                );
            }
        }
        if HALVES {
            let input = [0, 1].map(|part| twice(&x.scales()[block.clone()], part));
            for r in 0..R {
                for (part, input) in input.into_iter().enumerate() {
                    let halves = 2 * start + 16 * part..(2 * start + 16 * (part + 1)).min(2 * block.end);
                    let halves = halves.start.min(halves.end)..halves.end;
                    store(&mut scales[r][part], _mm512_mul_ps(input, floats(&row[r].scales[halves.clone()])));
                    if let Some(minima) = row[r].minima.get(halves.clone()) {
                        let parts = &x.sums().as_flattened()[halves];
                        let input =
                            _mm512_mul_ps(_mm512_mul_ps(input, unit), _mm512_cvtepi32_ps(integers(parts)));
                        sums[r] = _mm512_fmadd_ps(floats(minima), input, sums[r]);
                    }
                }
            }
        } else {
            let (group, within) = rows.groups(start);
            // SAFETY: the pointer is that of sixteen u16.
            let within =
                (unsafe { _mm256_loadu_si256(within.as_ptr().cast()) }, usize::from(within[block.len() - 1]));
            let input = &x.scales()[block.clone()];
            // SAFETY: the mask leaves `input`'s values.
            let input = unsafe { _mm512_maskz_loadu_ps(mask(input.len()), input.as_ptr()) };
            for r in 0..R {
                let groups = halves_of(&row[r].scales[group..=group + within.1]);
                let stored = _mm512_cvtph_ps(_mm256_permutexvar_epi16(within.0, groups));
                store(&mut scales[r][0], _mm512_mul_ps(input, stored));
            }
        }
        for u in block.clone() {
            let (values, [low, high]) = (load(&values[u]), x.sums()[u]);
            let begin = if HALVES {
                // Lanes 0 to 7 are the first half of a unit.
                let [low, high] = [low, high].map(|sum| -(OFFSET / 8) * sum);
                _mm512_inserti64x4(_mm512_set1_epi32(low), _mm256_set1_epi32(high), 1)
            } else {
                _mm512_set1_epi32(-(OFFSET / 16) * (low + high))
            };
            for r in 0..R {
                let codes = &row[r].codes[u * 8 * BITS..(u + 1) * 8 * BITS];
                _mm_prefetch::<_MM_HINT_T0>(codes.as_ptr().wrapping_add(ahead).cast());
                let products = _mm512_dpbusd_epi32(begin, tables.levels::<BITS>(codes), values);
                let scale = if HALVES {
                    let pair = scales[r].as_flattened().as_chunks::<2>().0[u - start];
                    both(pair)
                } else {
                    _mm512_set1_ps(scales[r][0][u - start])
                };
                sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, sums[r]);
            }
        }
    }
    *out = sums.map(|sum| _mm512_reduce_add_ps(sum) / rows.level_unit);
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
    let scales = &scales[scales.len().min(8 * part)..];
    // SAFETY: the mask leaves the slice's values.
    let eight = unsafe { _mm512_maskz_loadu_ps(mask(scales.len().min(8)), scales.as_ptr()) };
    _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), eight)
}

/// The first of the pair in lanes 0 to 7, the second in the others.
#[inline]
#[target_feature(enable = "avx512f")]
fn both(pair: [f32; 2]) -> __m512 {
    let [low, high] = pair.map(|scale| u64::from(scale.to_bits()));
    let pairs = _mm512_castsi512_ps(_mm512_set1_epi64((low | high << 32).cast_signed()));
    _mm512_permutevar_ps(pairs, _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [f32; 16], values: __m512) {
    // SAFETY: the pointer is that of sixteen values.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
}
