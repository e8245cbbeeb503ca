//! How a matrix consists of integers: what products with inputs in eight bits need to know of a scheme.

use super::{PANEL_ROWS, TILE, UNIT, trellis::Codebook};
use crate::{
    Packed, QuantizedInput,
    arch::{Kernels, LevelPanel, PanelKernels, TileRun, UnitRows, level_panel::ROWS},
    quantized_input::{GROUP, HALF},
};
use std::ops::Range;

const _: () = assert!(ROWS == PANEL_ROWS && ROWS == TILE && GROUP == UNIT);

/// Levels of eight bits, and where they are.
#[derive(Debug, Clone, Copy)]
pub enum Integers<'a> {
    /// Tiles of a trellis code in part 0, a scale for each row in part 1.
    Tiles {
        /// Bits of a weight.
        bits: usize,
        /// The level of each window.
        codebook: &'a Codebook,
        /// What a stored scale is divided by.
        level_unit: f32,
    },
    /// Units of 64 codes in part 0, a scale for each group in part 1.
    Units {
        /// Bits of a code: 2, 3, 4, or 8 where the codes are the levels.
        bits: usize,
        /// The level of each code below 16.
        table: [i8; 16],
        /// What a stored scale is divided by, a power of two.
        level_unit: f32,
        /// The part with a minimum for each group, if there is one.
        minima: Option<usize>,
    },
}

impl Integers<'_> {
    /// `out[r] = W[first + r] . x` for at most [`PANEL_ROWS`] rows, from a multiple of that on.
    pub fn dot(&self, kernels: &Kernels, m: &Packed, first: usize, x: &QuantizedInput, out: &mut [f32]) {
        let rows = first..first + out.len();
        match *self {
            Self::Tiles { bits, codebook, level_unit } => {
                let codes = m.row(0, first / TILE);
                let products = (kernels.tiles_dot)(TileRun { bits, codebook, codes, x });
                for (row, (out, product)) in rows.zip(out.iter_mut().zip(products)) {
                    *out = product * (m.f16(1, row, 0) / level_unit);
                }
            }
            Self::Units { bits, table, level_unit, minima } => {
                let side = |part| m.some_rows(part, rows.clone());
                let (codes, scales, minima) = (side(0), side(1), minima.map_or(&[][..], side));
                let group = m.group();
                let table = &table;
                (kernels.units_dot)(
                    UnitRows { bits, table, codes, scales, minima, level_unit, group, x },
                    out,
                );
            }
        }
    }

    /// The levels of at most [`PANEL_ROWS`] rows from `first` on, a multiple of that, and of some groups of [`GROUP`] columns. Rows after the
    /// matrix's last one repeat it.
    pub fn panel(
        &self,
        kernels: &PanelKernels,
        m: &Packed,
        first: usize,
        groups: Range<usize>,
        out: &mut LevelPanel,
    ) {
        let row = |r: usize| (first + r).min(m.rows() - 1);
        let cols = groups.start * GROUP..(groups.end * GROUP).min(m.cols());
        out.groups = groups.len();
        out.scales.clear();
        out.minima.clear();
        match *self {
            Self::Tiles { bits, codebook, level_unit } => {
                let tile = 32 * bits;
                let codes = &m.row(0, first / TILE)[cols.start / TILE * tile..cols.end / TILE * tile];
                (kernels.spread_tiles)(bits, codebook, codes, &mut out.levels[..cols.len() / 4]);
                out.row_scales = std::array::from_fn(|r| m.f16(1, row(r), 0) / level_unit);
            }
            Self::Units { bits, table, level_unit, minima } => {
                let units: [_; ROWS] = std::array::from_fn(|r| &m.row(0, row(r))[groups.start * 8 * bits..]);
                for (i, levels) in out.levels.as_chunks_mut().0.iter_mut().take(groups.len()).enumerate() {
                    (kernels.spread_unit)(
                        bits,
                        &table,
                        units.map(|row| &row[i * 8 * bits..][..8 * bits]),
                        levels,
                    );
                }
                let step = m.group().min(GROUP);
                let at =
                    |part: usize, col: usize| std::array::from_fn(|r| m.f16(part, row(r), col / m.group()));
                let starts = || cols.clone().step_by(step);
                out.scales.extend(starts().map(|col| at(1, col).map(|scale: f32| scale / level_unit)));
                out.minima.extend(minima.iter().flat_map(|&part| starts().map(move |col| at(part, col))));
                out.row_scales = [1.0; ROWS];
                debug_assert!(step == GROUP || step == HALF);
            }
        }
    }
}
