//! Integer dot products: int8 levels of weights with int8 activations, summed in i32, times scales in f32.
//!
//! Sums of integers are exact, so that instances differ by no more than the order in which groups are added up.

use super::tiles::row_bits;
use crate::{
    quantized_input::{GROUP, HALF, QuantizedInput},
    scheme::{CodeUnit, TILE, UNIT, Unit2, Unit3, Unit4},
};

const _: () = assert!(UNIT == GROUP && GROUP.is_multiple_of(TILE));

/// A run of units of 64 codes of one row, and what they are multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct UnitRun<'a> {
    /// Bits of a code: 2, 3, 4, or 8 where the codes are the levels.
    pub bits: usize,
    /// The codes, `8 * bits` bytes a unit.
    pub codes: &'a [u8],
    /// The level of each code below 16.
    pub table: &'a [i8; 16],
    /// What the products of each half of a unit are multiplied by.
    pub scales: &'a [[f32; 2]],
    /// The values of the input, 64 a unit.
    pub values: &'a [i8],
    /// Their sums.
    pub sums: &'a [[i32; 2]],
}

/// A strip of 16 rows of a trellis code, and what it is multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct TileRun<'a> {
    /// Bits of a weight: 2, 3, 4 or 5.
    pub bits: usize,
    /// The level of each window.
    pub table: &'a [i8; 256],
    /// The codes of the tiles from left to right, `32 * bits` bytes each.
    pub codes: &'a [u8],
    /// The input, of as many columns, and zeros after them.
    pub x: &'a QuantizedInput,
}

/// An instance of [`units_dot`].
pub type UnitsDot = fn(UnitRun) -> f32;

/// An instance of [`tiles_dot`].
pub type TilesDot = fn(TileRun) -> [f32; TILE];

impl UnitRun<'_> {
    /// Number of units.
    ///
    /// # Panics
    /// When the lengths do not belong together.
    #[inline(always)]
    pub(super) fn check(&self) -> usize {
        let units = self.scales.len();
        assert!(matches!(self.bits, 2 | 3 | 4 | 8) && self.codes.len() == units * 8 * self.bits);
        assert!(self.values.len() == units * UNIT && self.sums.len() == units);
        units
    }
}

impl TileRun<'_> {
    /// Number of tiles.
    ///
    /// # Panics
    /// When the lengths do not belong together.
    #[inline(always)]
    pub(super) fn check(&self) -> usize {
        assert!((2..=5).contains(&self.bits) && self.codes.len().is_multiple_of(32 * self.bits));
        let tiles = self.codes.len() / (32 * self.bits);
        let groups = (tiles * TILE).div_ceil(GROUP);
        let x = self.x;
        assert!(x.values().len() == groups * GROUP && x.scales().len() == groups && x.sums().len() == groups);
        tiles
    }
}

/// `sum over units of scale * (levels . values)`, half unit by half unit: the portable instance.
pub fn units_dot(run: UnitRun) -> f32 {
    #[inline(always)]
    fn levels<U: CodeUnit>(unit: &[u8], table: &[i8; 16]) -> [i8; UNIT] {
        let mut codes = [0; UNIT];
        U::unpack(unit, &mut codes);
        codes.map(|code| table[usize::from(code & 15)])
    }
    run.check();
    let mut sum = 0.0;
    let units = run.codes.chunks_exact(8 * run.bits).zip(run.values.as_chunks::<UNIT>().0);
    for ((unit, values), scales) in units.zip(run.scales) {
        let levels = match run.bits {
            2 => levels::<Unit2>(unit, run.table),
            3 => levels::<Unit3>(unit, run.table),
            4 => levels::<Unit4>(unit, run.table),
            _ => std::array::from_fn(|i| unit[i] as i8),
        };
        let halves = levels.as_chunks::<HALF>().0.iter().zip(values.as_chunks::<HALF>().0);
        for ((levels, values), scale) in halves.zip(scales) {
            sum += scale * dot(levels, values) as f32;
        }
    }
    sum
}

/// `sum over groups of x.scales * (levels . x.values)` for each of the 16 rows: the portable instance.
pub fn tiles_dot(run: TileRun) -> [f32; TILE] {
    #[inline(always)]
    fn all<const K: usize>(run: TileRun) -> [f32; TILE] {
        let mut sums = [0.0; TILE];
        let groups = run.codes.chunks(GROUP / TILE * 32 * K).zip(run.x.values().as_chunks::<GROUP>().0);
        for ((tiles, values), scale) in groups.zip(run.x.scales()) {
            let mut integers = [0; TILE];
            for (tile, values) in tiles.chunks_exact(32 * K).zip(values.as_chunks::<TILE>().0) {
                for (row, integer) in integers.iter_mut().enumerate() {
                    let bits = row_bits::<K>(tile, row);
                    let levels: [i8; TILE] =
                        std::array::from_fn(|c| run.table[usize::from((bits >> (K * c)) as u8)]);
                    *integer += dot(&levels, values);
                }
            }
            sums.iter_mut().zip(integers).for_each(|(sum, integer)| *sum += scale * integer as f32);
        }
        sums
    }
    run.check();
    match run.bits {
        2 => all::<2>(run),
        3 => all::<3>(run),
        4 => all::<4>(run),
        _ => all::<5>(run),
    }
}

