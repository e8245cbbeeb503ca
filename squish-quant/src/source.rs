//! The tensors of the original checkpoint, read as matrices of checked weights.

use crate::{Error, Result, encode::LARGEST, matrix::first_unfit};
use rayon::prelude::*;
use squish_kernels::Packed;
use squish_models::{
    Checkpoint,
    checkpoint::{Entry, Shard},
};

/// A tensor of the original checkpoint.
pub struct Source<'a> {
    /// Its file.
    pub shard: &'a Shard,
    /// Where it lies there.
    pub entry: &'a Entry,
    /// Its name.
    pub name: &'a str,
}

impl<'a> Source<'a> {
    /// The tensor of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(checkpoint: &'a Checkpoint, name: &'a str) -> Result<Self> {
        let (shard, entry) = checkpoint.entry(name)?;
        Ok(Self { shard, entry, name })
    }

    /// The tensor as an unquantised matrix; one row where it has another number of dimensions than two.
    pub fn matrix(&self) -> Result<Packed> {
        let scheme = self.shard.float_scheme(self.name, self.entry)?;
        let (rows, cols) = match self.entry.shape[..] {
            [rows, cols] => (rows, cols),
            _ => (1, self.entry.shape.iter().product()),
        };
        Packed::new(scheme, rows, cols, 1, vec![self.shard.bytes(self.entry)]).map_err(|e| self.error(e))
    }

    /// An error of the kernels, with the tensor's name.
    pub fn error(&self, source: squish_kernels::Error) -> Error {
        Error::Matrix { name: self.name.into(), source }
    }

    /// Refuses weights that are not finite or too large, naming the first. `row` is that of the first weight.
    pub fn check(&self, weights: &[f32], row: usize, cols: usize) -> Result<()> {
        let Some(index) = first_unfit(weights) else { return Ok(()) };
        let (path, name) = (self.shard.path().into(), self.name.into());
        let (row, col, value) = (row + index / cols, index % cols, weights[index]);
        Err(if value.is_finite() {
            Error::TooLarge { path, name, row, col, value, limit: LARGEST }
        } else {
            Error::NotFinite { path, name, row, col, value }
        })
    }

    /// The error for rows of which some scale was infinite: a rotation can gather a row of large weights into
    /// one larger than [`LARGEST`]. It names the row's largest weight. `residual` is what the codes miss.
    pub fn overflow(&self, residual: &[f32], row: usize, cols: usize) -> Result<Error> {
        let row = row + residual.iter().position(|v| !v.is_finite()).unwrap_or(0) / cols;
        let mut weights = vec![0.0; cols];
        self.matrix()?.decode_row(row, &mut weights);
        let col = (0..cols).max_by(|&a, &b| weights[a].abs().total_cmp(&weights[b].abs())).unwrap_or(0);
        let (path, name, value) = (self.shard.path().into(), self.name.into(), weights[col]);
        // What rows of any length stay representable with.
        let limit = LARGEST / (cols as f32).sqrt();
        Ok(Error::TooLarge { path, name, row, col, value, limit })
    }

    /// Consecutive rows of the matrix, checked.
    ///
    /// # Errors
    /// When a weight is not finite, or too large.
    pub fn rows(&self, matrix: &Packed, first: usize, count: usize) -> Result<Vec<f32>> {
        let cols = matrix.cols();
        let mut weights = vec![0.0; count * cols];
        weights.par_chunks_exact_mut(cols).enumerate().for_each(|(r, out)| matrix.decode_row(first + r, out));
        self.check(&weights, first, cols)?;
        Ok(weights)
    }

    /// Lets go of the memory of the whole tensor.
    pub fn release_all(&self) {
        self.shard.release(self.entry.range.clone());
    }

    /// Lets go of the memory of some rows of the file.
    pub fn release(&self, matrix: &Packed, first: usize, count: usize) {
        let row_bytes = matrix.bytes() / matrix.rows();
        let start = self.entry.range.start + first * row_bytes;
        self.shard.release(start..start + count * row_bytes);
    }
}
