//! Integer dot products of rows of units: 16 levels a register.

use super::{
    bytes::{Dot, floats},
    registers::{load, load_floats, load_signed, store_floats},
};
use crate::{
    arch::units::{UnitRow, UnitRows},
    scheme::UNIT,
};
use std::arch::aarch64::*;

/// Rows that are multiplied together: what is loaded of the input serves all of them.
const ROWS: usize = 4;

/// Units whose scales are prepared together.
const BLOCK: usize = 4;

/// # Safety
/// The processor has `D`'s instruction set.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn units_dot<D: Dot>(rows: UnitRows, out: &mut [f32]) {
    rows.check(out.len());
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match (rows.bits, rows.group < UNIT) {
            (2, false) => all::<D, 2, false>(&rows, out),
            (2, true) => all::<D, 2, true>(&rows, out),
            (3, false) => all::<D, 3, false>(&rows, out),
            (3, true) => all::<D, 3, true>(&rows, out),
            (4, false) => all::<D, 4, false>(&rows, out),
            (4, true) => all::<D, 4, true>(&rows, out),
            (_, false) => all::<D, 8, false>(&rows, out),
            (_, true) => all::<D, 8, true>(&rows, out),
        }
    }
}

/// # Safety
/// The processor has `D`'s instruction set.
#[target_feature(enable = "neon")]
unsafe fn all<D: Dot, const BITS: usize, const HALVES: bool>(rows: &UnitRows, out: &mut [f32]) {
    let levels = UnitLevels::new(rows.table, BITS);
    let (fours, rest) = out.as_chunks_mut::<ROWS>();
    let tail = ROWS * fours.len();
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        for (i, out) in fours.iter_mut().enumerate() {
            some::<D, BITS, HALVES, ROWS>(rows, &levels, ROWS * i, out);
        }
        for (i, out) in rest.as_chunks_mut::<1>().0.iter_mut().enumerate() {
            some::<D, BITS, HALVES, 1>(rows, &levels, tail + i, out);
        }
    }
}

