//! What is read from `config.json`.

use crate::{Checkpoint, Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What every architecture has, as applications need it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ModelConfig {
    /// The architecture's name, such as `Qwen2ForCausalLM`.
    pub architecture: String,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Positions the model was made for.
    pub context_length: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
}

/// The architecture that `config.json` names first.
///
/// # Errors
/// [`Error::Config`] when it names none.
pub fn architecture(checkpoint: &Checkpoint) -> Result<&str> {
    let names = checkpoint.config().get("architectures").and_then(Value::as_array);
    names
        .and_then(|n| n.first())
        .and_then(Value::as_str)
        .ok_or_else(|| refuse(checkpoint, "no `architectures`"))
}

/// Parses `config.json` as an architecture's own structure.
///
/// # Errors
/// [`Error::Config`], which names the field.
pub fn parse<T: DeserializeOwned>(checkpoint: &Checkpoint) -> Result<T> {
    T::deserialize(checkpoint.config()).map_err(|e| refuse(checkpoint, e.to_string()))
}

/// The base of the rotary embedding, in either of the styles that Hugging Face writes:
/// `rope_theta` beside `rope_scaling`, or both inside `rope_parameters`.
///
/// # Errors
/// [`Error::Config`] for a missing or absurd base, and for scaled variants: running one unscaled would be silently wrong.
pub fn rope_theta(checkpoint: &Checkpoint) -> Result<f64> {
    let config = checkpoint.config();
    let inner = |key| config.get(key).filter(|v: &&Value| !v.is_null());
    let theta = match inner("rope_parameters").and_then(|p| p.get("rope_theta")) {
        Some(theta) => Some(theta),
        None => inner("rope_theta"),
    };
    for scaling in ["rope_scaling", "rope_parameters"].into_iter().filter_map(inner) {
        let kind =
            scaling.get("rope_type").or(scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
        if kind != "default" {
            return Err(refuse(checkpoint, format!("rotary embeddings of type `{kind}` are not supported")));
        }
    }
    match theta.and_then(Value::as_f64) {
        Some(theta) if theta.is_finite() && theta > 1.0 => Ok(theta),
        Some(theta) => Err(refuse(checkpoint, format!("`rope_theta` is {theta}, expected a number above 1"))),
        None => Err(refuse(checkpoint, "no `rope_theta`")),
    }
}

/// An error about `config.json`.
pub fn refuse(checkpoint: &Checkpoint, reason: impl Into<String>) -> Error {
    Error::Config { path: checkpoint.config_path(), reason: reason.into() }
}
