//! Integer dot products of rows of units: 16 levels a register.

use super::{
    bytes::{Dot, floats},
    registers::{load, load_floats, load_signed, store_floats},
};
use crate::{
    arch::units::{BLOCK, UnitRow, UnitRows},
    scheme::UNIT,
};
use std::arch::aarch64::*;

/// Rows that are multiplied together: what is loaded of the input serves all of them.
const ROWS: usize = 4;

/// Most scales of a row in a block: two a unit.
const SCALES: usize = 2 * BLOCK;

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
        let block = start..values.len().min(start + BLOCK);
        let input = BlockInput::new::<HALVES>(rows, start, block.len());
        let mut scales = [[0f32; SCALES]; R];
        for r in 0..R {
            input.scale(row[r].scales, &mut scales[r]);
            sums[r] = input.add_minima(row[r].minima, sums[r]);
        }
        for u in block.clone() {
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
                    let [low, high] = scales[r].as_chunks::<2>().0[u - start];
                    sums[r] = vfmaq_n_f32(sums[r], vcvtq_f32_s32(half(zero, 0)), low);
                    sums[r] = vfmaq_n_f32(sums[r], vcvtq_f32_s32(half(zero, 1)), high);
                } else {
                    sums[r] =
                        vfmaq_n_f32(sums[r], vcvtq_f32_s32(half(half(zero, 0), 1)), scales[r][u - start]);
                }
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = vaddvq_f32(sum) / rows.level_unit;
    }
}

/// What the scales and minima of a block of units are multiplied by: one value for each unit, or for each half of one.
struct BlockInput {
    /// Scales of the input.
    scales: [f32; SCALES],
    /// Sums of the input, times its scales and the level unit.
    sums: [f32; SCALES],
    /// The first scale of a row that the block needs, and how many it needs.
    first: usize,
    count: usize,
    /// Which of them each unit takes, where a group has several units.
    within: Option<[u16; BLOCK]>,
}

impl BlockInput {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new<const HALVES: bool>(rows: &UnitRows, start: usize, units: usize) -> Self {
        let (x, block) = (rows.x, start..start + units);
        let (mut scales, mut sums) = ([0.0; SCALES], [0.0; SCALES]);
        if HALVES {
            let pairs = scales.as_chunks_mut::<2>().0.iter_mut().zip(sums.as_chunks_mut::<2>().0);
            let input = x.scales()[block.clone()].iter().zip(&x.sums()[block]);
            for ((scales, sums), (&scale, parts)) in pairs.zip(input) {
                *scales = [scale; 2];
                *sums = parts.map(|part| scale * rows.level_unit * part as f32);
            }
            return Self { scales, sums, first: 2 * start, count: 2 * units, within: None };
        }
        scales[..units].copy_from_slice(&x.scales()[block]);
        if rows.group == UNIT {
            return Self { scales, sums, first: start, count: units, within: None };
        }
        let (first, within) = rows.groups(start);
        let count = usize::from(within[units - 1]) + 1;
        Self { scales, sums, first, count, within: Some(within) }
    }

    /// The scales of a row, each times the input's.
    #[inline]
    #[target_feature(enable = "neon")]
    fn scale(&self, stored: &[[u8; 2]], out: &mut [f32; SCALES]) {
        let fours = |i: usize| four(&stored[self.first..self.first + self.count], i);
        if let Some(within) = self.within {
            let mut of_groups = [0f32; BLOCK];
            for (i, out) in
                of_groups.as_chunks_mut::<4>().0.iter_mut().take(self.count.div_ceil(4)).enumerate()
            {
                store_floats(out, fours(i));
            }
            for (out, (&input, group)) in out.iter_mut().zip(self.scales.iter().zip(within)) {
                *out = input * of_groups[usize::from(group) % BLOCK];
            }
        } else {
            let out = out.as_chunks_mut::<4>().0.iter_mut().zip(self.scales.as_chunks::<4>().0);
            for (i, (out, input)) in out.take(self.count.div_ceil(4)).enumerate() {
                store_floats(out, vmulq_f32(fours(i), load_floats(input)));
            }
        }
    }

    /// The minima of a row, each times the input's sum, four sums of them added to `sums`.
    #[inline]
    #[target_feature(enable = "neon")]
    fn add_minima(&self, stored: &[[u8; 2]], mut sums: float32x4_t) -> float32x4_t {
        let Some(stored) = stored.get(self.first..self.first + self.count) else {
            return sums;
        };
        for (i, input) in self.sums.as_chunks::<4>().0.iter().take(self.count.div_ceil(4)).enumerate() {
            sums = vfmaq_f32(sums, four(stored, i), load_floats(input));
        }
        sums
    }
}

/// f16 `4 i` to `4 i + 3` as f32, and zeros after the last one.
#[inline]
#[target_feature(enable = "neon")]
fn four(stored: &[[u8; 2]], i: usize) -> float32x4_t {
    let bits = match stored[4 * i..].first_chunk::<4>() {
        Some(four) => *four,
        None => {
            let mut last = [[0; 2]; 4];
            last[..stored.len() - 4 * i].copy_from_slice(&stored[4 * i..]);
            last
        }
    };
    // SAFETY: the pointer is that of eight bytes.
    floats(vreinterpret_u16_u8(unsafe { vld1_u8(bits.as_ptr().cast()) }))
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
