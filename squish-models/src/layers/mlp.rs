//! The gated feed-forward layer (Shazeer, "GLU variants improve transformer", 2020).

use super::Linear;
use crate::{Result, checkpoint::Tensors};
use candle_core::{Device, Tensor};
use squish_kernels::{Input, ops::SwiGlu};

/// `down(silu(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl GatedMlp {
    /// `gate_proj`, `up_proj` and `down_proj` below `tensors`, without biases.
    ///
    /// # Errors
    /// When a tensor is missing or not what is expected.
    pub fn load(
        tensors: &Tensors,
        hidden_size: usize,
        intermediate_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let linear = |name, rows, cols| Linear::load(&tensors.pp(name), rows, cols, false, device);
        Ok(Self {
            gate: linear("gate_proj", intermediate_size, hidden_size)?,
            up: linear("up_proj", intermediate_size, hidden_size)?,
            down: linear("down_proj", hidden_size, intermediate_size)?,
        })
    }

    /// `x [positions, hidden_size]` to the same shape.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: Tensor) -> candle_core::Result<Tensor> {
        let x = Input::new(x);
        let gated = self.gate.forward(&x)?.apply_op2_no_bwd(&self.up.forward(&x)?, &SwiGlu)?;
        self.down.forward(&Input::new(gated))
    }
}
