//! Qwen3 (`Qwen3ForCausalLM`): Qwen2 with norms over each head of queries and keys in the place of biases, and heads
//! whose width does not follow from the hidden size.

use crate::{Checkpoint, Result, causal_lm::CausalLm, config::Fields, decoder, qwen2};
use candle_core::Device;
use serde_json::json;

/// Loads a checkpoint of this architecture.
///
/// # Errors
/// When the configuration is out of range, or a tensor is missing or not what it says.
pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn CausalLm>> {
    let fields = Fields::new(checkpoint, json!({"head_dim": 128}));
    let mut config = qwen2::common(&fields)?;
    let biased = fields.switch("attention_bias")?;
    let attention = &mut config.attention;
    (attention.qkv_bias, attention.output_bias) = (biased, biased);
    attention.head_norms = Some(config.norm);
    decoder::load(checkpoint, config, device)
}