#[inline(always)]
fn dot<const N: usize>(levels: &[i8; N], values: &[i8; N]) -> i32 {
    levels.iter().zip(values).map(|(&level, &value)| i32::from(level) * i32::from(value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{arch, scheme::trellis};
    use proptest::prelude::*;

    fn near(found: f32, expected: f64, size: f64) -> bool {
        (f64::from(found) - expected).abs() <= 1e-5 * size + 1e-30
    }

    proptest! {
        #[test]
        fn every_instance_of_units_equals_the_definition(
            bits in prop::sample::select(vec![2usize, 3, 4, 8]), units in 0..20usize, table: [i8; 16],
            codes in prop::collection::vec(any::<u8>(), 20 * 64),
            x in prop::collection::vec(-3f32..3., 20 * 64), scales in prop::collection::vec(any::<[i8; 2]>(), 20),
        ) {
            let codes = &codes[..units * 8 * bits];
            let scales: Vec<[f32; 2]> = scales[..units].iter().map(|s| s.map(|s| f32::from(s) / 16.0)).collect();
            let x = QuantizedInput::new(&x[..units * 64]);
            let (mut expected, mut size) = (0.0, 0.0);
            for (u, unit) in codes.chunks_exact(8 * bits).enumerate() {
                for c in 0..64 {
                    let level = match bits {
                        2 => table[usize::from(Unit2::code(unit, c))],
                        3 => table[usize::from(Unit3::code(unit, c))],
                        4 => table[usize::from(Unit4::code(unit, c))],
                        _ => unit[c] as i8,
                    };
                    let product = f64::from(scales[u][c / 32]) * f64::from(level) * f64::from(x.values()[64 * u + c]);
                    expected += product;
                    size += product.abs();
                }
            }
            let run = UnitRun { bits, codes, table: &table, scales: &scales, values: x.values(), sums: x.sums() };
            for kernels in arch::available() {
                let found = (kernels.units_dot)(run);
                prop_assert!(near(found, expected, size), "{}: {found} {expected}", kernels.isa);
            }
        }

        #[test]
        fn every_instance_of_tiles_equals_the_definition(
            bits in 2..6usize, tiles in 0..23usize, table in prop::collection::vec(any::<i8>(), 256),
            codes in prop::collection::vec(any::<u8>(), 23 * 160), x in prop::collection::vec(-3f32..3., 23 * 16),
        ) {
            let (codes, table) = (&codes[..tiles * 32 * bits], table.as_slice().try_into().unwrap());
            let x = QuantizedInput::new(&x[..tiles * 16]);
            let run = TileRun { bits, table, codes, x: &x };
            let mut expected = [(0.0, 0.0); 16];
            for (t, tile) in codes.chunks_exact(32 * bits).enumerate() {
                for (i, window) in trellis::windows(tile, bits).into_iter().enumerate() {
                    let c = 16 * t + i % 16;
                    let level = f64::from(table[usize::from(window)]);
                    let product = f64::from(x.scales()[c / GROUP]) * level * f64::from(x.values()[c]);
                    expected[i / 16].0 += product;
                    expected[i / 16].1 += product.abs();
                }
            }
            for kernels in arch::available() {
                for (found, (expected, size)) in (kernels.tiles_dot)(run).into_iter().zip(expected) {
                    prop_assert!(near(found, expected, size), "{}: {found} {expected}", kernels.isa);
                }
            }
        }
    }

    /// The largest magnitudes everywhere: nothing saturates.
    #[test]
    fn extremes_do_not_saturate() {
        for level in [i8::MIN, i8::MAX] {
            for sign in [1.0, -1.0] {
                let x = QuantizedInput::new(&vec![sign; 256]);
                let expected = 256.0 * sign * f32::from(level);
                for kernels in arch::available() {
                    let run = TileRun { bits: 2, table: &[level; 256], codes: &[0x5a; 16 * 64], x: &x };
                    for found in (kernels.tiles_dot)(run) {
                        assert!((found - expected).abs() < 0.1, "{}: {found} {expected}", kernels.isa);
                    }
                    for bits in [2, 8] {
                        let codes = vec![level as u8; 4 * 8 * bits];
                        let run = UnitRun {
                            bits,
                            codes: &codes,
                            table: &[level; 16],
                            scales: &[[x.scales()[0]; 2]; 4],
                            values: x.values(),
                            sums: x.sums(),
                        };
                        let found = (kernels.units_dot)(run);
                        assert!((found - expected).abs() < 0.1, "{}: {found} {expected}", kernels.isa);
                    }
                }
            }
        }
    }
}
