//! A tensor's way from the source to its parts, some rows at a time, with progress.

use crate::{
    Error, Progress, Result,
    matrix::{Corrections, Encoded, MatrixSpec, Rows},
    output::WeightsFile,
    source::Source,
};

/// Weights that are worked on at once: bounds the memory that a tensor of any size needs.
const CHUNK_WEIGHTS: usize = 1 << 22;

/// The work on the tensors of a checkpoint.
pub struct Job<'a> {
    progress: &'a dyn Progress,
    /// Weights that are done.
    done: usize,
    total: usize,
}

impl<'a> Job<'a> {
    /// Work on so many weights in total.
    pub fn new(progress: &'a dyn Progress, total: usize) -> Self {
        Self { progress, done: 0, total }
    }

    /// Tells what is being worked on.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the caller wants to stop.
    pub fn at(&self, name: &str) -> Result<()> {
        self.progress.at(self.done, self.total, name);
        if self.progress.interrupted() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// So many weights more are done.
    pub fn advance(&mut self, weights: usize) {
        self.done += weights;
    }

    /// Hands the checked weights of a tensor to `visit`, `rows_at_once` rows at a time: `visit(first row, weights)`.
    fn for_each_chunk(
        &mut self,
        source: &Source,
        rows_at_once: usize,
        mut visit: impl FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let matrix = source.matrix()?;
        let (rows, cols) = (matrix.rows(), matrix.cols());
        for first in (0..rows).step_by(rows_at_once) {
            self.at(source.name)?;
            let count = rows_at_once.min(rows - first);
            visit(first, &mut source.rows(&matrix, first, count)?)?;
            source.release(&matrix, first, count);
            self.done += count * cols;
        }
        self.progress.at(self.done, self.total, source.name);
        Ok(())
    }

    /// Copies a tensor's bytes, checked.
    pub fn copy(&mut self, source: &Source, file: &mut WeightsFile) -> Result<()> {
        let matrix = source.matrix()?;
        let row_bytes = matrix.bytes() / matrix.rows();
        let rows_at_once = (CHUNK_WEIGHTS / matrix.cols()).max(1);
        self.for_each_chunk(source, rows_at_once, |first, weights| {
            let rows = first..first + weights.len() / matrix.cols();
            rows.into_iter().try_for_each(|r| file.write(source.name, r * row_bytes, matrix.row(0, r)))
        })
    }

    /// Encodes a matrix by rounding. Memory holds its parts, and some rows of the source (all of them where a
    /// correction is asked for).
    pub fn encode(&mut self, source: &Source, spec: &MatrixSpec) -> Result<Encoded> {
        let rows_at_once = if spec.has_corrections() {
            spec.rows
        } else {
            (CHUNK_WEIGHTS / spec.cols).max(1).next_multiple_of(spec.scheme.strip()).min(spec.rows)
        };
        let mut all = Rows { parts: Vec::new(), signal: 0.0, noise: 0.0, cost: 0.0 };
        let mut corrections = Corrections::default();
        self.for_each_chunk(source, rows_at_once, |first, weights| {
            let rows = spec.encode_rows(weights).map_err(|e| source.error(e))?;
            if !rows.noise.is_finite() {
                return Err(source.overflow(weights, first, spec.cols)?);
            }
            // Chunks are of whole strips: the parts of a matrix are those of its chunks, one after the other.
            all.append(rows);
            if spec.has_corrections() {
                corrections = spec.encode_corrections(weights, None).map_err(|e| source.error(e))?;
            }
            Ok(())
        })?;
        spec.encoded(all, corrections).map_err(|e| source.error(e))
    }
}
