//! Weight schemes: the ways of storing a matrix.
//!
//! A scheme is one file here: it says which parts a matrix of a shape is stored in
//! ([`Scheme::parts`]), gives the value of any one weight ([`Scheme::weight`], the scalar reference),
//! and decodes panels of weights quickly ([`Scheme::decode_panel`]). Choosing the codes is the
//! encoder's work and lives in `squish-quant`. To add a scheme: write its file, list it in [`ALL`].
//!
//! Scales are stored as f16 in units of the weights' own magnitude (an integer level is divided by a
//! power of two), so that f16's exponent range suffices for weights of any sane size.

mod float;
mod gaussian;
mod int4;
mod int8;
mod integers;
pub mod trellis;
mod units;

use crate::{Error, Packed, Result};
use std::ops::Range;

pub use float::{BF16, Element, F16, F32, Float};
pub use gaussian::{Gaussian, INT3, INT4R, NF2};
pub use int4::{INT4, Int4};
pub use int8::{INT8, Int8};
pub use integers::Integers;
pub use trellis::{LEVEL_UNIT, TCQ2, TCQ3, TCQ4, TCQ5, TILE, TILE_WEIGHTS, Trellis};
pub use units::{CodeUnit, UNIT, Unit2, Unit3, Unit4};

/// Rows of a panel: the most rows that are decoded together.
pub const PANEL_ROWS: usize = 16;
/// Columns of a panel, and the distance between its rows in the decode buffer.
///
/// 16 x 256 f32 values are 16 KiB: a panel stays in the first-level cache while a batch of inputs
/// streams past it.
pub const PANEL_COLS: usize = 256;

/// Every scheme of this build, in order of bits.
pub static ALL: &[&dyn Scheme] =
    &[&TCQ2, &NF2, &TCQ3, &INT3, &TCQ4, &INT4R, &INT4, &TCQ5, &INT8, &BF16, &F16, &F32];

/// Names of all schemes.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|s| s.name()).collect()
}

/// The scheme of this name.
///
/// # Errors
/// [`Error::UnknownScheme`], which lists the known ones.
pub fn by_name(name: &str) -> Result<&'static dyn Scheme> {
    ALL.iter().copied().find(|s| s.name() == name).ok_or_else(|| Error::UnknownScheme(name.into()))
}

/// Element type of a stored part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartType {
    /// Bytes.
    U8,
    /// Signed bytes.
    I8,
    /// IEEE half precision, little endian.
    F16,
    /// bfloat16, little endian.
    BF16,
    /// IEEE single precision, little endian.
    F32,
}

impl PartType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
        }
    }
}

/// One stored part of a matrix: a two-dimensional tensor under the matrix's name plus `suffix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What is appended to the matrix's name after a dot; empty for an unquantised matrix.
    pub suffix: &'static str,
    /// Element type.
    pub dtype: PartType,
    /// `[rows, elements per row]`, where a row of a part may hold several of the matrix: see [`Scheme::strip`].
    pub shape: [usize; 2],
}

impl Part {
    /// Bytes of the whole part.
    pub fn bytes(&self) -> usize {
        self.shape[0] * self.row_bytes()
    }

    /// Bytes of one row of the part.
    pub fn row_bytes(&self) -> usize {
        self.shape[1] * self.dtype.size()
    }
}

/// One way of storing a matrix `[rows, cols]`.
pub trait Scheme: Sync + std::fmt::Debug {
    /// The name in files and recipes.
    fn name(&self) -> &'static str;

    /// Version of the layout. A reader refuses any other.
    fn version(&self) -> u32 {
        1
    }

    /// Group size (weights of one row of `cols` that share a scale) where a recipe names none.
    ///
    /// It need not divide `cols`, unless the scheme knows only one group size for a row.
    fn default_group(&self, cols: usize) -> usize;

    /// Whether the levels suit a Gaussian source, so that the input is rotated unless a recipe says otherwise.
    fn wants_rotation(&self) -> bool {
        false
    }

    /// Rows that are encoded together. A run of rows that is encoded on its own starts at a multiple of it, and ends
    /// at one or at the matrix's last row; the bytes of consecutive runs make up each part.
    fn strip(&self) -> usize {
        1
    }

    /// Why a shape cannot be stored, if so. `rows`, `cols` and `group` are at least 1.
    fn refuse(&self, rows: usize, cols: usize, group: usize) -> Option<&'static str>;

    /// The parts of a matrix that [`Scheme::refuse`] accepts.
    fn parts(&self, rows: usize, cols: usize, group: usize) -> Vec<Part>;

    /// The value of one weight: the layout's scalar reference, written to be read.
    fn weight(&self, m: &Packed, row: usize, col: usize) -> f32;

    /// How its matrices consist of integers; `None` where they do not, and products are of floats.
    fn integers(&self) -> Option<Integers<'_>> {
        None
    }

    /// Decodes `rows` x `cols` into `out`, whose rows lie [`PANEL_COLS`] apart.
    ///
    /// `cols.start` is a multiple of [`UNIT`]; there are at most [`PANEL_ROWS`] rows and
    /// [`PANEL_COLS`] columns. Equal to [`Scheme::weight`] to the last bit.
    fn decode_panel(&self, m: &Packed, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]);
}

/// The rule that all schemes with units of 64 codes and a scale per group share.
fn refuse_units(cols: usize, group: usize) -> Option<&'static str> {
    if !cols.is_multiple_of(UNIT) {
        Some("columns must be a multiple of 64")
    } else if !group.is_multiple_of(UNIT) {
        Some("the group must be a multiple of 64")
    } else if !cols.is_multiple_of(group) {
        Some("the group must divide the columns")
    } else {
        None
    }
}
