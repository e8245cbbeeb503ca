//! Products of a strip of rows with a batch of inputs, in integers.
//!
//! A panel holds the levels of 16 rows and of up to [`COLS`] columns, decoded once and multiplied by every input:
//!
//! ```text
//! out[i, r] += scale[r] * sum over groups g of (scales[g, r] * (levels[g, r] . x[i, g]) + minima[g, r] * sum of x[i, g])
//! ```
//!
//! In the order in which an instruction multiplies some columns, its depth, of 16 rows: `[columns / depth, 16, depth]`. With 128 added, levels are
//! unsigned, as `vpdpbusd` has them; products with them exceed those of levels by 128 times the sum of the inputs.

use crate::{
    quantized_batch::BatchBlock,
    quantized_input::{GROUP, HALF},
    scheme::{
        TILE, UNIT,
        trellis::{self, Codebook},
    },
};

/// Rows of a panel.
pub const ROWS: usize = 16;
/// Most columns of a panel. Its levels take half of a usual first-level cache.
pub const COLS: usize = 1024;
/// What is added to levels.
pub const OFFSET: i32 = 128;

const _: () = assert!(TILE == ROWS && UNIT == GROUP && COLS.is_multiple_of(GROUP));

/// Levels of 16 rows with [`OFFSET`] added, on a cache line of their own: of four columns, `[16, 4]`; with a depth of eight, two
/// hold eight columns, `[16, 8]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(64))]
pub struct Step(pub [u8; 64]);

impl Step {
    /// Levels that are nothing in particular.
    pub const ZERO: Self = Self([0; 64]);
}

/// Where the level of a row and column is: the step, and its byte.
#[inline(always)]
fn place(depth: usize, row: usize, column: usize) -> (usize, usize) {
    let at = (column / depth * ROWS + row) * depth + column % depth;
    (at / size_of::<Step>(), at % size_of::<Step>())
}

/// Sets the levels of a row.
#[inline(always)]
fn set(depth: usize, steps: &mut [Step], row: usize, levels: &[i8]) {
    for (column, &level) in levels.iter().enumerate() {
        let (step, byte) = place(depth, row, column);
        steps[step].0[byte] = level as u8 ^ 128;
    }
}

/// The levels of 16 rows and some columns, and what they are multiplied by. Columns after the last one to a whole group may
/// have any level: inputs are zero there.
#[derive(Debug, Clone)]
pub struct LevelPanel {
    /// `[columns / 4]`.
    pub levels: Vec<Step>,
    /// Whole groups of columns that are there.
    pub groups: usize,
    /// Scales of groups, 16 rows each: one for each group or for each half of one; or none.
    pub scales: Vec<[f32; ROWS]>,
    /// As many minima as scales, or none.
    pub minima: Vec<[f32; ROWS]>,
    /// Scales of whole rows.
    pub row_scales: [f32; ROWS],
}

/// How many scales a group of columns has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sides {
    /// None: only whole rows have.
    Rows,
    /// One.
    Groups,
    /// One for each half.
    Halves,
}

impl LevelPanel {
    /// A panel without columns.
    pub fn new() -> Self {
        let (levels, side) = (vec![Step::ZERO; COLS / 4], || Vec::with_capacity(COLS / HALF));
        Self { levels, groups: 0, scales: side(), minima: side(), row_scales: [0.0; ROWS] }
    }

    /// How many scales a group has.
    pub(super) fn sides(&self) -> Sides {
        match self.scales.len() {
            0 => Sides::Rows,
            n if n == self.groups => Sides::Groups,
            _ => Sides::Halves,
        }
    }

    /// Makes sure that panel, inputs and outputs belong together.
    ///
    /// # Panics
    /// When they do not.
    pub(super) fn check(&self, x: &BatchBlock, out: &[[f32; ROWS]]) {
        let (width, groups) = (out.len(), self.groups);
        assert!(groups * GROUP <= COLS && self.levels.len() == COLS / 4);
        assert!(x.values.len() == width * groups * GROUP && x.scales.len() == width * groups);
        assert!(x.sums.len() == 2 * width * groups);
        assert!([0, groups, 2 * groups].contains(&self.scales.len()));
        assert!(self.minima.is_empty() || self.minima.len() == 2 * groups && self.scales.len() == 2 * groups);
    }
}

impl Default for LevelPanel {
    fn default() -> Self {
        Self::new()
    }
}

/// An instance of [`spread_unit`].
pub type SpreadUnit = fn(usize, &[i8; 16], [&[u8]; ROWS], &mut [Step; UNIT / 4]);

/// The kernels of an instruction set that multiplies bytes faster than floats.
#[derive(Debug, Clone, Copy)]
pub struct PanelKernels {
    /// Columns that an instruction multiplies, 4 or 8: those of a row, and of an input, lie side by side.
    pub depth: usize,
    /// The levels of tiles of a trellis code: see [`spread_tiles`].
    pub spread_tiles: fn(usize, &Codebook, &[u8], &mut [Step]),
    /// The levels of units: see [`spread_unit`].
    pub spread_unit: SpreadUnit,
    /// Products of a panel with a block of 4, 8 or 12 inputs: see [`multiply`].
    pub multiply: fn(&LevelPanel, BatchBlock, &mut [[f32; ROWS]]),
}

