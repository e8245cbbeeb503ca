//! Encoders: the choice of scales and codes, one file per family of schemes.
//!
//! A matrix is encoded in strips of rows, from left to right in blocks of columns, so that what one block
//! misses can be made up for by the next ([`crate::feedback`]). To add an encoder: write its file, list
//! it in [`encoder`].

mod float;
mod gaussian;
mod int4;
mod int8;
mod scalar;
mod trellis;

use squish_kernels::scheme::{self, Scheme};

/// Chooses the codes of a strip of rows.
pub trait Encoder: Sync {
    /// Rows of a strip, a power of two and a multiple of [`Scheme::strip`]; the last strip of a matrix may have fewer.
    fn strip(&self) -> usize {
        1
    }

    /// Columns that are coded together, for matrices with groups of `group`. The last block may be narrower.
    fn block(&self, group: usize) -> usize;

    /// Writes what belongs to whole rows. `rows [n, cols]` are the weights; `factor` multiplies the scales
    /// that suit them, where the scheme has [`Encoder::scale_factors`].
    fn begin(&self, rows: &[f32], cols: usize, factor: f32, parts: &mut [&mut [u8]]) {
        let _ = (rows, cols, factor, parts);
    }

    /// Factors for [`Encoder::begin`] worth trying where an error metric is known; the first is the default.
    fn scale_factors(&self) -> &'static [f32] {
        &[1.0]
    }

    /// Chooses the codes of one block, and leaves in it what they decode to.
    ///
    /// All values are finite and below [`LARGEST`] in magnitude. `parts` holds the strip's bytes of each part, in
    /// the scheme's order.
    fn encode(&self, block: Block, group: usize, parts: &mut [&mut [u8]]);
}

/// Some columns of a strip, on their way to codes.
#[derive(Debug)]
pub struct Block<'a> {
    /// The first column.
    pub first: usize,
    /// Number of columns.
    pub width: usize,
    /// `[rows, width]`: targets, then what was decoded.
    pub values: &'a mut [f32],
    /// What an error costs; `None` where all errors cost the same.
    pub metric: Option<Metric<'a>>,
}

/// The cost of an error `e [width]` of a block: `|e V|^2` for an upper triangular `V [width, width]`.
#[derive(Debug, Clone, Copy)]
pub struct Metric<'a> {
    /// `V`'s columns one after the other, `stride` apart: entries `0..=c` of column `c` count.
    pub columns: &'a [f32],
    /// Distance between columns.
    pub stride: usize,
}

impl Metric<'_> {
    /// Entry `(row, col)`, for `row <= col`.
    pub fn at(&self, row: usize, col: usize) -> f32 {
        self.columns[col * self.stride + row]
    }

    /// Entries `0..=col` of a column.
    pub fn column(&self, col: usize) -> &[f32] {
        &self.columns[col * self.stride..][..=col]
    }
}

/// The largest weight that f16 scales can represent in every scheme.
pub const LARGEST: f32 = 16384.0;

/// The encoder of a scheme; `None` where there is none (a scheme that can only be read).
pub fn encoder(scheme: &dyn Scheme) -> Option<&'static dyn Encoder> {
    match scheme.name() {
        "nf2" => Some(&scheme::NF2),
        "int3" => Some(&scheme::INT3),
        "int4r" => Some(&scheme::INT4R),
        "int4" => Some(&scheme::INT4),
        "int8" => Some(&scheme::INT8),
        "tcq2" => Some(&scheme::TCQ2),
        "tcq3" => Some(&scheme::TCQ3),
        "tcq4" => Some(&scheme::TCQ4),
        "tcq5" => Some(&scheme::TCQ5),
        "bf16" => Some(&scheme::BF16),
        "f16" => Some(&scheme::F16),
        "f32" => Some(&scheme::F32),
        _ => None,
    }
}

/// Writes the `index`-th f16 of a part's row and returns the value that was stored.
fn put_f16(part: &mut [u8], index: usize, value: f32) -> f32 {
    let stored = half::f16::from_f32(value);
    part[2 * index..2 * index + 2].copy_from_slice(&stored.to_le_bytes());
    stored.to_f32()
}
