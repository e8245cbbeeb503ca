//! The gated feed-forward layer (Shazeer, "GLU variants improve transformer", 2020).

use super::Linear;
use crate::{Result, checkpoint::Tensors};
use candle_core::{Device, Tensor};
pub use squish_kernels::ops::Activation;
use squish_kernels::{Input, Rotation, ops::Gated};
use std::sync::Arc;

/// `down(activation(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
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
        activation: Activation,
        device: &Device,
    ) -> Result<Self> {
        let linear = |name, rows, cols| Linear::load(&tensors.pp(name), rows, cols, false, device);
        Ok(Self {
            gate: linear("gate_proj", intermediate_size, hidden_size)?,
            up: linear("up_proj", intermediate_size, hidden_size)?,
            down: linear("down_proj", hidden_size, intermediate_size)?,
            activation,
        })
    }

    /// The rotation that the layer's input may come in.
    pub fn rotation(&self) -> Option<Arc<Rotation>> {
        Linear::rotation([&self.gate, &self.up])
    }

    /// `x [positions, hidden_size]` to the same shape.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: &Input) -> candle_core::Result<Tensor> {
        let [gate, up] = Linear::forward_together([&self.gate, &self.up], x)?;
        let rotation = Linear::rotation([&self.down]);
        let op = Gated { activation: self.activation, rotation: rotation.clone() };
        let gated = gate.apply_op2_no_bwd(&up, &op)?;
        self.down.forward(&Input::rotated_by(rotation, gated))
    }
}
