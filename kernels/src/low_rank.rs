//! A low-rank correction, added to a packed matrix.

use crate::{Error, Packed, Result};

/// The correction `left^T right`, for `left [rank, rows]` and `right [rank, cols]`, each packed in some scheme.
///
/// Both factors lie with the long side along their rows, so that groups of scales run along it.
#[derive(Debug, Clone)]
pub struct LowRank {
    left: Packed,
    right: Packed,
}

impl LowRank {
    /// The product of two packed factors.
    ///
    /// # Errors
    /// [`Error::CorrectionShape`] when their ranks differ.
    pub fn new(left: Packed, right: Packed) -> Result<Self> {
        if left.rows() != right.rows() {
            let (found, expected) = ([left.rows(), left.cols()], [right.rows(), left.cols()]);
            return Err(Error::CorrectionShape { what: "the left low-rank factor", found, expected });
        }
        Ok(Self { left, right })
    }

    /// `[rank, rows]`.
    pub fn left(&self) -> &Packed {
        &self.left
    }

    /// `[rank, cols]`.
    pub fn right(&self) -> &Packed {
        &self.right
    }

    /// The number of rank-one terms.
    pub fn rank(&self) -> usize {
        self.left.rows()
    }
}
