//! What a step of decoding works with.

use crate::layers::{AttentionWorkspace, MlpWorkspace, RotaryRow};
use candle_core::Tensor;
use squish_kernels::SingleInput;

/// Buffers of a step of decoding, which the next step uses again.
#[derive(Debug, Default)]
pub struct Workspace {
    /// The residual stream `[hidden_size]`.
    pub(crate) stream: Vec<f32>,
    /// What a layer reads, and afterwards what it has made of it.
    pub(crate) layer: SingleInput,
    /// The position in layers that see all positions.
    pub(crate) rotary: RotaryRow,
    /// The position in layers that see a sliding window.
    pub(crate) sliding_rotary: RotaryRow,
    /// Of attention layers.
    pub(crate) attention: AttentionWorkspace,
    /// Of MLP layers.
    pub(crate) mlp: MlpWorkspace,
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
    /// One with these logits: nothing else is needed of an earlier step.
    fn clone(&self) -> Self {
        Self { logits: self.logits.clone(), ..Self::default() }
    }
}
