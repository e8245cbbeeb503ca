//! Root-mean-square normalisation (Zhang and Sennrich, 2019).

use crate::{Result, checkpoint::Tensors};
use candle_core::{Device, Tensor};

/// `x / sqrt(mean(x^2) + eps) * weight`, over the last dimension.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// `weight [size]` below `tensors`.
    ///
    /// # Errors
    /// When the tensor is missing or not what is expected.
    pub fn load(tensors: &Tensors, size: usize, eps: f64, device: &Device) -> Result<Self> {
        Ok(Self { weight: tensors.dense("weight", &[size], device)?, eps: eps as f32 })
    }

    /// `x [.., size]`, normalised.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::ops::rms_norm(&x.contiguous()?, &self.weight, self.eps)
    }
}
