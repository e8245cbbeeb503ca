//! `tcq2` to `tcq5`: trellis codes of 2, 3, 4 and 5 bits a weight.
//!
//! A weight's level is looked up not by its own `k` bits alone but by a window of twelve, most of which it
//! shares with its neighbours: the codes of a tile form a path through a trellis of `2^(12 - k)` states, and an
//! encoder that searches the paths (Viterbi's algorithm) finds levels that fit better than separate codes of
//! the same size could (M. Marcellin and T. Fischer, "Trellis coded quantization", 1990). With `bits` the code of a tile of
//! 16 x 16 weights, 256 k bits that wrap around ("tail-biting"), weight `i` of the tile, row by row, is
//!
//! ```text
//! weight = scale[row] * level[bits k i .. k i + 12] / 32
//! ```
//!
//! So each next window drops the lowest `k` bits of the last one, and takes in `k` new ones at the top. A level is
//! made of two look-ups, by four bits and by the four that come a byte later ([`Codebook`]): both stay in vector registers.
//!
//! Parts: `codes` U8 `[ceil(rows / 16), cols / 16 * 32 k]`, the tiles of 16 rows from left to right (rows past the last one are
//! padding), `scales` F16 `[rows, 1]`. `cols` is a multiple of 16. At 4096 columns 16/4096 bits more than `k`.

mod codebook;
mod tables;
mod tile;

use super::{Integers, PANEL_COLS, Part, PartType, Scheme};
use crate::{
    Packed,
    arch::{self, Tiles},
};
use std::ops::Range;
use tables::{TABLE_2, TABLE_3, TABLE_4, TABLE_5, Table};

pub use codebook::{Codebook, pair};
pub use tile::{pack, window, windows};

/// Rows, and columns, of a tile.
pub const TILE: usize = 16;
/// Weights of a tile.
pub const TILE_WEIGHTS: usize = TILE * TILE;
/// Bits of a window.
pub const WINDOW_BITS: usize = 12;
/// What an integer level is divided by.
pub const LEVEL_UNIT: f32 = 32.0;

/// Two bits a weight: 11.39 dB on a Gaussian.
pub static TCQ2: Trellis = Trellis { name: "tcq2", bits: 2, table: &TABLE_2 };
/// Three bits a weight: 17.08 dB on a Gaussian.
pub static TCQ3: Trellis = Trellis { name: "tcq3", bits: 3, table: &TABLE_3 };
/// Four bits a weight: 22.31 dB on a Gaussian.
pub static TCQ4: Trellis = Trellis { name: "tcq4", bits: 4, table: &TABLE_4 };
/// Five bits a weight: 28.23 dB on a Gaussian.
pub static TCQ5: Trellis = Trellis { name: "tcq5", bits: 5, table: &TABLE_5 };

/// A trellis code with a trained table and one f16 scale a row.
#[derive(Debug)]
pub struct Trellis {
    name: &'static str,
    bits: usize,
    table: &'static Table,
}

impl Trellis {
    /// Bits of a weight, `k`: 2, 3, 4 or 5.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// The level of each window, in units of the row's scale over [`LEVEL_UNIT`].
    pub fn codebook(&self) -> &'static Codebook {
        &self.table.codebook
    }

    /// Bytes of a tile's code.
    pub fn tile_bytes(&self) -> usize {
        TILE_WEIGHTS / 8 * self.bits
    }

    /// The scale that the table was trained for, for a Gaussian of standard deviation 1.
    pub fn gaussian_scale(&self) -> f32 {
        self.table.step * LEVEL_UNIT
    }
}

impl Scheme for Trellis {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> u32 {
        3
    }

    fn default_group(&self, cols: usize) -> usize {
        cols
    }

    fn wants_rotation(&self) -> bool {
        true
    }

    fn strip(&self) -> usize {
        TILE
    }

    fn refuse(&self, _rows: usize, cols: usize, group: usize) -> Option<&'static str> {
        if !cols.is_multiple_of(TILE) {
            Some("columns must be a multiple of 16")
        } else if group != cols {
            Some("the group is always the whole row")
        } else {
            None
        }
    }

    fn parts(&self, rows: usize, cols: usize, _group: usize) -> Vec<Part> {
        let codes = [rows.div_ceil(TILE), cols / TILE * self.tile_bytes()];
        vec![
            Part { suffix: "codes", dtype: PartType::U8, shape: codes },
            Part { suffix: "scales", dtype: PartType::F16, shape: [rows, 1] },
        ]
    }

    fn weight(&self, m: &Packed, row: usize, col: usize) -> f32 {
        let tile = &m.row(0, row / TILE)[col / TILE * self.tile_bytes()..][..self.tile_bytes()];
        let window = window(tile, self.bits, row % TILE * TILE + col % TILE);
        m.f16(1, row, 0) * (f32::from(self.codebook().level(window)) / LEVEL_UNIT)
    }

    fn integers(&self) -> Option<Integers<'_>> {
        Some(Integers::Tiles { bits: self.bits, codebook: self.codebook(), level_unit: LEVEL_UNIT })
    }

    fn decode_panel(&self, m: &Packed, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        // A forced instruction set that is absent is an error of the multiplication; decoding then takes its time.
        let decode = arch::kernels().map_or(arch::scalar::KERNELS.tiles, |kernels| kernels.tiles);
        let tiles = cols.start / TILE * self.tile_bytes()..cols.end / TILE * self.tile_bytes();
        let mut row = rows.start;
        while row < rows.end {
            let (strip, first) = (row / TILE, row % TILE);
            let end = rows.end.min((strip + 1) * TILE);
            // scale * level is exact in f32 (11 + 7 bits): the same as the reference, in any order.
            let mut steps = [0.0; TILE];
            for (step, row) in steps.iter_mut().zip(row..end) {
                *step = m.f16(1, row, 0) / LEVEL_UNIT;
            }
            let (codes, steps) = (&m.row(0, strip)[tiles.clone()], &steps[..end - row]);
            let run =
                Tiles { bits: self.bits, codebook: self.codebook(), codes, first, steps, stride: PANEL_COLS };
            decode(run, &mut out[(row - rows.start) * PANEL_COLS..]);
            row = end;
        }
    }
}
