//! The low-rank correction: the leading singular vectors of what the codes miss.
//!
//! A randomised range finder (Halko, Martinsson and Tropp 2011): `Y = R Omega` for a few more random columns than
//! the rank, sharpened by power iterations `Y <- R R^T Y` with a QR in between, since the residual of a good
//! code is nearly white and its spectrum falls slowly; then the exact SVD of the small `Q^T R`.
//!
//! With calibration, what counts is not the residual but what it costs, `|R V|^2` ([`crate::hessian`]): its best approximation is `L^T A` for
//! the leading singular vectors of `R V`, and the right factor `A V^-1`.

use crate::hessian::Factor;
use faer::{Mat, MatRef};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Columns beyond the rank, and power iterations.
const OVERSAMPLING: usize = 8;
const ITERATIONS: usize = 4;

/// Factors `(left [rank, rows], right [rank, cols])`, row-major, whose product `left^T right` approximates
/// a residual `[rows, cols]`; the singular values are split evenly between the two.
///
/// `rank` is at most the smaller dimension. Deterministic in the seed. With a Hessian's factor, the approximation is the one whose error
/// costs least.
pub fn factor(
    residual: &[f32],
    [rows, cols]: [usize; 2],
    rank: usize,
    seed: u64,
    hessian: Option<&Factor>,
) -> (Vec<f32>, Vec<f32>) {
    let Some(hessian) = hessian else { return plain(residual, [rows, cols], rank, seed) };
    let (left, mut right) = plain(&hessian.costs(residual), [rows, cols], rank, seed);
    hessian.errors(&mut right);
    (left, right)
}

fn plain(residual: &[f32], [rows, cols]: [usize; 2], rank: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    faer::set_global_parallelism(faer::Par::Seq);
    let r = MatRef::from_row_major_slice(residual, rows, cols);
    let width = (rank + OVERSAMPLING).min(rows).min(cols);
    let mut rng = StdRng::seed_from_u64(seed);
    // Any distribution without structure will do for the range finder.
    let omega = Mat::from_fn(cols, width, |_, _| rng.random_range(-1.0f32..1.0));
    let mut q = (r * omega).qr().compute_thin_Q();
    for _ in 0..ITERATIONS {
        let z = (r.transpose() * &q).qr().compute_thin_Q();
        q = (r * z).qr().compute_thin_Q();
    }
    let small = q.transpose() * r;
    let Ok(svd) = small.thin_svd() else {
        // The iteration for singular values did not converge: no correction rather than a wrong one.
        return (vec![0.0; rank * rows], vec![0.0; rank * cols]);
    };
    let u = &q * svd.U();
    let root = |i: usize| svd.S().column_vector()[i].max(0.0).sqrt();
    let left = (0..rank).flat_map(|i| (0..rows).map(move |r| (r, i))).map(|(r, i)| u[(r, i)] * root(i));
    let right =
        (0..rank).flat_map(|i| (0..cols).map(move |c| (c, i))).map(|(c, i)| svd.V()[(c, i)] * root(i));
    (left.collect(), right.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hessian::Hessian;

    #[test]
    fn recovers_a_matrix_of_low_rank() {
        let (rows, cols, rank) = (40, 30, 3);
        let mut rng = StdRng::seed_from_u64(5);
        let a: Vec<f32> = (0..rows * rank).map(|_| rng.random_range(-1.0..1.0)).collect();
        let b: Vec<f32> = (0..cols * rank).map(|_| rng.random_range(-1.0..1.0)).collect();
        let product = |left: &dyn Fn(usize, usize) -> f32, right: &dyn Fn(usize, usize) -> f32| {
            let entry = |r, c| (0..rank).map(|i| left(r, i) * right(c, i)).sum::<f32>();
            (0..rows)
                .flat_map(|r| (0..cols).map(move |c| (r, c)))
                .map(|(r, c)| entry(r, c))
                .collect::<Vec<f32>>()
        };
        let m = product(&|r, i| a[r * rank + i], &|c, i| b[c * rank + i]);
        let (left, right) = factor(&m, [rows, cols], rank, 1, None);
        let back = product(&|r, i| left[i * rows + r], &|c, i| right[i * cols + c]);
        let worst = m.iter().zip(&back).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{worst}");
        assert_eq!(factor(&m, [rows, cols], rank, 1, None), (left, right));

        // With fewer singular vectors than the matrix has, the cost is less than that of the plain approximation.
        let mut hessian = Hessian::new(cols);
        hessian.add(
            &(0..60 * cols).map(|i| rng.random_range(-1.0..1.0) * (1 + i % cols) as f32).collect::<Vec<_>>(),
        );
        let hessian = hessian.factor(0.01).unwrap();
        let cost = |(left, right): (Vec<f32>, Vec<f32>)| {
            let back = product(&|r, i| left[i * rows + r], &|c, i| right[i * cols + c]);
            let error: Vec<f32> = m.iter().zip(&back).map(|(m, b)| m - b).collect();
            hessian.costs(&error).iter().map(|c| f64::from(c * c)).sum::<f64>()
        };
        let product_of_rank = |hessian| {
            let (mut left, mut right) = factor(&m, [rows, cols], 2, 1, hessian);
            // The third of three factors is nothing.
            left.resize(rank * rows, 0.0);
            right.resize(rank * cols, 0.0);
            (left, right)
        };
        assert!(cost(product_of_rank(Some(&hessian))) < 0.9 * cost(product_of_rank(None)));
    }
}
