//! Causal grouped-query attention (Ainslie et al. 2023) with a KV cache.

use super::{Linear, RotaryTable};
use crate::{Result, checkpoint::Tensors, kv_cache::LayerCache};
use candle_core::{Device, Tensor};
use squish_kernels::Input;

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

    /// `x [n, hidden_size]` to the same shape. `mask [n, positions]` is added to the scores; `None` when
    /// `n` is 1 and all positions are visible.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(
        &self,
        x: Tensor,
        rotary: &RotaryTable,
        mask: Option<&Tensor>,
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
        let positions = k.dim(1)?;

        // The query heads of one key head are stacked as more rows of the same product, so that the keys
        // and values are not repeated.
        let stacked = (kv_heads, heads / kv_heads * n, head_dim);
        let q = (q * (head_dim as f64).powf(-0.5))?.reshape(stacked)?;
        let mut scores = q.matmul(&k.transpose(1, 2)?)?;
        if let Some(mask) = mask {
            scores = scores.reshape((heads, n, positions))?.broadcast_add(mask)?;
        }
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.reshape((kv_heads, stacked.1, positions))?;
        let y = weights.matmul(&v)?.reshape((heads, n, head_dim))?.transpose(0, 1)?;
        self.o.forward(&Input::new(y.reshape((n, heads * head_dim))?))
    }
}

/// The mask `[n, past + n]` that hides later positions from `n` new ones: 0 where visible, else minus infinity.
/// `None` for a single position, which sees all.
///
/// # Errors
/// When the tensor cannot be made.
pub fn causal_mask(n: usize, past: usize, device: &Device) -> candle_core::Result<Option<Tensor>> {
    if n == 1 {
        return Ok(None);
    }
    let hidden = |(i, j): (usize, usize)| if j > past + i { f32::NEG_INFINITY } else { 0.0 };
    let values = (0..n).flat_map(|i| (0..past + n).map(move |j| (i, j))).map(hidden).collect();
    Tensor::from_vec(values, (n, past + n), device).map(Some)
}
