//! What an architecture implements.

use crate::{ModelConfig, kv_cache::KvCache};
use candle_core::Tensor;

/// A causal language model: immutable weights, used through a cache that the caller owns.
pub trait CausalLm: Send + Sync + std::fmt::Debug {
    /// Its sizes.
    fn config(&self) -> &ModelConfig;

    /// The normalised output of the last block, `[n, hidden_size]` f32, for `n` tokens at the positions after
    /// those in the cache, which then holds them too.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn hidden(&self, ids: &[u32], cache: &mut KvCache) -> candle_core::Result<Tensor>;

    /// `hidden [n, hidden_size]` to logits `[n, vocab_size]` f32.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn head(&self, hidden: Tensor) -> candle_core::Result<Tensor>;
}