/// `R` rows from `first` on. With `HALVES`, each half of a unit has its scale.
///
/// # Safety
/// The processor has `D`'s instruction set.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn some<D: Dot, const BITS: usize, const HALVES: bool, const R: usize>(
    rows: &UnitRows,
    levels: &UnitLevels,
    first: usize,
    out: &mut [f32; R],
) {
    let (x, row): (_, [UnitRow; R]) = (rows.x, std::array::from_fn(|r| rows.row(first + r)));
    let (values, mut sums) = (x.values().as_chunks::<UNIT>().0, [vdupq_n_f32(0.0); R]);
    for start in (0..values.len()).step_by(BLOCK) {
        // Scales of weights times those of the input: one a unit, or two.
        let (mut scales, input) = ([[[0f32; BLOCK]; 2]; R], four_floats(&x.scales()[start..]));
        if HALVES {
            let parts = x.sums()[start..].as_flattened();
            let inputs = [vzip1q_f32(input, input), vzip2q_f32(input, input)];
            for (part, input) in inputs.into_iter().enumerate() {
                let at = 2 * start + BLOCK * part;
                for (scales, row) in scales.iter_mut().zip(&row) {
                    store_floats(&mut scales[part], vmulq_f32(input, four_f16(row.scales, at)));
                }
                if !rows.minima.is_empty() {
                    let input =
                        vmulq_n_f32(vmulq_f32(input, four_integers(parts, BLOCK * part)), rows.level_unit);
                    for (sum, row) in sums.iter_mut().zip(&row) {
                        *sum = vfmaq_f32(*sum, input, four_f16(row.minima, at));
                    }
                }
            }
        } else if rows.group == UNIT {
            for (scales, row) in scales.iter_mut().zip(&row) {
                store_floats(&mut scales[0], vmulq_f32(input, four_f16(row.scales, start)));
            }
        } else {
            // Units after the last one have its group.
            let groups: [usize; BLOCK] =
                std::array::from_fn(|i| (start + i).min(values.len() - 1) * UNIT / rows.group);
            for (scales, row) in scales.iter_mut().zip(&row) {
                let stored = groups.map(|group| row.scales[group]);
                store_floats(&mut scales[0], vmulq_f32(input, four_f16(&stored, 0)));
            }
        }
        for u in start..values.len().min(start + BLOCK) {
            let values = load_unit(&values[u]);
            for r in 0..R {
                let levels = levels.of::<BITS>(&row[r].codes[u * 8 * BITS..(u + 1) * 8 * BITS]);
                // SAFETY: the caller vouches for the instruction set.
                let half = |sums, half: usize| unsafe {
                    let i = 2 * half;
                    D::dot(D::dot(sums, levels[i], values[i]), levels[i + 1], values[i + 1])
                };
                let zero = vdupq_n_s32(0);
                if HALVES {
                    let [low, high] = scales[r].as_flattened().as_chunks::<2>().0[u - start];
                    sums[r] = vfmaq_n_f32(sums[r], vcvtq_f32_s32(half(zero, 0)), low);
                    sums[r] = vfmaq_n_f32(sums[r], vcvtq_f32_s32(half(zero, 1)), high);
                } else {
                    sums[r] =
                        vfmaq_n_f32(sums[r], vcvtq_f32_s32(half(half(zero, 0), 1)), scales[r][0][u - start]);
                }
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = vaddvq_f32(sum) / rows.level_unit;
    }
}

/// Four values from `first` on, and zeros after the last one.
#[inline(always)]
fn four<T: Copy + Default>(from: &[T], first: usize) -> [T; BLOCK] {
    let from = from.get(first..).unwrap_or_default();
    match from.first_chunk() {
        Some(four) => *four,
        None => std::array::from_fn(|i| from.get(i).copied().unwrap_or_default()),
    }
}

/// [`four`] f32.
#[inline]
#[target_feature(enable = "neon")]
fn four_floats(from: &[f32]) -> float32x4_t {
    load_floats(&four(from, 0))
}

/// [`four`] integers as f32.
#[inline]
#[target_feature(enable = "neon")]
fn four_integers(from: &[i32], first: usize) -> float32x4_t {
    // SAFETY: the pointer is that of four integers.
    vcvtq_f32_s32(unsafe { vld1q_s32(four(from, first).as_ptr()) })
}

/// [`four`] stored f16 as f32.
#[inline]
#[target_feature(enable = "neon")]
fn four_f16(stored: &[[u8; 2]], first: usize) -> float32x4_t {
    // SAFETY: the pointer is that of eight bytes.
    floats(vreinterpret_u16_u8(unsafe { vld1_u8(four(stored, first).as_ptr().cast()) }))
}

/// The level of each code, for look-ups with more than a code in the index.
///
/// A nibble of a unit of 2 or 3 bits holds the (low) bits of two codes; one table looks at the first, another at the second.
pub(super) struct UnitLevels {
    /// By four bits, of which the code's are bits 0 and 1; and by the code's high bit above them.
    low: int8x16x2_t,
    /// The same for bits 2 and 3.
    high: int8x16x2_t,
}

impl UnitLevels {
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn new(table: &[i8; 16], bits: usize) -> Self {
        if bits == 4 {
            let all = load_signed(table);
            return Self { low: int8x16x2_t(all, all), high: int8x16x2_t(all, all) };
        }
        let pair = |shift: usize| {
            let at = |first: usize| load_signed(&std::array::from_fn(|i| table[first + (i >> shift & 3)]));
            int8x16x2_t(at(0), at(4))
        };
        Self { low: pair(0), high: pair(2) }
    }

    /// The levels of a unit.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn of<const BITS: usize>(&self, unit: &[u8]) -> [int8x16_t; 4] {
        let (sixteens, nibble) = (unit.as_chunks::<16>().0, vdupq_n_u8(15));
        match BITS {
            8 => std::array::from_fn(|i| vreinterpretq_s8_u8(load(&sixteens[i]))),
            4 => {
                let bytes = [load(&sixteens[0]), load(&sixteens[1])];
                let at = |codes| vqtbl1q_s8(self.low.0, codes);
                [
                    at(vandq_u8(bytes[0], nibble)),
                    at(vandq_u8(bytes[1], nibble)),
                    at(vshrq_n_u8::<4>(bytes[0])),
                    at(vshrq_n_u8::<4>(bytes[1])),
                ]
            }
            2 => {
                let bytes = load(&sixteens[0]);
                let (lower, upper) = (vandq_u8(bytes, nibble), vshrq_n_u8::<4>(bytes));
                [
                    vqtbl1q_s8(self.low.0, lower),
                    vqtbl1q_s8(self.high.0, lower),
                    vqtbl1q_s8(self.low.0, upper),
                    vqtbl1q_s8(self.high.0, upper),
                ]
            }
            _ => {
                let bytes = load(&sixteens[0]);
                let (lower, upper) = (vandq_u8(bytes, nibble), vshrq_n_u8::<4>(bytes));
                // SAFETY: the pointer is that of eight bytes.
                let bits = unsafe { vld1_u8(unit[16..24].as_ptr()) };
                let bits = vcombine_u8(bits, bits);
                // Bit 4 of an index is the code's high bit, the others are the nibble.
                let index = |quarter: usize, nibbles| {
                    let bytes = load(&std::array::from_fn(|i| (2 * quarter + i / 8) as u8));
                    let to_bit_4 = load_signed(&std::array::from_fn(|i| 4 - (i % 8) as i8));
                    vbslq_u8(vdupq_n_u8(16), vshlq_u8(vqtbl1q_u8(bits, bytes), to_bit_4), nibbles)
                };
                [
                    vqtbl2q_s8(self.low, index(0, lower)),
                    vqtbl2q_s8(self.high, index(1, lower)),
                    vqtbl2q_s8(self.low, index(2, upper)),
                    vqtbl2q_s8(self.high, index(3, upper)),
                ]
            }
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_unit(values: &[i8; UNIT]) -> [int8x16_t; 4] {
    let sixteens = values.as_chunks::<16>().0;
    std::array::from_fn(|i| load_signed(&sixteens[i]))
}
