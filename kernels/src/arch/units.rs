//! Integer dot products of rows of units: 64 codes below 16, each naming a level, or 64 levels.
//!
//! ```text
//! out[r] = sum over groups g of scales[r, g] / level_unit * (levels[r, g] . x[g]) + minima[r, g] * (sum of x[g])
//! ```
//!
//! where `x` is in eight bits with a scale for every unit. The products of a unit are summed up in i32, exactly; instances differ
//! by no more than the order in which units are added up in f32.

use crate::{
    quantized_input::{GROUP, HALF, PADDED, QuantizedInput},
    scheme::{CodeUnit, UNIT, Unit2, Unit3, Unit4},
};
use half::f16;

const _: () = assert!(UNIT == GROUP);

/// Units whose scales an instance prepares at a time.
#[cfg(target_arch = "x86_64")]
pub(super) const BLOCK: usize = PADDED;

/// Some rows of units, and what they are multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct UnitRows<'a> {
    /// Bits of a code: 2, 3, 4, or 8 where the codes are the levels.
    pub bits: usize,
    /// The level of each code below 16.
    pub table: &'a [i8; 16],
    /// The codes of all rows, `8 * bits` bytes a unit.
    pub codes: &'a [u8],
    /// The f16 scales of all rows' groups.
    pub scales: &'a [u8],
    /// The f16 minima of all rows' groups, or nothing; only for groups of half a unit.
    pub minima: &'a [u8],
    /// What levels are divided by, a power of two.
    pub level_unit: f32,
    /// Columns of a group: half a unit, or a multiple of a unit.
    pub group: usize,
    /// The input, one group of it for each unit of a row.
    pub x: &'a QuantizedInput,
}

/// An instance of [`units_dot`].
pub type UnitsDot = fn(UnitRows, &mut [f32]);

/// One row of [`UnitRows`].
#[derive(Debug, Clone, Copy)]
pub(super) struct UnitRow<'a> {
    pub codes: &'a [u8],
    pub scales: &'a [[u8; 2]],
    pub minima: &'a [[u8; 2]],
}

impl<'a> UnitRows<'a> {
    /// Makes sure that there are `rows` rows.
    ///
    /// # Panics
    /// When the lengths do not belong together.
    #[inline(always)]
    pub(super) fn check(&self, rows: usize) {
        let units = self.x.scales().len();
        let (x, groups) = (self.x, 2 * units * HALF / self.group);
        assert!(matches!(self.bits, 2 | 3 | 4 | 8) && self.codes.len() == rows * units * 8 * self.bits);
        assert!(self.group == HALF || self.group.is_multiple_of(UNIT) && units * UNIT == groups * self.group);
        assert!(self.scales.len() == rows * groups * 2);
        assert!(self.minima.is_empty() || self.group == HALF && self.minima.len() == self.scales.len());
        assert!(x.values().len() == units * UNIT && x.sums().len() == units);
        let padded = units.next_multiple_of(PADDED);
        assert!(x.half_scales().len() == padded && x.half_sums().len() == padded);
    }

    /// The row's part of everything.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> UnitRow<'a> {
        let units = self.x.scales().len();
        let (bytes, groups) = (units * 8 * self.bits, units * UNIT / self.group);
        let side =
            |side: &'a [u8]| side.as_chunks::<2>().0.get(row * groups..(row + 1) * groups).unwrap_or(&[]);
        UnitRow {
            codes: &self.codes[row * bytes..(row + 1) * bytes],
            scales: side(self.scales),
            minima: side(self.minima),
        }
    }

    /// The group of each unit of the block from unit `start` on, counted from the first one's group, which is returned too.
    ///
    /// For groups of whole units.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn groups(&self, start: usize) -> (usize, [u16; BLOCK]) {
        let units = self.group / UNIT;
        let (first, mut left) = (start / units, units - start % units);
        let mut group = 0;
        let groups = std::array::from_fn(|_| {
            if left == 0 {
                (group, left) = (group + 1, units);
            }
            left -= 1;
            group
        });
        (first, groups)
    }
}

/// The portable instance.
pub fn units_dot(rows: UnitRows, out: &mut [f32]) {
    rows.check(out.len());
    let (x, float) = (rows.x, |bytes: [u8; 2]| f16::from_le_bytes(bytes).to_f32());
    for (r, out) in out.iter_mut().enumerate() {
        let row = rows.row(r);
        *out = 0.0;
        let units = row.codes.chunks_exact(8 * rows.bits).zip(x.values().as_chunks::<UNIT>().0);
        for (u, (unit, values)) in units.enumerate() {
            let levels = levels(rows.bits, rows.table, unit);
            let halves = levels.as_chunks::<HALF>().0.iter().zip(values.as_chunks::<HALF>().0);
            for (half, (levels, values)) in halves.enumerate() {
                let group = (u * UNIT + half * HALF) / rows.group;
                let mut sum = float(row.scales[group]) / rows.level_unit * dot(levels, values) as f32;
                if let Some(&minimum) = row.minima.get(group) {
                    sum += float(minimum) * x.sums()[u][half] as f32;
                }
                *out += x.scales()[u] * sum;
            }
        }
    }
}

