//! The randomised Hadamard rotation `x -> H D x` of a linear's input.
//!
//! `D` is a diagonal of random signs and `H` a block-diagonal Walsh-Hadamard matrix. The signs come
//! *first*: they decorrelate the entries, so that each output, a signed sum of `block` inputs, is close
//! to Gaussian whatever the inputs were (the incoherence of QuIP#, Tseng et al. 2024). The map is
//! orthonormal, so with `w' = H D w` for every row, `w' . (H D x) = w . x`: the rotation is baked
//! into the weights once, and the input is rotated in the forward pass.
//!
//! The signs are those of SplitMix64 (Steele et al. 2014): its `j`-th output from the seed holds the signs
//! of inputs `64 j .. 64 j + 63`, lowest bit first; a set bit is a minus. They depend on the seed and
//! the index alone, so all linears of one input size that share a seed share one rotated input.

use crate::{Error, Result, arch::vectorized, hadamard, team};

/// Longest transform of one block.
pub const MAX_BLOCK: usize = 1 << 15;

/// Values that are worth a thread's while.
const TOGETHER: usize = 1 << 10;

/// A rotation of vectors of `cols` values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    cols: usize,
    block: usize,
    seed: u64,
    signs: Vec<u64>,
}

impl Rotation {
    /// The rotation of vectors of length `cols` in blocks of `block` with signs from `seed`.
    ///
    /// # Errors
    /// [`Error::RotationBlock`] unless `block` is a power of two in `2..=32768` that divides `cols`.
    pub fn new(cols: usize, block: usize, seed: u64) -> Result<Self> {
        let fits = block.is_power_of_two() && (2..=MAX_BLOCK).contains(&block);
        if !fits || cols == 0 || !cols.is_multiple_of(block) {
            return Err(Error::RotationBlock { block, cols });
        }
        let mut state = seed;
        let signs = (0..cols.div_ceil(64)).map(|_| splitmix64(&mut state)).collect();
        Ok(Self { cols, block, seed, signs })
    }

    /// The longest block up to 4096 that fits a size; `None` for an odd one.
    pub fn best_block(cols: usize) -> Option<usize> {
        let block = 1 << cols.trailing_zeros().min(12);
        (cols > 0 && block >= 2).then_some(block)
    }

    /// Length of the vectors.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Length of one transform.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Seed of the signs.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The signs of all inputs, a bit each from the lowest of the first word on; a set bit is a minus.
    pub fn signs(&self) -> &[u64] {
        &self.signs
    }

    /// `x <- H D x`, for a vector of [`Rotation::cols`] values.
    pub fn apply(&self, x: &mut [f32]) {
        assert_eq!(x.len(), self.cols);
        self.apply_from(0, x);
    }

    /// [`Rotation::apply`] by several threads, where the vector is long enough for that.
    pub(crate) fn apply_together(&self, x: &mut [f32]) {
        assert_eq!(x.len(), self.cols);
        // Whole blocks, and whole words of signs.
        let part = self.block.max(64) * TOGETHER.div_ceil(self.block.max(64));
        if self.block >= 64 && x.len() >= 2 * part {
            team::for_each_chunk(x, part, |i, x| self.apply_from(i * part, x));
        } else {
            self.apply_from(0, x);
        }
    }

    /// The rotation of the blocks from `first` on, a multiple of the block and of 64.
    pub(crate) fn apply_from(&self, first: usize, x: &mut [f32]) {
        vectorized(
            #[inline(always)]
            || {
                flip(x, &self.signs[first / 64..]);
                hadamard::transform_blocks(x, self.block);
            },
        );
    }

    /// `x <- D H x`, the inverse of [`Rotation::apply`].
    pub fn invert(&self, x: &mut [f32]) {
        assert_eq!(x.len(), self.cols);
        vectorized(
            #[inline(always)]
            || {
                hadamard::transform_blocks(x, self.block);
                flip(x, &self.signs);
            },
        );
    }
}

/// Turns the signs of the values whose bit is set.
#[inline(always)]
fn flip(x: &mut [f32], signs: &[u64]) {
    for (run, &signs) in x.chunks_mut(64).zip(signs) {
        for (i, v) in run.iter_mut().enumerate() {
            // The sign bit of an f32 is its highest.
            *v = f32::from_bits(v.to_bits() ^ (((signs >> i) as u32 & 1) << 31));
        }
    }
}

/// The next output of SplitMix64.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The vectors of docs/format.md.
    #[test]
    fn test_vectors_of_the_specification() {
        // SplitMix64's published outputs for the seed 1234567.
        let mut state = 1234567;
        assert_eq!(splitmix64(&mut state), 6457827717110365317);
        assert_eq!(splitmix64(&mut state), 3203168211198807973);

        // The seed 1 gives 0x910a2dec89025cc1: minus at 0, 6 and 7.
        let rotation = Rotation::new(8, 4, 1).unwrap();
        let mut x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        rotation.apply(&mut x);
        assert_eq!(x, [4.0, -2.0, -3.0, -1.0, -2.0, 0.0, 13.0, -1.0]);
    }

    #[test]
    fn blocks() {
        for (cols, block) in
            [(3584, 512), (18944, 512), (4864, 256), (1408, 128), (576, 64), (8192, 4096), (6, 2)]
        {
            assert_eq!(Rotation::best_block(cols), Some(block));
        }
        assert_eq!(Rotation::best_block(7), None);
        for (cols, block) in [(96, 64), (96, 3), (96, 0), (0, 2), (1 << 17, 1 << 16), (64, 1)] {
            assert_eq!(Rotation::new(cols, block, 0), Err(Error::RotationBlock { block, cols }));
        }
    }

    #[test]
    fn several_threads_rotate_as_one_does() {
        for (cols, block) in [(8960, 256), (4864, 256), (12288, 4096), (8192, 8192), (4096, 64), (6400, 16)] {
            let rotation = Rotation::new(cols, block, 5).unwrap();
            let mut together: Vec<f32> = (0..cols).map(|i| (i as f32).sin()).collect();
            let mut alone = together.clone();
            rotation.apply(&mut alone);
            rotation.apply_together(&mut together);
            assert_eq!(alone, together, "{cols} {block}");
        }
    }

    proptest! {
        #[test]
        fn keeps_products_and_inverts(
            seed: u64, w in prop::collection::vec(-1f32..1., 192), x in prop::collection::vec(-1f32..1., 192),
        ) {
            let rotation = Rotation::new(192, 64, seed).unwrap();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            let (mut rw, mut rx) = (w.clone(), x.clone());
            rotation.apply(&mut rw);
            rotation.apply(&mut rx);
            prop_assert!((dot(&w, &x) - dot(&rw, &rx)).abs() < 1e-4);
            rotation.invert(&mut rx);
            for (a, b) in rx.iter().zip(&x) {
                prop_assert!((a - b).abs() < 1e-5);
            }
        }
    }
}
