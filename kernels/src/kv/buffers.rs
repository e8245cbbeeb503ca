//! Tensors in which keys and values are held on a GPU: how much they grow, and copies of them.

use candle_core::{Result, Tensor};

/// A full tensor grows by one part in so many, at least: that much of it may be empty, and what it holds is copied about as many
/// times.
const SHARE: usize = 8;

/// Places of a tensor that shall hold `needed` in the place of a full one with `held`; by steps of `step` while there are few.
pub fn grown(held: usize, needed: usize, step: usize) -> usize {
    needed.next_multiple_of(step).max(held + held / SHARE)
}

/// A tensor of the same numbers in memory of its own. On a GPU, Candle's own copy shares the memory.
///
/// # Errors
/// When a tensor operation fails, such as for want of memory.
pub fn copied(tensor: &Tensor) -> Result<Tensor> {
    let copy = Tensor::zeros(tensor.shape(), tensor.dtype(), tensor.device())?;
    copy.slice_set(tensor, 0, 0)?;
    Ok(copy)
}
