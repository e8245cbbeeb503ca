//! Causal grouped-query attention (Ainslie et al. 2023) with a KV cache.

use super::{Linear, RotaryTable};
use crate::{Result, checkpoint::Tensors, kv_cache::LayerCache};
use candle_core::{Device, Tensor};
use squish_kernels::{Input, ops};

/// Head counts and sizes.
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
}

/// The attention of one block.
#[derive(Debug, Clone)]
pub struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    shape: AttentionShape,
}

impl Attention {
    /// `q_proj`, `k_proj`, `v_proj` and `o_proj` below `tensors`.
    ///
    /// # Errors
    /// When a tensor is missing or not what is expected.
    pub fn load(tensors: &Tensors, shape: AttentionShape, device: &Device) -> Result<Self> {
        let AttentionShape { hidden_size, heads, kv_heads, head_dim, qkv_bias } = shape;
        let linear = |name, rows, cols, bias| Linear::load(&tensors.pp(name), rows, cols, bias, device);
        Ok(Self {
            q: linear("q_proj", heads * head_dim, hidden_size, qkv_bias)?,
            k: linear("k_proj", kv_heads * head_dim, hidden_size, qkv_bias)?,
            v: linear("v_proj", kv_heads * head_dim, hidden_size, qkv_bias)?,
            o: linear("o_proj", hidden_size, heads * head_dim, false)?,
            shape,
        })
    }

    /// `x [n, hidden_size]` to the same shape, for the `n` positions after those in the cache.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(
        &self,
        x: Tensor,
        rotary: &RotaryTable,
        cache: &mut LayerCache,
    ) -> candle_core::Result<Tensor> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let n = x.dim(0)?;
        let x = Input::new(x);
        // [n, heads * head_dim] -> [heads, n, head_dim]
        let split = |t: Tensor, heads: usize| t.reshape((n, heads, head_dim))?.transpose(0, 1)?.contiguous();
        let q = rotary.apply(&split(self.q.forward(&x)?, heads)?)?;
        let k = rotary.apply(&split(self.k.forward(&x)?, kv_heads)?)?;
        let v = split(self.v.forward(&x)?, kv_heads)?;
        let (k, v) = cache.append(&k, &v)?;
        let scale = (head_dim as f32).powf(-0.5);
        let y = q.apply_op3(&k, &v, ops::Attention { scale, softcap: None, window: None })?;
        self.o.forward(&Input::new(y))
    }
}
