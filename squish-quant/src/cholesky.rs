//! The Cholesky factor of a large matrix by all threads, with sums whose order does not depend on them.
//!
//! Right-looking, in blocks of columns. With `A = [A11 .; A21 A22]` and `A11` a block on the diagonal:
//!
//! ```text
//! A11 = L11 L11^T        L21 = A21 L11^-T        A22 <- A22 - L21 L21^T, and on with A22
//! ```
//!
//! Nearly all of the `n^3 / 3` products are in the last step, whose columns are independent of each other.

use faer::{
    Accum, Mat, Par, Side,
    linalg::{
        matmul::{
            matmul,
            triangular::{self, BlockStructure},
        },
        solvers::Llt,
        triangular_solve::solve_lower_triangular_in_place,
    },
};
use rayon::prelude::*;

/// Columns of a block.
const BLOCK: usize = 256;
/// Rows or columns that one thread works on at a time.
const STRIPE: usize = 128;

/// Turns the lower triangle of a symmetric matrix `A` into that of `L`, `A = L L^T`. What lies above is left as it is.
///
/// False, with the matrix spoilt, where `A` is not positive definite.
pub fn factor(a: &mut Mat<f32>) -> bool {
    let mut rest = a.as_mut();
    while rest.ncols() > 0 {
        let block = BLOCK.min(rest.ncols());
        let (mut corner, _, mut below, mut trailing) = rest.split_at_mut(block, block);
        faer::set_global_parallelism(Par::Seq);
        let Ok(llt) = Llt::new(corner.as_ref(), Side::Lower) else {
            return false;
        };
        let lower = llt.L();
        corner.as_mut().copy_from_triangular_lower(lower);
        // L11 L21^T = A21^T, some rows of A21 at a time.
        below.as_mut().par_row_chunks_mut(STRIPE).for_each(|rows| {
            solve_lower_triangular_in_place(lower, rows.transpose_mut(), Par::Seq);
        });
        let below = below.as_ref();
        trailing.as_mut().par_col_chunks_mut(STRIPE).enumerate().for_each(|(i, stripe)| {
            // Of a stripe's columns, the rows from its first diagonal entry on.
            let (first, width) = (i * STRIPE, stripe.ncols());
            let (_, lower) = stripe.split_at_row_mut(first);
            let (square, under) = lower.split_at_row_mut(width);
            let (beside, rest) = below.split_at_row(first).1.split_at_row(width);
            let (triangle, whole) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
            triangular::matmul(
                square,
                triangle,
                Accum::Add,
                beside,
                whole,
                beside.transpose(),
                whole,
                -1.0,
                Par::Seq,
            );
            matmul(under, Accum::Add, rest, beside.transpose(), -1.0, Par::Seq);
        });
        rest = trailing;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn the_factor_squared_is_the_matrix() {
        for n in [1, 5, BLOCK, BLOCK + 1, 2 * BLOCK + STRIPE + 7] {
            let mut rng = StdRng::seed_from_u64(n as u64);
            let x = Mat::<f32>::from_fn(n, n, |_, _| rng.random_range(-1.0..1.0));
            // Entries near n / 3 on the diagonal, and a definite matrix.
            let a = &x * x.transpose() + Mat::<f32>::identity(n, n);
            let mut l = a.clone();
            assert!(factor(&mut l));
            let l = Mat::from_fn(n, n, |r, c| if c <= r { l[(r, c)] } else { 0.0 });
            let error = (&l * l.transpose() - &a).norm_max();
            assert!(error < 1e-5 * n as f32, "{n}: {error}");
        }
    }

    #[test]
    fn an_indefinite_matrix_has_no_factor() {
        let n = BLOCK + 9;
        for at in [0, n - 1] {
            let mut a = Mat::<f32>::identity(n, n);
            a[(at, at)] = -1.0;
            assert!(!factor(&mut a));
        }
    }
}
