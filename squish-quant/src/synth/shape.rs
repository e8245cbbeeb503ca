//! The tensors of a model, from its configuration alone: a list for each family.

use crate::Result;
use serde_json::Value;
use squish_models::{Error, model::ARCHITECTURES};
use std::{collections::BTreeMap, fs, path::Path};

/// No real model is wider,
const LARGEST: usize = 1 << 24;
/// deeper,
const MOST_LAYERS: usize = 1 << 12;
/// or has more weights.
const MOST_WEIGHTS: u128 = 1 << 42;

/// What an unpacked tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Zeros: biases, and norms that store their distance from 1.
    Zero,
    /// Ones: norms.
    One,
    /// Random weights.
    Random,
}

/// A tensor of the model.
#[derive(Debug, Clone)]
pub struct Dense {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// What it holds where it is not packed.
    pub fill: Fill,
}

impl Dense {
    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A model's configuration and its tensors by name.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The contents of `config.json`, without what it says of an earlier quantisation.
    pub config: Value,
    /// The tensors.
    pub tensors: BTreeMap<String, Dense>,
}

/// What tells the families apart.
struct Family {
    /// Name in `config.json`.
    architecture: &'static str,
    /// Width of a head where the configuration gives none; absent, the hidden size over the heads.
    head_dim: Option<usize>,
    /// Whether query, key and value have biases; absent, as `attention_bias` says, and then the output too.
    qkv_bias: Option<bool>,
    /// Whether heads of queries and keys have norms.
    head_norms: bool,
    /// Norms of a block.
    norms: &'static [&'static str],
    /// What a norm that changes nothing holds.
    norm: Fill,
    /// Whether the head is tied where the configuration does not say.
    tied: bool,
}

const PRE_NORMS: &[&str] = &["input_layernorm", "post_attention_layernorm"];
const SANDWICH_NORMS: &[&str] = &[
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
];

const FAMILIES: &[Family] = &[
    Family {
        architecture: "Qwen2ForCausalLM",
        head_dim: None,
        qkv_bias: Some(true),
        head_norms: false,
        norms: PRE_NORMS,
        norm: Fill::One,
        tied: false,
    },
    Family {
        architecture: "Qwen3ForCausalLM",
        head_dim: Some(128),
        qkv_bias: None,
        head_norms: true,
        norms: PRE_NORMS,
        norm: Fill::One,
        tied: false,
    },
    Family {
        architecture: "Gemma3ForCausalLM",
        head_dim: Some(256),
        qkv_bias: None,
        head_norms: true,
        norms: SANDWICH_NORMS,
        norm: Fill::Zero,
        tied: true,
    },
];

impl Shape {
    /// The shape that a `config.json` describes.
    ///
    /// # Errors
    /// When it cannot be read, leaves out a size, or is of an architecture that this build cannot run.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(|source| crate::Error::Io { path: path.into(), source })?;
        let refuse = |reason: String| Error::Config { path: path.into(), reason };
        let mut config: Value =
            serde_json::from_slice(&text).map_err(|e| refuse(format!("not valid JSON: {e}")))?;
        // Of the weights that this shape once had.
        config.as_object_mut().map(|fields| fields.remove("quantization_config"));
        let found = config.pointer("/architectures/0").and_then(Value::as_str);
        let found = found.ok_or_else(|| refuse("no `architectures`".into()))?;
        let runs = |family: &&Family| ARCHITECTURES.iter().any(|(name, _)| *name == family.architecture);
        let Some(family) = FAMILIES.iter().filter(runs).find(|family| family.architecture == found) else {
            let supported = FAMILIES.iter().filter(runs).map(|f| f.architecture).collect::<Vec<_>>();
            let (found, supported) = (found.to_string(), supported.join(", "));
            return Err(Error::Architecture { path: path.into(), found, supported }.into());
        };
        let tensors = family.tensors(&config).map_err(refuse)?;
        let weights: u128 =
            tensors.values().map(|t| t.shape.iter().map(|&n| n as u128).product::<u128>()).sum();
        if weights > MOST_WEIGHTS {
            return Err(refuse(format!("{weights} weights are more than any model has")).into());
        }
        Ok(Self { config, tensors })
    }
}

/// The field `name` of a configuration, a size; what is wrong with it otherwise.
fn size(config: &Value, name: &str, default: Option<usize>) -> Result<usize, String> {
    match config.get(name).filter(|value| !value.is_null()) {
        None => default.ok_or_else(|| format!("no `{name}`")),
        Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..LARGEST).contains(&n) => Ok(n),
            _ => Err(format!("`{name}` is {value}, expected 1 to {}", LARGEST - 1)),
        },
    }
}

impl Family {
    fn tensors(&self, config: &Value) -> Result<BTreeMap<String, Dense>, String> {
        let size = |name| size(config, name, None);
        let switch = |name: &str| config.get(name).and_then(Value::as_bool);
        let (hidden, intermediate, layers, vocab) = (
            size("hidden_size")?,
            size("intermediate_size")?,
            size("num_hidden_layers")?,
            size("vocab_size")?,
        );
        let (heads, kv_heads) = (size("num_attention_heads")?, size("num_key_value_heads")?);
        let head_dim = self::size(config, "head_dim", Some(self.head_dim.unwrap_or(hidden / heads)))?;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        if layers > MOST_LAYERS || q.max(kv) >= LARGEST {
            return Err(format!("{layers} layers of {heads} heads are more than any model has"));
        }
        let qkv_bias = self.qkv_bias.or(switch("attention_bias")).unwrap_or(false);
        let output_bias = self.qkv_bias.is_none() && qkv_bias;

        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize], fill| {
            tensors.insert(name, Dense { shape: shape.to_vec(), fill });
        };
        add("model.embed_tokens.weight".into(), &[vocab, hidden], Fill::Random);
        add("model.norm.weight".into(), &[hidden], self.norm);
        if !switch("tie_word_embeddings").unwrap_or(self.tied) {
            add("lm_head.weight".into(), &[vocab, hidden], Fill::Random);
        }
        for i in 0..layers {
            let at = format!("model.layers.{i}");
            for norm in self.norms {
                add(format!("{at}.{norm}.weight"), &[hidden], self.norm);
            }
            for (name, rows, cols, bias) in [
                ("self_attn.q_proj", q, hidden, qkv_bias),
                ("self_attn.k_proj", kv, hidden, qkv_bias),
                ("self_attn.v_proj", kv, hidden, qkv_bias),
                ("self_attn.o_proj", hidden, q, output_bias),
                ("mlp.gate_proj", intermediate, hidden, false),
                ("mlp.up_proj", intermediate, hidden, false),
                ("mlp.down_proj", hidden, intermediate, false),
            ] {
                add(format!("{at}.{name}.weight"), &[rows, cols], Fill::Random);
                if bias {
                    add(format!("{at}.{name}.bias"), &[rows], Fill::Zero);
                }
            }
            if self.head_norms {
                add(format!("{at}.self_attn.q_norm.weight"), &[head_dim], self.norm);
                add(format!("{at}.self_attn.k_norm.weight"), &[head_dim], self.norm);
            }
        }
        Ok(tensors)
    }
}
