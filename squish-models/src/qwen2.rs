//! Qwen2 and Qwen2.5 (`Qwen2ForCausalLM`): pre-norm blocks, grouped-query attention with biases on query,
//! key and value, a SwiGLU MLP, a tied or untied head.

use crate::{
    Checkpoint, Result,
    causal_lm::{CausalLm, Step},
    config::{self, ModelConfig},
    kv_cache::LayerCache,
    layers::{Attention, AttentionShape, Embedding, GatedMlp, Linear, RmsNorm, Rotary},
};
use candle_core::{Device, Tensor};
use serde::Deserialize;
use squish_kernels::Input;

/// The fields of `config.json` that matter here, under Hugging Face's names.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "silu")]
    hidden_act: String,
}

fn silu() -> String {
    "silu".into()
}

impl Config {
    /// The configuration, with every value that arithmetic below relies on checked.
    fn load(checkpoint: &Checkpoint) -> Result<Self> {
        /// No real model is wider, deeper or longer.
        const LARGEST: usize = 1 << 24;
        let config: Self = config::parse(checkpoint)?;
        let refuse = |reason: String| Err(config::refuse(checkpoint, reason));
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("num_attention_heads", config.num_attention_heads),
            ("num_key_value_heads", config.num_key_value_heads),
            ("max_position_embeddings", config.max_position_embeddings),
            ("head_dim", config.head_dim.unwrap_or(1)),
        ];
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..LARGEST).contains(size)) {
            return refuse(format!("`{name}` is {size}, expected 1 to {}", LARGEST - 1));
        }
        if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
            return refuse("`num_attention_heads` is not a multiple of `num_key_value_heads`".into());
        }
        if config.head_dim() == 0 || !config.head_dim().is_multiple_of(2) {
            return refuse(format!("the head dimension is {}, expected an even number", config.head_dim()));
        }
        if config.use_sliding_window {
            return refuse("`use_sliding_window` is not supported for this architecture".into());
        }
        if config.hidden_act != "silu" {
            return refuse(format!(
                "activation `{}` is not supported for this architecture",
                config.hidden_act
            ));
        }
        if !(config.rms_norm_eps > 0.0 && config.rms_norm_eps < 1.0) {
            return refuse(format!(
                "`rms_norm_eps` is {}, expected a small positive number",
                config.rms_norm_eps
            ));
        }
        Ok(config)
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }
}

#[derive(Debug)]
struct Block {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    mlp: GatedMlp,
}

/// A loaded model.
#[derive(Debug)]
struct Qwen2 {
    config: ModelConfig,
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    rotary: Rotary,
    device: Device,
}

/// Loads a checkpoint of this architecture.
///
/// # Errors
/// When the configuration is out of range, or a tensor is missing or not what it says.
pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn CausalLm>> {
    let c = Config::load(checkpoint)?;
    let shape = AttentionShape {
        hidden_size: c.hidden_size,
        heads: c.num_attention_heads,
        kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim(),
        qkv_bias: true,
    };
    let tensors = checkpoint.tensors("model");
    let norm = |name, at: &crate::checkpoint::Tensors| {
        RmsNorm::load(&at.pp(name), c.hidden_size, c.rms_norm_eps, device)
    };
    let embedding = Embedding::load(&tensors.pp("embed_tokens"), c.vocab_size, c.hidden_size)?;
    let head = if c.tie_word_embeddings {
        embedding.as_head()
    } else {
        Linear::load(&checkpoint.tensors("lm_head"), c.vocab_size, c.hidden_size, false, device)?
    };
    let blocks = (0..c.num_hidden_layers)
        .map(|i| {
            let at = tensors.pp("layers").pp(i);
            Ok(Block {
                input_norm: norm("input_layernorm", &at)?,
                attention: Attention::load(&at.pp("self_attn"), shape, device)?,
                post_attention_norm: norm("post_attention_layernorm", &at)?,
                mlp: GatedMlp::load(&at.pp("mlp"), c.hidden_size, c.intermediate_size, device)?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(Box::new(Qwen2 {
        config: ModelConfig {
            architecture: config::architecture(checkpoint)?.into(),
            vocab_size: c.vocab_size,
            context_length: c.max_position_embeddings,
            hidden_size: c.hidden_size,
            num_hidden_layers: c.num_hidden_layers,
            num_key_value_heads: c.num_key_value_heads,
            head_dim: c.head_dim(),
        },
        embedding,
        blocks,
        norm: norm("norm", &tensors)?,
        head,
        rotary: Rotary::new(c.head_dim(), config::rope_theta(checkpoint)?),
        device: device.clone(),
    }))
}

impl CausalLm for Qwen2 {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embed(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        self.embedding.forward(&Tensor::new(ids, &self.device)?)
    }

    fn step(&self, past: usize, n: usize) -> candle_core::Result<Step> {
        let rotary = self.rotary.table(past, n, &self.device)?;
        Ok(Step { rotary })
    }

    fn attention(
        &self,
        block: usize,
        x: &Tensor,
        step: &Step,
        cache: &mut LayerCache,
    ) -> candle_core::Result<Tensor> {
        let Block { input_norm, attention, .. } = &self.blocks[block];
        x + attention.forward(input_norm.forward(x)?, &step.rotary, cache)?
    }

    fn mlp(&self, block: usize, x: &Tensor) -> candle_core::Result<Tensor> {
        let Block { post_attention_norm, mlp, .. } = &self.blocks[block];
        x + mlp.forward(post_attention_norm.forward(x)?)?
    }

    fn norm(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.norm.forward(x)
    }

    fn head(&self, hidden: Tensor) -> candle_core::Result<Tensor> {
        self.head.forward(&Input::new(hidden))
    }
}
