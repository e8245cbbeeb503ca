//! The gated feed-forward layer (Shazeer, "GLU variants improve transformer", 2020).

use super::Linear;
use crate::{Result, checkpoint::Tensors};
use candle_core::{Device, Tensor};
use squish_kernels::{Input, ops::SwiGlu};

/// What the gate passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, the approximation of GELU by tanh.
    GeluTanh,
}

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

    /// `x [positions, hidden_size]` to the same shape.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: Tensor) -> candle_core::Result<Tensor> {
        let x = Input::new(x);
        let [gate, up] = Linear::forward_together([&self.gate, &self.up], &x)?;
        let gated = match self.activation {
            Activation::Silu => gate.apply_op2_no_bwd(&up, &SwiGlu)?,
            Activation::GeluTanh => (gate.gelu()? * up)?,
        };
        self.down.forward(&Input::new(gated))
    }
}
