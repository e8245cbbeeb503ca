//! How a matrix consists of integers: what products with inputs in eight bits need to know of a scheme.

use super::{PANEL_ROWS, TILE, UNIT, trellis::Codebook};
use crate::{
    Packed, QuantizedInput,
    arch::{
        self, Kernels, LevelPanel, PanelKernels, TileRun, UnitRows,
        level_panel::{COLS, ROWS},
    },
    quantized_input::{GROUP, HALF},
};
use half::{f16, slice::HalfFloatSliceExt};
use std::ops::Range;

/// From a strip's scales to those that are fetched: of eight strips on. The processor does not follow so slow a stream by itself.
const SCALES_AHEAD: usize = 8 * 2 * ROWS;

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
                let (codes, scales) = (m.row(0, first / TILE), m.some_rows(1, rows));
                arch::fetch(scales, SCALES_AHEAD);
                let products = (kernels.tiles_dot)(TileRun { bits, codebook, codes, x });
                let scales: [f32; ROWS] = floats(scales);
                for (out, (product, scale)) in out.iter_mut().zip(products.into_iter().zip(scales)) {
                    *out = product * (scale / level_unit);
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
    ///
    /// # Panics
    /// When those groups are more than a panel's [`COLS`].
    pub fn panel(
        &self,
        kernels: &PanelKernels,
        m: &Packed,
        first: usize,
        groups: Range<usize>,
        out: &mut LevelPanel,
    ) {
        assert!(groups.len() * GROUP <= COLS, "a panel has {COLS} columns");
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
                let rows = std::array::from_fn(row);
                sides(m, 1, rows, cols.clone(), 1.0 / level_unit, &mut out.scales);
                if let Some(part) = minima {
                    sides(m, part, rows, cols, 1.0, &mut out.minima);
                }
                out.row_scales = [1.0; ROWS];
            }
        }
    }
}

/// The f16 numbers of a part, times `factor`: for each group of these columns, or each [`GROUP`] of them in a wider one, those of some rows.
fn sides(
    m: &Packed,
    part: usize,
    rows: [usize; ROWS],
    cols: Range<usize>,
    factor: f32,
    out: &mut Vec<[f32; ROWS]>,
) {
    let (group, step) = (m.group(), m.group().min(GROUP));
    let groups = cols.start / group..cols.end.div_ceil(group);
    out.resize(cols.len().div_ceil(step), [0.0; ROWS]);
    for (r, row) in rows.into_iter().enumerate() {
        let floats: [f32; COLS / HALF] = floats(&m.row(part, row)[2 * groups.start..2 * groups.end]);
        let repeated = floats.iter().flat_map(|float| std::iter::repeat_n(float, group / step));
        let from_first = repeated.skip(cols.start % group / step);
        out.iter_mut().zip(from_first).for_each(|(out, float)| out[r] = float * factor);
    }
}

/// At most `N` f16 numbers from their bytes, and zeros after them.
#[inline]
fn floats<const N: usize>(bytes: &[u8]) -> [f32; N] {
    let (bytes, mut stored, mut floats) = (bytes.as_chunks().0, [f16::ZERO; N], [0.0; N]);
    stored.iter_mut().zip(bytes).for_each(|(stored, &bytes)| *stored = f16::from_le_bytes(bytes));
    stored[..bytes.len()].convert_to_f32_slice(&mut floats[..bytes.len()]);
    floats
}
