//! Integer dot products of trellis codes: int8 levels with int8 activations, summed in i32, times scales in f32.
//!
//! Sums of integers are exact, so that instances differ by no more than the order in which groups are added up.

use super::{tiles::row_bits, units::dot};
use crate::{
    quantized_input::{GROUP, QuantizedInput},
    scheme::{TILE, trellis::Codebook},
};

const _: () = assert!(GROUP.is_multiple_of(TILE));

/// A strip of 16 rows of a trellis code, and what it is multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct TileRun<'a> {
    /// Bits of a weight: 2, 3, 4 or 5.
    pub bits: usize,
    /// The level of each window.
    pub codebook: &'a Codebook,
    /// The codes of the tiles from left to right, `32 * bits` bytes each.
    pub codes: &'a [u8],
    /// The input, of as many columns, and zeros after them.
    pub x: &'a QuantizedInput,
}

/// An instance of [`tiles_dot`].
pub type TilesDot = fn(TileRun) -> [f32; TILE];

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
                        std::array::from_fn(|c| run.codebook.level((bits >> (K * c)) as u16));
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
        fn every_instance_equals_the_definition(
            bits in 2..6usize, tiles in 0..23usize, low: [i8; 16], high: [i8; 16],
            codes in prop::collection::vec(any::<u8>(), 23 * 160), x in prop::collection::vec(-3f32..3., 23 * 16),
        ) {
            let (codes, codebook) = (&codes[..tiles * 32 * bits], &Codebook::any(bits, low, high));
            let x = QuantizedInput::new(&x[..tiles * 16]);
            let run = TileRun { bits, codebook, codes, x: &x };
            let mut expected = [(0.0, 0.0); 16];
            for (t, tile) in codes.chunks_exact(32 * bits).enumerate() {
                for (i, window) in trellis::windows(tile, bits).into_iter().enumerate() {
                    let c = 16 * t + i % 16;
                    let level = f64::from(codebook.level(window));
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
        for level in [-i8::MAX, i8::MAX] {
            for sign in [1.0, -1.0] {
                let x = QuantizedInput::new(&vec![sign; 256]);
                let expected = 256.0 * sign * f32::from(level);
                for kernels in arch::available() {
                    for bits in 2..6 {
                        let codebook = &Codebook::new(bits, [level; 16], [0; 16]);
                        let codes = &vec![0x5a; 16 * 32 * bits];
                        let run = TileRun { bits, codebook, codes, x: &x };
                        for found in (kernels.tiles_dot)(run) {
                            assert!((found - expected).abs() < 0.1, "{}: {found} {expected}", kernels.isa);
                        }
                    }
                }
            }
        }
    }
}
