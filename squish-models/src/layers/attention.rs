//! Causal grouped-query attention (Ainslie et al. 2023) with a KV cache, over all positions or a sliding window of them.

use super::{Linear, NormStyle, RmsNorm, RotaryRow, RotaryTable};
use crate::{Result, checkpoint::Tensors, kv_cache::LayerCache};
use candle_core::{Device, Tensor};
use squish_kernels::{
    Input, Rotation, SingleInput,
    ops::{AttentionBuffers, SplitHeads},
};
use std::sync::Arc;

/// Head counts and sizes, and what a family adds to the scheme.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub output_bias: bool,
    /// Norms over each head of queries and keys, `q_norm` and `k_norm`, before they are turned.
    pub head_norms: Option<NormStyle>,
    /// Factor of the scores, usually `head_dim^(-1/2)`.
    pub score_scale: f64,
    /// Scores `s` become `c tanh(s / c)`.
    pub score_cap: Option<f64>,
    /// A position sees so many at most, itself counted; absent, all before it.
    pub window: Option<usize>,
}

/// The attention of one block.
#[derive(Debug, Clone)]
pub struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    head_norms: Option<(RmsNorm, RmsNorm)>,
    shape: AttentionShape,
}

impl Attention {
    /// `q_proj`, `k_proj`, `v_proj` and `o_proj` below `tensors`, and `q_norm` and `k_norm` where there are head norms.
    ///
    /// # Errors
    /// When a tensor is missing or not what is expected.
    pub fn load(tensors: &Tensors, shape: AttentionShape, device: &Device) -> Result<Self> {
        let AttentionShape { hidden_size, heads, kv_heads, head_dim, qkv_bias, output_bias, .. } = shape;
        let linear = |name, rows, cols, bias| Linear::load(&tensors.pp(name), rows, cols, bias, device);
        let norm = |name, style| RmsNorm::load(&tensors.pp(name), head_dim, style, device);
        let norms = |style| Ok::<_, crate::Error>((norm("q_norm", style)?, norm("k_norm", style)?));
        Ok(Self {
            q: linear("q_proj", heads * head_dim, hidden_size, qkv_bias)?,
            k: linear("k_proj", kv_heads * head_dim, hidden_size, qkv_bias)?,
            v: linear("v_proj", kv_heads * head_dim, hidden_size, qkv_bias)?,
            o: linear("o_proj", hidden_size, heads * head_dim, output_bias)?,
            head_norms: shape.head_norms.map(norms).transpose()?,
            shape,
        })
    }

    /// The rotation that the layer's input may come in.
    pub fn rotation(&self) -> Option<Arc<Rotation>> {
        Linear::rotation([&self.q, &self.k, &self.v])
    }

    /// `x [n, hidden_size]` to the same shape, for the `n` positions after those in the cache.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(
        &self,
        x: &Input,
        rotary: &RotaryTable,
        cache: &mut LayerCache,
    ) -> candle_core::Result<Tensor> {
        let [q, k, v] = Linear::products([&self.q, &self.k, &self.v], x)?;
        let split = self.split(rotary.cos(), rotary.sin());
        let q = cache.append_heads(&split, [&q, &k, &v], self.shape.window)?;
        let (scale, softcap) = self.scores();
        let y = cache.attend(&q, scale, softcap)?;
        cache.prune();
        self.o.forward(&Input::new(y))
    }

    /// [`forward`](Self::forward) of one position on the CPU without tensors: `x` is the layer's input before, its output after.
    ///
    /// # Errors
    /// When sizes do not fit; the cache may hold the position then.
    pub fn decode(
        &self,
        x: &mut SingleInput,
        rotary: &RotaryRow,
        cache: &mut LayerCache,
        workspace: &mut AttentionWorkspace,
    ) -> candle_core::Result<()> {
        let AttentionShape { heads, kv_heads, head_dim, window, .. } = self.shape;
        let AttentionWorkspace { qkv, mixed, buffers } = workspace;
        qkv.resize((heads + 2 * kv_heads) * head_dim, 0.0);
        Linear::decode_products([&self.q, &self.k, &self.v], x, qkv)?;
        self.split(&rotary.cos[..], &rotary.sin[..]).in_place(qkv)?;
        let (q, kv) = qkv.split_at_mut(heads * head_dim);
        let (k, v) = kv.split_at_mut(kv_heads * head_dim);
        cache.append_single(k, v, head_dim, window)?;
        cache.attend_single(q, self.scores(), buffers, mixed.renew(heads * head_dim, None))?;
        cache.prune();
        self.o.decode(mixed, x.renew(self.shape.hidden_size, None))
    }

    /// Factor and cap of the scores.
    fn scores(&self) -> (f32, Option<f32>) {
        let AttentionShape { score_scale, score_cap, .. } = self.shape;
        (score_scale as f32, score_cap.map(|cap| cap as f32))
    }

    /// What heads go through, with this table of cosines and sines.
    fn split<T>(&self, cos: T, sin: T) -> SplitHeads<'_, T> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        SplitHeads {
            heads,
            kv_heads,
            head_dim,
            biases: match [&self.q, &self.k, &self.v].map(Linear::bias) {
                [Some(q), Some(k), Some(v)] => Some([q, k, v]),
                _ => None,
            },
            norms: self.head_norms.as_ref().map(|(q, k)| [q.scale(), k.scale()]),
            cos,
            sin,
        }
    }
}

/// Buffers of an attention layer for one position.
#[derive(Debug, Default)]
pub struct AttentionWorkspace {
    /// Queries, keys and values, one after the other.
    qkv: Vec<f32>,
    /// What the heads have found.
    mixed: SingleInput,
    buffers: AttentionBuffers,
}
