//! What an architecture implements.

use crate::{
    ModelConfig,
    kv_cache::{KvCache, LayerCache},
    layers::RotaryTable,
    workspace::Workspace,
};
use candle_core::{Device, Tensor};

/// What all layers of one forward pass share.
#[derive(Debug)]
pub struct Step {
    /// Rotary embedding of the new positions.
    pub rotary: RotaryTable,
    /// That of layers which see a sliding window, where the model has such.
    pub sliding_rotary: Option<RotaryTable>,
}

/// A causal language model: immutable weights, used through a cache that the caller owns.
///
/// The network is a sequence of residual layers, `x + f(norm(x))` or `x + norm(f(norm(x)))`: an attention layer and an
/// MLP layer for each block. They can be run one at a time, as calibration does.
pub trait CausalLm: Send + Sync + std::fmt::Debug {
    /// Its sizes.
    fn config(&self) -> &ModelConfig;

    /// Where it computes.
    fn device(&self) -> &Device;

    /// `ids [n]` to the first layer's input `[n, hidden_size]` f32.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn embed(&self, ids: &[u32]) -> candle_core::Result<Tensor>;

    /// What the layers share for `n` new positions after `past` others.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn step(&self, past: usize, n: usize) -> candle_core::Result<Step>;

    /// The attention layer of a block: `x [n, hidden_size]` to the same shape. The block's cache holds the past
    /// positions, and the new ones afterwards.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn attention(
        &self,
        block: usize,
        x: &Tensor,
        step: &Step,
        cache: &mut LayerCache,
    ) -> candle_core::Result<Tensor>;

    /// The MLP layer of a block: `x [n, hidden_size]` to the same shape.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn mlp(&self, block: usize, x: &Tensor) -> candle_core::Result<Tensor>;

    /// Whether a layer adds its last matrix's output to the residual stream as it is. Not so where that output is
    /// normalised first, as by Gemma 3: then it is not known what to change in it to move the stream by so much.
    fn adds_plainly(&self) -> bool;

    /// The last layer's output, normalised for the head.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn norm(&self, x: &Tensor) -> candle_core::Result<Tensor>;

    /// The normalised output of the last block, `[n, hidden_size]` f32, for `n` tokens at the positions after
    /// those in the cache, which then holds them too.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn hidden(&self, ids: &[u32], cache: &mut KvCache) -> candle_core::Result<Tensor> {
        let step = self.step(cache.len(), ids.len())?;
        let mut x = self.embed(ids)?;
        for block in 0..self.config().num_hidden_layers {
            x = self.attention(block, &x, &step, cache.layer(block))?;
            x = self.mlp(block, &x)?;
        }
        self.norm(&x)
    }

    /// `hidden [n, hidden_size]` to logits `[n, vocab_size]` f32.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn head(&self, hidden: Tensor) -> candle_core::Result<Tensor>;

    /// Whether [`decode`](Self::decode) does without tensors here, so that nothing is allocated but where a page of keys and values begins.
    fn decodes_without_tensors(&self) -> bool {
        false
    }

    /// The logits after one more token, in `workspace`, as [`hidden`](Self::hidden) and [`head`](Self::head) make them; the cache holds
    /// the token afterwards. Who has a way of its own need not have it where
    /// [`decodes_without_tensors`](Self::decodes_without_tensors) is false.
    ///
    /// # Errors
    /// When an operation fails; some layers' caches may hold the token then.
    fn decode(&self, id: u32, cache: &mut KvCache, workspace: &mut Workspace) -> candle_core::Result<()> {
        workspace.set_logits(&self.head(self.hidden(&[id], cache)?)?)
    }
}
