//! What a step of decoding works with.

use crate::layers::{AttentionWorkspace, MlpWorkspace, RotaryAngles};
use candle_core::Tensor;
use squish_kernels::SingleInput;

/// Buffers of a step of decoding, which the next step uses again.
#[derive(Debug, Default)]
pub struct Workspace {
    /// The residual stream `[hidden_size]`.
    pub stream: Vec<f32>,
    /// What a layer reads, and afterwards what it has made of it.
    pub layer: SingleInput,
    /// The position in layers that see all positions.
    pub rotary: RotaryAngles,
    /// The position in layers that see a sliding window.
    pub sliding_rotary: RotaryAngles,
    /// Of attention layers.
    pub attention: AttentionWorkspace,
    /// Of MLP layers.
    pub mlp: MlpWorkspace,
    /// What comes out `[vocab_size]`.
    pub logits: Vec<f32>,
}

impl Workspace {
    /// Takes the logits of a tensor of any shape and device.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn set_logits(&mut self, logits: &Tensor) -> candle_core::Result<()> {
        self.logits = logits.flatten_all()?.to_vec1()?;
        Ok(())
    }
}

impl Clone for Workspace {
    /// An empty one: buffers hold nothing that a step needs of an earlier one.
    fn clone(&self) -> Self {
        Self::default()
    }
}
