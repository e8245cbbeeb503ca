//! Qwen2 and Qwen2.5 (`Qwen2ForCausalLM`): pre-norm blocks, grouped-query attention with biases on query,
//! key and value, a SwiGLU MLP, a tied or untied head.

use crate::{
    Checkpoint, Result,
    causal_lm::CausalLm,
    config::{Fields, LayerType},
    decoder::{self, DecoderConfig},
};
use candle_core::Device;
use serde_json::json;

/// Loads a checkpoint of this architecture.
///
/// # Errors
/// When the configuration is out of range, or a tensor is missing or not what it says.
pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn CausalLm>> {
    let mut config = common(&Fields::new(checkpoint, json!({})))?;
    config.attention.qkv_bias = true;
    decoder::load(checkpoint, config, device)
}

/// What Qwen2 and Qwen3 have in common.
pub(crate) fn common(fields: &Fields) -> Result<DecoderConfig> {
    let mut config = DecoderConfig::new(fields.sizes()?, fields.rope()?);
    fields.only("hidden_act", "silu")?;
    // Without it, `sliding_window` and `max_window_layers` say nothing.
    fields.only("use_sliding_window", false)?;
    let types = fields.layer_types(config.sizes.num_hidden_layers)?;
    if types.is_some_and(|types| types.contains(&LayerType::Sliding)) {
        return Err(fields
            .refuse("`layer_types` has `sliding_attention`, which is not supported for this architecture"));
    }
    config.head = (!fields.switch("tie_word_embeddings")?).then_some("lm_head".into());
    Ok(config)
}