/// The levels of a run of tiles of `bits` bits a weight, in a panel's order: the portable instance.
///
/// # Panics
/// When `out` is not as long as the tiles, four steps for each.
pub fn spread_tiles(depth: usize, bits: usize, codebook: &Codebook, codes: &[u8], out: &mut [Step]) {
    let (tiles, panels) = (codes.chunks_exact(32 * bits), out.as_chunks_mut::<{ TILE / 4 }>().0);
    assert!(tiles.len() == panels.len());
    for (tile, panel) in tiles.zip(panels) {
        let levels = trellis::windows(tile, bits).map(|window| codebook.level(window));
        for (row, levels) in levels.as_chunks::<TILE>().0.iter().enumerate() {
            set(depth, panel, row, levels);
        }
    }
}

/// The levels of a unit of each of 16 rows, in a panel's order: the portable instance.
///
/// A code has 2, 3 or 4 bits; or 8, and then it is the level.
pub fn spread_unit(
    depth: usize,
    bits: usize,
    table: &[i8; 16],
    units: [&[u8]; ROWS],
    out: &mut [Step; UNIT / 4],
) {
    for (row, unit) in units.into_iter().enumerate() {
        set(depth, out, row, &super::units::levels(bits, table, unit));
    }
}

/// Adds the products of a panel with a block of inputs to `out`, one of 16 rows for each input: the definition.
///
/// # Panics
/// When the lengths do not belong together.
pub fn multiply(depth: usize, panel: &LevelPanel, x: BatchBlock, out: &mut [[f32; ROWS]]) {
    panel.check(&x, out);
    let width = out.len();
    for (i, out) in out.iter_mut().enumerate() {
        for (row, out) in out.iter_mut().enumerate() {
            let mut sum = 0.0;
            for half in 0..2 * panel.groups {
                let products = (half * HALF..(half + 1) * HALF).map(|c| {
                    let (step, byte) = place(depth, row, c);
                    let level = i32::from(panel.levels[step].0[byte]) - OFFSET;
                    level * i32::from(x.values[(c / depth * width + i) * depth + c % depth])
                });
                let scale = match panel.sides() {
                    Sides::Rows => 1.0,
                    Sides::Groups => panel.scales[half / 2][row],
                    Sides::Halves => panel.scales[half][row],
                };
                let minimum = panel.minima.get(half).map_or(0.0, |minima| minima[row]);
                let products =
                    scale * products.sum::<i32>() as f32 + minimum * x.sums[half * width + i] as f32;
                sum += x.scales[half / 2 * width + i] * products;
            }
            *out += panel.row_scales[row] * sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{arch, quantized_batch::QuantizedBatch};
    use proptest::prelude::*;

    fn instances() -> impl Iterator<Item = (&'static str, PanelKernels)> {
        arch::available().into_iter().filter_map(|kernels| Some((kernels.isa, kernels.panels?)))
    }

    proptest! {
        #[test]
        fn levels_are_spread_as_defined(
            low: [i8; 16], high: [i8; 16], codes in prop::collection::vec(any::<u8>(), 16 * 64 + 7 * 160),
            tiles in 0..7usize, skip in 0..9usize,
        ) {
            for (isa, kernels) in instances() {
                for bits in 2..6 {
                    let codebook = &Codebook::any(bits, low, high);
                    let codes = &codes[skip..][..tiles * 32 * bits];
                    let (mut found, mut expected) = (vec![Step([1; 64]); tiles * 4], vec![Step([2; 64]); tiles * 4]);
                    (kernels.spread_tiles)(bits, codebook, codes, &mut found);
                    spread_tiles(kernels.depth, bits, codebook, codes, &mut expected);
                    prop_assert_eq!(found, expected, "{} {}", isa, bits);
                }
                for bits in [2, 3, 4, 8] {
                    let units = std::array::from_fn(|row| &codes[row * 8 * bits + skip..][..8 * bits]);
                    let (mut found, mut expected) = ([Step([1; 64]); UNIT / 4], [Step([2; 64]); UNIT / 4]);
                    (kernels.spread_unit)(bits, &low, units, &mut found);
                    spread_unit(kernels.depth, bits, &low, units, &mut expected);
                    prop_assert_eq!(found, expected, "{} {}", isa, bits);
                }
            }
        }

        #[test]
        fn every_instance_multiplies_as_defined(
            batch in 1..13usize, groups in 1..17usize, sides in 0..4usize, seed: u64,
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as u32
            };
            let mut float = || next() as f32 / (1 << 23) as f32 - 1.0;
            let x: Vec<f32> = (0..batch * groups * GROUP).map(|_| float()).collect();
            let mut panel = LevelPanel { groups, row_scales: std::array::from_fn(|_| float()), ..LevelPanel::new() };
            panel.levels.fill_with(|| Step(std::array::from_fn(|_| (128.0 * float() + 128.0) as u8)));
            let count = [0, groups, 2 * groups, 2 * groups][sides];
            panel.scales.resize_with(count, || std::array::from_fn(|_| float()));
            panel.minima.resize_with(if sides == 3 { count } else { 0 }, || std::array::from_fn(|_| float()));
            let before: Vec<[f32; ROWS]> = (0..QuantizedBatch::new(&x, groups * GROUP, 4).width()).map(|_| std::array::from_fn(|_| float())).collect();
            for (isa, kernels) in instances() {
                let x = QuantizedBatch::new(&x, groups * GROUP, kernels.depth);
                let mut expected = before.clone();
                multiply(kernels.depth, &panel, x.block(0, 0..groups), &mut expected);
                let mut found = before.clone();
                (kernels.multiply)(&panel, x.block(0, 0..groups), &mut found);
                for (found, expected) in found.as_flattened().iter().zip(expected.as_flattened()) {
                    prop_assert!((found - expected).abs() < 2e-3, "{isa}: {found} {expected}");
                }
            }
        }
    }
}
