//! A batch of inputs in eight bits, in the order in which a product of matrices reads them.
//!
//! Each input is rounded as a [`QuantizedInput`] is. Inputs lie in blocks of [`QuantizedBatch::width`]; of a block, some consecutive
//! columns of all its inputs lie side by side: as many as an instruction multiplies at a time, its depth.

use crate::quantized_input::{GROUP, HALF, QuantizedInput};
use rayon::prelude::*;

/// Most inputs of a block.
pub const WIDEST: usize = 12;

/// Inputs of a block come in multiples of this.
pub const NARROWEST: usize = 4;

/// Inputs `[batch, cols]` in eight bits.
#[derive(Debug, Clone)]
pub struct QuantizedBatch {
    batch: usize,
    groups: usize,
    width: usize,
    depth: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

/// Some groups of a block of inputs, `w` of them. Absent ones are zero.
#[derive(Debug, Clone, Copy)]
pub struct BatchBlock<'a> {
    /// `[cols / depth, w, depth]`
    pub values: &'a [i8],
    /// What the values of each group are multiplied by: `[groups, w]`.
    pub scales: &'a [f32],
    /// The sums of the values of each group's halves: `[2 groups, w]`.
    pub sums: &'a [i32],
}

impl QuantizedBatch {
    /// The nearest such inputs, for `x [batch, cols]`, row-major.
    ///
    /// # Panics
    /// When the depth is neither 4 nor 8.
    pub fn new(x: &[f32], cols: usize, depth: usize) -> Self {
        assert!(matches!(depth, 4 | 8));
        let (batch, groups) = (x.len() / cols, cols.div_ceil(GROUP));
        let blocks = batch.div_ceil(WIDEST);
        let width = batch.div_ceil(blocks.max(1)).next_multiple_of(NARROWEST);
        let mut found = Self {
            batch,
            groups,
            width,
            depth,
            values: vec![0; blocks * width * groups * GROUP],
            scales: vec![0.0; blocks * width * groups],
            sums: vec![0; blocks * width * groups * 2],
        };
        let values = found.values.par_chunks_mut((width * groups * GROUP).max(1));
        let scales = found.scales.par_chunks_mut((width * groups).max(1));
        let sums = found.sums.par_chunks_mut((width * groups * 2).max(1));
        let inputs = x.par_chunks((width * cols).max(1));
        values.zip(scales).zip(sums).zip(inputs).for_each(|(((values, scales), sums), x)| {
            let mut one = QuantizedInput::default();
            for (w, x) in x.chunks_exact(cols).enumerate() {
                one.round_alone(x);
                match depth {
                    4 => spread::<4>(one.values(), values, w, width),
                    8 => spread::<8>(one.values(), values, w, width),
                    _ => unreachable!("the assertion above"),
                }
                let places = scales.iter_mut().skip(w).step_by(width);
                places.zip(one.scales()).for_each(|(place, scale)| *place = *scale);
                let places = sums.iter_mut().skip(w).step_by(width);
                places.zip(one.sums().as_flattened()).for_each(|(place, sum)| *place = *sum);
            }
        });
        found
    }

    /// Number of inputs.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Groups of an input.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Inputs of a block.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Columns of an input that lie side by side.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.batch.div_ceil(self.width.max(1))
    }

    /// These groups of a block of inputs.
    pub fn block(&self, block: usize, groups: std::ops::Range<usize>) -> BatchBlock<'_> {
        let start = (block * self.groups + groups.start) * self.width;
        let end = (block * self.groups + groups.end) * self.width;
        BatchBlock {
            values: &self.values[start * GROUP..end * GROUP],
            scales: &self.scales[start..end],
            sums: &self.sums[start * 2..end * 2],
        }
    }
}

/// Puts the values of input `w` of a block of `width` where they belong.
#[inline(always)]
fn spread<const DEPTH: usize>(from: &[i8], to: &mut [i8], w: usize, width: usize) {
    let places = to.as_chunks_mut::<DEPTH>().0.iter_mut().skip(w).step_by(width);
    places.zip(from.as_chunks().0).for_each(|(place, values)| *place = *values);
}

const _: () = assert!(GROUP == 2 * HALF);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_input_is_rounded_as_if_alone(batch in 1..40usize, cols in 1..200usize, deep: bool, seed: u32) {
            let x: Vec<f32> = (0..batch * cols).map(|i| ((i as u32).wrapping_mul(seed | 1) >> 8) as f32 / 1e6 - 8.0).collect();
            let depth = if deep { 8 } else { 4 };
            let all = QuantizedBatch::new(&x, cols, depth);
            prop_assert_eq!(all.batch(), batch);
            prop_assert!(all.width() <= WIDEST && all.width().is_multiple_of(NARROWEST));
            for (b, x) in x.chunks(cols).enumerate() {
                let (one, w) = (QuantizedInput::new(x), b % all.width());
                for g in 0..all.groups() {
                    let block = all.block(b / all.width(), g..g + 1);
                    prop_assert_eq!(block.scales[w], one.scales()[g]);
                    for (half, sum) in one.sums()[g].into_iter().enumerate() {
                        prop_assert_eq!(block.sums[half * all.width() + w], sum);
                    }
                    for c in 0..GROUP {
                        let value = block.values[(c / depth * all.width() + w) * depth + c % depth];
                        prop_assert_eq!(value, one.values()[g * GROUP + c]);
                    }
                }
            }
        }
    }

    #[test]
    fn no_inputs_are_no_blocks() {
        assert_eq!(QuantizedBatch::new(&[], 64, 4).blocks(), 0);
    }
}
