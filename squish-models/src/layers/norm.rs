//! Root-mean-square normalisation (Zhang and Sennrich, 2019).

use crate::{Result, checkpoint::Tensors};
use candle_core::{Device, Tensor};

/// How a model's norms read their weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormStyle {
    /// Added to the mean square.
    pub eps: f64,
    /// Whether what is stored is the factor's distance from 1, as in Gemma.
    pub one_plus: bool,
}

/// `x / sqrt(mean(x^2) + eps) * factor`, over the last dimension.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    factor: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// `weight [size]` below `tensors`.
    ///
    /// # Errors
    /// When the tensor is missing or not what is expected.
    pub fn load(tensors: &Tensors, size: usize, style: NormStyle, device: &Device) -> Result<Self> {
        let weight = tensors.dense("weight", &[size], device)?;
        let factor = if style.one_plus { (weight + 1.0)? } else { weight };
        Ok(Self { factor, eps: style.eps as f32 })
    }

    /// `x [.., size]`, normalised.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::ops::rms_norm(&x.contiguous()?, &self.factor, self.eps)
    }
}
