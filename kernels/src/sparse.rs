//! A sparse correction: single entries of a matrix that are added to it.
//!
//! Compressed sparse rows: `offsets` U32 `[rows + 1]`, `columns` U16 `[entries]` ascending within a
//! row, `values` F16 `[entries]`: 32 bits an entry.

use crate::{Error, Result, team};
use bytes::Bytes;
use half::f16;
use rayon::prelude::*;

/// A sparse matrix `[rows, cols]` with at most 65,536 columns.
#[derive(Debug, Clone)]
pub struct Sparse {
    rows: usize,
    cols: usize,
    offsets: Bytes,
    columns: Bytes,
    values: Bytes,
    #[cfg(feature = "metal")]
    residence: crate::metal::memory::Residence,
}

impl Sparse {
    /// A sparse matrix over its stored parts, every index checked.
    ///
    /// # Errors
    /// [`Error::Sparse`] when offsets decrease or do not cover the entries, or a column is out of
    /// range or order.
    pub fn new(rows: usize, cols: usize, offsets: Bytes, columns: Bytes, values: Bytes) -> Result<Self> {
        let refuse = |what| Err(Error::Sparse(what));
        let entries = columns.len() / 2;
        if cols > 1 << 16 {
            return refuse("more than 65536 columns");
        }
        if rows.checked_add(1).and_then(|n| n.checked_mul(4)) != Some(offsets.len()) {
            return refuse("row offsets have the wrong length");
        }
        if columns.len() != 2 * entries || values.len() != 2 * entries {
            return refuse("columns and values differ in length");
        }
        let sparse = Self {
            rows,
            cols,
            offsets,
            columns,
            values,
            #[cfg(feature = "metal")]
            residence: Default::default(),
        };
        if sparse.offset(0) != 0 || sparse.offset(rows) != entries {
            return refuse("row offsets do not cover the entries");
        }
        if (0..rows).any(|row| sparse.offset(row) > sparse.offset(row + 1)) {
            return refuse("row offsets decrease");
        }
        for row in 0..rows {
            let mut next = 0;
            for (col, _) in sparse.row(row) {
                if col >= cols || col < next {
                    return refuse("a column is out of range or out of order");
                }
                next = col + 1;
            }
        }
        Ok(sparse)
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Stored bytes.
    pub fn bytes(&self) -> usize {
        self.offsets.len() + self.columns.len() + self.values.len()
    }

    /// Offsets, columns and values as a device sees them.
    #[cfg(feature = "metal")]
    pub(crate) fn resident(
        &self,
        device: &candle_core::MetalDevice,
    ) -> candle_core::Result<std::sync::Arc<crate::metal::memory::Resident>> {
        self.residence.on(device, &[&self.offsets, &self.columns, &self.values])
    }

    /// The entries `(column, value)` of a row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let range = 2 * self.offset(row)..2 * self.offset(row + 1);
        let columns = self.columns[range.clone()].as_chunks::<2>().0.iter();
        let values = self.values[range].as_chunks::<2>().0.iter();
        columns.zip(values).map(|(&c, &v)| (u16::from_le_bytes(c).into(), f16::from_le_bytes(v).to_f32()))
    }

    /// `y[b, r] += sum over the row's entries of value * x[b, column]`, for `x [batch, cols]`, `y [batch, rows]`.
    pub fn multiply_add(&self, x: &[f32], y: &mut [f32]) {
        /// Rows of one piece of work: some ten thousand entries of a usual matrix.
        const ROWS: usize = 256;
        let multiply = |x: &[f32], i: usize, y: &mut [f32]| {
            for (row, y) in (i * ROWS..).zip(y) {
                *y += self.row(row).map(|(col, value)| value * x[col]).sum::<f32>();
            }
        };
        if x.len() == self.cols {
            return team::for_each_chunk(&mut y[..self.rows], ROWS, |i, y| multiply(x, i, y));
        }
        x.par_chunks_exact(self.cols).zip(y.par_chunks_exact_mut(self.rows)).for_each(|(x, y)| {
            y.par_chunks_mut(ROWS).enumerate().for_each(|(i, y)| multiply(x, i, y));
        });
    }

    fn offset(&self, row: usize) -> usize {
        let b = &self.offsets[4 * row..][..4];
        u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(cols: usize, offsets: &[u32], columns: &[u16], values: &[f32]) -> Result<Sparse> {
        let bytes = |v: Vec<u8>| Bytes::from(v);
        Sparse::new(
            2,
            cols,
            bytes(offsets.iter().flat_map(|v| v.to_le_bytes()).collect()),
            bytes(columns.iter().flat_map(|v| v.to_le_bytes()).collect()),
            bytes(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
        )
    }

    #[test]
    fn multiplies() {
        let sparse = build(3, &[0, 2, 3], &[0, 2, 1], &[1.0, 2.0, -4.0]).unwrap();
        let mut y = [10.0; 4];
        sparse.multiply_add(&[1.0, 2.0, 3.0, 0.5, 0.25, 0.0], &mut y);
        assert_eq!(y, [17.0, 2.0, 10.5, 9.0]);
    }

    #[test]
    fn malformed_parts_are_refused() {
        for (cols, offsets, columns, values) in [
            (3, &[0, 2][..], &[0, 2, 1][..], &[1.0; 3][..]),
            (3, &[0, 2, 4], &[0, 2, 1], &[1.0; 3]),
            (3, &[1, 2, 3], &[0, 2, 1], &[1.0; 3]),
            (3, &[0, 4_000_000_000, 3], &[0, 2, 1], &[1.0; 3]),
            (3, &[0, 2, 3], &[0, 3, 1], &[1.0; 3]),
            (3, &[0, 2, 3], &[1, 1, 1], &[1.0; 3]),
            (3, &[0, 2, 3], &[0, 2, 1], &[1.0; 2]),
            (1 << 17, &[0, 2, 3], &[0, 2, 1], &[1.0; 3]),
        ] {
            assert!(matches!(build(cols, offsets, columns, values), Err(Error::Sparse(_))));
        }
    }
}
