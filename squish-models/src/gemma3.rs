//! Gemma 3 (`Gemma3ForCausalLM`, and the text part of `Gemma3ForConditionalGeneration`): norms before and after each
//! layer, which store their distance from 1; norms over each head of queries and keys; a GeGLU MLP; scaled embeddings; most layers
//! see a sliding window and have a rotary embedding of their own; the head is tied.

use crate::{
    Checkpoint, Result,
    causal_lm::CausalLm,
    config::{self, Fields, LayerType},
    decoder::{self, BlockNorms, DecoderConfig, Sliding, SlidingBlocks},
    layers::{Activation, NormStyle, Rope, RopeScaling},
};
use candle_core::Device;
use serde_json::{Value, json};

/// The architecture that has an image encoder beside the language model.
pub const WITH_IMAGES: &str = "Gemma3ForConditionalGeneration";

/// Whether a tensor of such a checkpoint belongs to the language model.
pub fn is_language(tensor: &str) -> bool {
    tensor == "lm_head.weight" || tensor.split('.').take(2).any(|part| part == "language_model")
}

/// What configurations leave out; those of larger models leave out most.
fn defaults() -> Value {
    json!({
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "tie_word_embeddings": true,
    })
}

/// Loads a checkpoint of this architecture.
///
/// # Errors
/// When the configuration is out of range, or a tensor is missing or not what it says.
pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn CausalLm>> {
    let (fields, prefixes) = if config::architecture(checkpoint)? == WITH_IMAGES {
        let fields = Fields::new(checkpoint, json!({})).inner("text_config", defaults())?;
        // The second is how newer versions of transformers write it.
        (fields, [("language_model.model", "language_model.lm_head"), ("model.language_model", "lm_head")])
    } else {
        (Fields::new(checkpoint, defaults()), [("model", "lm_head"); 2])
    };
    let holds = |prefix: &str| {
        let name = format!("{prefix}.norm.weight");
        checkpoint.entry(&name).is_ok()
    };
    let (prefix, head) = if holds(prefixes[1].0) { prefixes[1] } else { prefixes[0] };
    let mut config = decoder_config(&fields)?;
    config.prefix = prefix.into();
    config.head = (!fields.switch("tie_word_embeddings")?).then(|| head.into());
    decoder::load(checkpoint, config, device)
}

fn decoder_config(fields: &Fields) -> Result<DecoderConfig> {
    let (rope, local_rope) = match fields.rope_of_type("full_attention")? {
        Some(rope) => {
            let local = fields.rope_of_type("sliding_attention")?;
            (rope, local.ok_or_else(|| fields.refuse("no `rope_parameters.sliding_attention`"))?)
        }
        None => {
            let theta = fields.base("rope_local_base_freq", fields.given("rope_local_base_freq"))?;
            (fields.rope()?, Rope { theta, scaling: RopeScaling::Default {} })
        }
    };
    let mut c = DecoderConfig::new(fields.sizes()?, rope);
    fields.only("hidden_activation", "gelu_pytorch_tanh")?;
    fields.only("use_bidirectional_attention", false)?;
    c.activation = Activation::GeluTanh;
    c.norm = NormStyle { one_plus: true, ..c.norm };
    c.norms = BlockNorms {
        before_attention: "input_layernorm",
        after_attention: Some("post_attention_layernorm"),
        before_mlp: "pre_feedforward_layernorm",
        after_mlp: Some("post_feedforward_layernorm"),
    };
    c.embedding_scale = (c.sizes.hidden_size as f64).sqrt();
    c.sliding = Some(sliding(fields, &c, local_rope)?);

    let biased = fields.switch("attention_bias")?;
    let cap = |key| fields.number(key, 1e-3, 1e6);
    c.logit_cap = cap("final_logit_softcapping")?;
    c.attention.score_cap = cap("attn_logit_softcapping")?;
    c.attention.head_norms = Some(c.norm);
    (c.attention.qkv_bias, c.attention.output_bias) = (biased, biased);
    if let Some(scalar) = fields.number("query_pre_attn_scalar", 1e-3, 1e6)? {
        c.attention.score_scale = scalar.powf(-0.5);
    }
    Ok(c)
}

/// Which layers see a window, of `layer_types` or, where that is not given, of `sliding_window_pattern`.
fn sliding(fields: &Fields, c: &DecoderConfig, rope: Rope) -> Result<Sliding> {
    let size = |key, default| {
        let number = fields.number(key, 1.0, f64::from(1 << 24))?.unwrap_or(default);
        if number.fract() == 0.0 {
            Ok(number as usize)
        } else {
            Err(fields.refuse(format!("`{key}` is {number}, expected a whole number")))
        }
    };
    let blocks = match fields.layer_types(c.sizes.num_hidden_layers)? {
        Some(types) => SlidingBlocks::Listed(types.into_iter().map(|t| t == LayerType::Sliding).collect()),
        None => {
            let older = size("_sliding_window_pattern", 6.0)?;
            SlidingBlocks::AllButEach(size("sliding_window_pattern", older as f64)?)
        }
    };
    Ok(Sliding { window: size("sliding_window", 4096.0)?, rope, blocks })
}