/// The levels of a unit of codes of 2, 3 or 4 bits; of 8, the codes.
#[inline(always)]
pub(super) fn levels(bits: usize, table: &[i8; 16], unit: &[u8]) -> [i8; UNIT] {
    #[inline(always)]
    fn named<U: CodeUnit>(unit: &[u8], table: &[i8; 16]) -> [i8; UNIT] {
        let mut codes = [0; UNIT];
        U::unpack(unit, &mut codes);
        codes.map(|code| table[usize::from(code & 15)])
    }
    match bits {
        2 => named::<Unit2>(unit, table),
        3 => named::<Unit3>(unit, table),
        4 => named::<Unit4>(unit, table),
        _ => std::array::from_fn(|i| unit[i] as i8),
    }
}

/// The product of levels and values.
#[inline(always)]
pub(super) fn dot<const N: usize>(levels: &[i8; N], values: &[i8; N]) -> i32 {
    levels.iter().zip(values).map(|(&level, &value)| i32::from(level) * i32::from(value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_instance_equals_the_definition(
            bits in prop::sample::select(vec![2usize, 3, 4, 8]), rows in 0..18usize, group in 0..5usize, groups in 1..12usize,
            minima: bool, table: [i8; 16], codes in prop::collection::vec(any::<u8>(), 4096),
            sides in prop::collection::vec(-2f32..2., 512), x in prop::collection::vec(-3f32..3., 4 * 12 * 64),
            skip in 0..8usize,
        ) {
            // Groups of half a unit up to four units, in rows of up to 48 units.
            let group = if group == 0 { 32 } else { 64 * group };
            let cols = (groups * group).next_multiple_of(64);
            let (units, groups) = (cols / 64, cols / group);
            let x = QuantizedInput::new(&x[..cols]);
            // At any alignment: `skip` bytes lie before.
            let cut = |from: &[u8], bytes| {
                let rest = from.iter().copied().cycle().take(bytes);
                std::iter::repeat_n(0, skip).chain(rest).collect::<Vec<u8>>()
            };
            let floats: Vec<u8> = sides.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
            let side = |first: usize| cut(&floats[2 * first..], rows * groups * 2);
            let (codes, scales, minima) = (cut(&codes, rows * units * 8 * bits), side(0), minima.then(|| side(7)));
            let (codes, scales) = (&codes[skip..], &scales[skip..]);
            let minima = minima.as_ref().filter(|_| group == 32).map_or(&[][..], |minima| &minima[skip..]);
            let all = UnitRows { bits, table: &table, codes, scales, minima, level_unit: 16.0, group, x: &x };

            let float = |side: &[u8], i: usize| f64::from(f16::from_le_bytes([side[2 * i], side[2 * i + 1]]).to_f32());
            let expected: Vec<(f64, f64)> = (0..rows).map(|r| {
                let terms = (0..cols).map(|c| {
                    let unit = &codes[(r * units + c / 64) * 8 * bits..];
                    let level = match bits {
                        2 => table[usize::from(Unit2::code(unit, c % 64))],
                        3 => table[usize::from(Unit3::code(unit, c % 64))],
                        4 => table[usize::from(Unit4::code(unit, c % 64))],
                        _ => unit[c % 64] as i8,
                    };
                    let at = r * groups + c / group;
                    let minimum = if minima.is_empty() { 0.0 } else { float(minima, at) };
                    let x = f64::from(x.scales()[c / 64]) * f64::from(x.values()[c]);
                    // An instance may add 128 to levels on its way, so that is the size of a term.
                    let size = (float(scales, at).abs() * 8.0 + minimum.abs()) * x.abs();
                    ((float(scales, at) * f64::from(level) / 16.0 + minimum) * x, size)
                });
                terms.fold((0.0, 0.0), |(sum, size), (term, of)| (sum + term, size + of))
            }).collect();
            for kernels in arch::available() {
                let mut out = vec![f32::NAN; rows];
                (kernels.units_dot)(all, &mut out);
                for (found, (expected, size)) in out.iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    prop_assert!(error <= 1e-6 * size + 1e-30, "{}: {found} {expected}", kernels.isa);
                }
            }
        }
    }

    /// The largest magnitudes everywhere: nothing saturates.
    #[test]
    fn extremes_do_not_saturate() {
        for (level, sign) in [(i8::MIN, 1.0), (i8::MIN, -1.0), (i8::MAX, 1.0), (i8::MAX, -1.0)] {
            let x = QuantizedInput::new(&[sign; 256]);
            let expected = 256.0 * sign * f32::from(level);
            for (bits, kernels) in
                [2, 3, 4, 8].into_iter().flat_map(|b| arch::available().into_iter().map(move |k| (b, k)))
            {
                for group in [32, 64, 128, 256] {
                    let (codes, scales) =
                        (vec![level as u8; 4 * 8 * bits], f16::ONE.to_le_bytes().repeat(256 / group));
                    let (table, minima) = (&[level; 16], &[][..]);
                    let rows = UnitRows {
                        bits,
                        table,
                        codes: &codes,
                        scales: &scales,
                        minima,
                        level_unit: 1.0,
                        group,
                        x: &x,
                    };
                    let mut out = [0.0];
                    (kernels.units_dot)(rows, &mut out);
                    assert!(
                        (out[0] - expected).abs() < 0.1,
                        "{} {bits} {group}: {} {expected}",
                        kernels.isa,
                        out[0]
                    );
                }
            }
        }
    }
}
