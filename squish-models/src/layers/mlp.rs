//! The gated feed-forward layer (Shazeer, "GLU variants improve transformer", 2020).

use super::Linear;
use crate::{Result, checkpoint::Tensors};
use candle_core::{Device, Tensor};
pub use squish_kernels::ops::Activation;
use squish_kernels::{Input, Rotation, SingleInput, ops::Gated};
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
        let [gate, up] = Linear::products([&self.gate, &self.up], x)?;
        let rotation = Linear::rotation([&self.down]);
        let op = Gated { activation: self.activation, rotation: rotation.clone() };
        let gated = gate.apply_op2_no_bwd(&up, &op)?;
        self.down.forward(&Input::rotated_by(rotation, gated))
    }

    /// [`forward`](Self::forward) of one position on the CPU without tensors: `x` is the layer's input before, its output after.
    ///
    /// # Errors
    /// When sizes do not fit.
    pub fn decode(&self, x: &mut SingleInput, workspace: &mut MlpWorkspace) -> candle_core::Result<()> {
        let MlpWorkspace { gate_up, gated } = workspace;
        let inner = self.gate.out_features();
        gate_up.resize(2 * inner, 0.0);
        Linear::decode_products([&self.gate, &self.up], x, gate_up)?;
        let (gate, up) = gate_up.split_at(inner);
        let rotation = Linear::rotation([&self.down]);
        let op = Gated { activation: self.activation, rotation: rotation.clone() };
        op.row(gate, up, gated.renew(inner, rotation))?;
        self.down.decode(gated, x.renew(self.down.out_features(), None))
    }
}

/// Buffers of an MLP layer for one position.
#[derive(Debug, Default)]
pub struct MlpWorkspace {
    /// Gate and up, one after the other.
    gate_up: Vec<f32>,
    /// Their gated product.
    gated: SingleInput,
}
