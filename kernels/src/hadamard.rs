//! The Walsh-Hadamard transform, in place.
//!
//! `H` of size `n` (a power of two) is symmetric and orthonormal: entry `(i, j)` is
//! `(-1)^popcount(i & j) / sqrt(n)`, so `H H = I`. The fast transform is `log2 n` passes of
//! butterflies `(a, b) -> (a + b, a - b)`: `O(n log n)`, never a matrix.

/// Transforms every consecutive run of `block` values in place, orthonormally.
///
/// # Panics
/// When `block` is not a power of two or does not divide the length.
#[inline(always)]
pub fn transform_blocks(values: &mut [f32], block: usize) {
    assert!(block.is_power_of_two() && values.len().is_multiple_of(block));
    let norm = 1.0 / (block as f32).sqrt();
    for run in values.chunks_exact_mut(block) {
        butterflies(run);
        run.iter_mut().for_each(|v| *v *= norm);
    }
}

/// The unnormalised transform of one run, whose length is a power of two.
#[inline(always)]
fn butterflies(run: &mut [f32]) {
    let mut half = 1;
    if run.len() >= 8 {
        // Three passes at once where the distance is shorter than a vector register.
        run.as_chunks_mut::<8>().0.iter_mut().for_each(eight);
        half = 8;
    }
    while half < run.len() {
        for pair in run.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// The passes of distance 1, 2 and 4 over eight values.
#[inline(always)]
fn eight(v: &mut [f32; 8]) {
    *v = pass::<4>(pass::<2>(pass::<1>(*v)));
}

/// One pass over eight values: the lower of a pair becomes their sum, the higher their difference. As shuffles of a register, not as
/// sums of single values.
#[inline(always)]
fn pass<const HALF: usize>(v: [f32; 8]) -> [f32; 8] {
    let other: [f32; 8] = std::array::from_fn(|i| v[i ^ HALF]);
    let mine: [f32; 8] = std::array::from_fn(|i| if i & HALF == 0 { v[i] } else { -v[i] });
    std::array::from_fn(|i| mine[i] + other[i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: a dense matrix, in f64.
    fn reference(run: &[f32]) -> Vec<f64> {
        let norm = (run.len() as f64).sqrt();
        let sign = |i: usize, j: usize| {
            if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
        };
        (0..run.len())
            .map(|i| run.iter().enumerate().map(|(j, &v)| sign(i, j) * f64::from(v)).sum::<f64>() / norm)
            .collect()
    }

    proptest! {
        #[test]
        fn equals_the_definition(log in 0..9u32, blocks in 1..4usize, seed in prop::collection::vec(-4f32..4., 4 * 256)) {
            let block = 1 << log;
            let values = &seed[..blocks * block];
            let mut fast = values.to_vec();
            transform_blocks(&mut fast, block);
            for (fast, run) in fast.chunks(block).zip(values.chunks(block)) {
                for (a, b) in fast.iter().zip(reference(run)) {
                    prop_assert!((f64::from(*a) - b).abs() < 1e-5 * (block as f64).sqrt() * 4.0);
                }
            }
        }

        #[test]
        fn is_its_own_inverse(seed in prop::collection::vec(-4f32..4., 1024)) {
            let mut twice = seed.clone();
            transform_blocks(&mut twice, 1024);
            transform_blocks(&mut twice, 1024);
            for (a, b) in twice.iter().zip(&seed) {
                prop_assert!((a - b).abs() < 1e-4);
            }
        }
    }
}
