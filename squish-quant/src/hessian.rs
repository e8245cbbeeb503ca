//! What an error in a matrix costs: the Hessian of a linear's squared output error.
//!
//! For inputs `x`, an error `E = W - Q` in the weights changes the outputs by `E x`; summed over the
//! calibration tokens, the squared change of one output is `e H e^T` with `H = sum x x^T` and `e` that output's row
//! of `E`. With a factorisation `H = V V^T`, `V` upper triangular, it is `|e V|^2`, and entry `c` of `e V` holds
//! the error of column `c` and of columns *before* it:
//!
//! ```text
//! (e V)_c = e_c V_cc + sum_{j < c} e_j V_jc
//! ```
//!
//! So columns are coded from left to right, each making up for the errors before it: see [`crate::feedback`].

use crate::{cholesky, encode::Metric};
use faer::{Accum, Mat, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;
use squish_kernels::Rotation;

/// Share of the mean diagonal that is added to the diagonal: inputs that the calibration text never
/// showed are taken to occur a little.
pub const DAMPING: f32 = 0.01;

/// Columns that one thread works on. Fixed, so that sums do not depend on the threads: faer's own parallel products
/// split their work by what is idle.
const STRIPE: usize = 64;

/// `sum x x^T` over the inputs `x [cols]` of a linear. The lower triangle counts.
#[derive(Debug, Clone)]
pub struct Hessian(Mat<f32>);

impl Hessian {
    /// No inputs yet.
    pub fn new(cols: usize) -> Self {
        Self(Mat::zeros(cols, cols))
    }

    /// Number of input features.
    pub fn cols(&self) -> usize {
        self.0.nrows()
    }

    /// Adds inputs `x [n, cols]`, row-major.
    pub fn add(&mut self, x: &[f32]) {
        let cols = self.cols();
        let x = MatRef::from_row_major_slice(x, x.len() / cols, cols);
        self.0.as_mut().par_col_chunks_mut(STRIPE).enumerate().for_each(|(i, stripe)| {
            // Of a stripe's columns, the rows from its first diagonal entry on.
            let (first, width) = (i * STRIPE, stripe.ncols());
            let lower = stripe.subrows_mut(first, cols - first);
            let left = x.subcols(first, cols - first).transpose();
            matmul(lower, Accum::Add, left, x.subcols(first, width), 1.0, Par::Seq);
        });
    }

    /// The mean of the diagonal: the mean energy of an input feature.
    pub fn mean_diagonal(&self) -> f32 {
        let sum: f64 = (0..self.cols()).map(|i| f64::from(self.0[(i, i)])).sum();
        (sum / self.cols() as f64) as f32
    }

    /// `R H R^T`: the Hessian of the rotated inputs.
    pub fn rotate(&mut self, rotation: &Rotation) {
        let n = self.cols();
        for c in 0..n {
            for r in 0..c {
                self.0[(r, c)] = self.0[(c, r)];
            }
        }
        rotate_both(&mut self.0, rotation);
    }

    /// The factor `V`, after damping; `None` where there is no input energy at all, or no factor is found.
    pub fn factor(mut self, damping: f32) -> Option<Factor> {
        let n = self.cols();
        let mean = self.mean_diagonal();
        if mean <= 0.0 || !mean.is_finite() {
            return None;
        }
        // Rounding may leave a Hessian of few inputs indefinite by more than the damping.
        let lower = [1.0, 9.0, 90.0].iter().find_map(|more| {
            (0..n).for_each(|i| self.0[(i, i)] += more * damping * mean);
            // With both orders reversed, lower triangular factors become upper triangular ones.
            let mut reversed = self.0.transpose().reverse_rows_and_cols().to_owned();
            cholesky::factor(&mut reversed).then_some(reversed)
        })?;
        drop(self);
        let mut columns = vec![0.0; n * n];
        columns.par_chunks_mut(n).enumerate().for_each(|(c, column)| {
            (0..=c).for_each(|r| column[r] = lower[(n - 1 - r, n - 1 - c)]);
        });
        let factor = Factor { n, columns };
        (0..n).all(|i| factor.v()[(i, i)].is_finite() && factor.v()[(i, i)] > 0.0).then_some(factor)
    }
}

/// `sum += a^T b` for row-major `a [n, rows]` and `b [n, cols]`.
pub fn accumulate(sum: &mut Mat<f32>, a: &[f32], b: &[f32]) {
    let (rows, cols) = (sum.nrows(), sum.ncols());
    let n = b.len() / cols;
    let a = MatRef::from_row_major_slice(a, n, rows).transpose();
    let b = MatRef::from_row_major_slice(b, n, cols);
    sum.as_mut().par_col_chunks_mut(STRIPE).enumerate().for_each(|(i, stripe)| {
        let b = b.subcols(i * STRIPE, stripe.ncols());
        matmul(stripe, Accum::Add, a, b, 1.0, Par::Seq);
    });
}

/// `M <- R M R^T`.
pub fn rotate_both(m: &mut Mat<f32>, rotation: &Rotation) {
    // Columns, then, through the transpose, rows.
    for _ in 0..2 {
        rotate_columns(m, rotation);
        *m = m.transpose().to_owned();
    }
}

/// `M <- M R^T`: every row rotated.
pub fn rotate_rows(m: &mut Mat<f32>, rotation: &Rotation) {
    let mut transposed = m.transpose().to_owned();
    rotate_columns(&mut transposed, rotation);
    *m = transposed.transpose().to_owned();
}

fn rotate_columns(m: &mut Mat<f32>, rotation: &Rotation) {
    m.as_mut().par_col_iter_mut().for_each(|column| {
        let column = column.try_as_col_major_mut().expect("columns of an owned matrix are contiguous");
        rotation.apply(column.as_slice_mut());
    });
}

/// An upper triangular `V` with `H = V V^T`.
#[derive(Debug, Clone)]
pub struct Factor {
    n: usize,
    /// One after the other.
    columns: Vec<f32>,
}

impl Factor {
    /// The whole matrix.
    pub fn v(&self) -> MatRef<'_, f32> {
        MatRef::from_column_major_slice(&self.columns, self.n, self.n)
    }

    /// The square of columns (and rows) from `first` on: the cost of errors there alone.
    pub fn metric(&self, first: usize) -> Metric<'_> {
        Metric { columns: &self.columns[first * self.n + first..], stride: self.n }
    }

    /// `X V` for `X [rows, cols]`, row-major: errors as what they cost, so that their squares add up to it.
    pub fn costs(&self, x: &[f32]) -> Vec<f32> {
        let n = self.n;
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(STRIPE * n).zip(x.par_chunks(STRIPE * n)).for_each(|(out, x)| {
            let x = MatRef::from_row_major_slice(x, x.len() / n, n);
            let out = MatMut::from_row_major_slice_mut(out, x.nrows(), n);
            matmul(out, Accum::Replace, x, self.v(), 1.0, Par::Seq);
        });
        out
    }

    /// `X <- X V^-1`: the inverse of [`Factor::costs`].
    pub fn errors(&self, x: &mut [f32]) {
        use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
        let n = self.n;
        // V^T X^T = C^T
        let x = MatMut::from_column_major_slice_mut(x, n, x.len() / n);
        solve_lower_triangular_in_place(self.v().transpose(), x, Par::Seq);
    }

    /// What a unit error in each column costs, made up for by nothing: the diagonal of `H`.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.n).map(|r| (r..self.n).map(|c| self.v()[(r, c)].powi(2)).sum()).collect()
    }

    /// `X <- X H^-1` for `X [rows, cols]`, row-major: `H^-1 = V^-T V^-1`.
    pub fn solve(&self, x: &mut [f32]) {
        use faer::linalg::triangular_solve::{
            solve_lower_triangular_in_place, solve_upper_triangular_in_place,
        };
        let n = self.n;
        // X^T [cols, rows] <- V^-T V^-1 X^T, by H^-1's symmetry.
        x.par_chunks_mut(STRIPE * n).for_each(|x| {
            let mut x = MatMut::from_column_major_slice_mut(x, n, x.len() / n);
            solve_upper_triangular_in_place(self.v(), x.as_mut(), Par::Seq);
            solve_lower_triangular_in_place(self.v().transpose(), x, Par::Seq);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn inputs(n: usize, cols: usize) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(1);
        (0..n * cols).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    fn dense(h: &Hessian) -> Vec<Vec<f32>> {
        let at = |r: usize, c: usize| h.0[(r.max(c), r.min(c))];
        (0..h.cols()).map(|r| (0..h.cols()).map(|c| at(r, c)).collect()).collect()
    }

    #[test]
    fn sums_factors_and_solves() {
        let (n, cols) = (40, 24);
        let x = inputs(n, cols);
        let mut h = Hessian::new(cols);
        h.add(&x[..10 * cols]);
        h.add(&x[10 * cols..]);
        let sums = dense(&h);
        for r in 0..cols {
            for c in 0..cols {
                let expected: f32 = x.chunks(cols).map(|x| x[r] * x[c]).sum();
                assert!((sums[r][c] - expected).abs() < 1e-4);
            }
        }
        let factor = h.clone().factor(0.01).unwrap();
        let v = factor.v();
        let damping = 0.01 * h.mean_diagonal();
        for r in 0..cols {
            for c in 0..cols {
                let product: f32 = (r.max(c)..cols).map(|k| v[(r, k)] * v[(c, k)]).sum();
                let expected = sums[r][c] + if r == c { damping } else { 0.0 };
                assert!((product - expected).abs() < 1e-4, "{r} {c}: {product} {expected}");
            }
        }
        for (r, cost) in factor.diagonal().into_iter().enumerate() {
            assert!((cost - sums[r][r] - damping).abs() < 1e-4);
        }
        let e = inputs(3, cols);
        let costs = factor.costs(&e);
        for (e, cost) in e.chunks(cols).zip(costs.chunks(cols)) {
            let quadratic: f32 = (0..cols)
                .flat_map(|r| (0..cols).map(move |c| (r, c)))
                .map(|(r, c)| e[r] * e[c] * sums[r][c])
                .sum();
            let expected = quadratic + damping * e.iter().map(|e| e * e).sum::<f32>();
            assert!((cost.iter().map(|c| c * c).sum::<f32>() - expected).abs() < 1e-3);
        }
        let mut back = costs;
        factor.errors(&mut back);
        assert!(back.iter().zip(&e).all(|(b, e)| (b - e).abs() < 1e-4));
        let b = inputs(3, cols);
        let mut solved = b.clone();
        factor.solve(&mut solved);
        for (b, x) in b.chunks(cols).zip(solved.chunks(cols)) {
            for c in 0..cols {
                let product: f32 = (0..cols).map(|r| x[r] * sums[r][c]).sum::<f32>() + damping * x[c];
                assert!((product - b[c]).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn the_rotated_hessian_is_that_of_rotated_inputs() {
        let (n, cols) = (30, 32);
        let rotation = Rotation::new(cols, 16, 3).unwrap();
        let mut x = inputs(n, cols);
        let mut h = Hessian::new(cols);
        h.add(&x);
        h.rotate(&rotation);
        x.chunks_mut(cols).for_each(|x| rotation.apply(x));
        let mut direct = Hessian::new(cols);
        direct.add(&x);
        for (a, b) in dense(&h).iter().flatten().zip(dense(&direct).iter().flatten()) {
            assert!((a - b).abs() < 1e-4);
        }
    }

    #[test]
    fn without_inputs_there_is_no_factor() {
        assert!(Hessian::new(4).factor(0.01).is_none());
        let mut h = Hessian::new(2);
        h.add(&[f32::NAN, 1.0]);
        assert!(h.factor(0.01).is_none());
        // One input for many features: damping makes up for the missing ones.
        let mut h = Hessian::new(64);
        h.add(&inputs(1, 64));
        assert!(h.factor(0.01).is_some());
    }
}
