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
    /// Key and value heads of a block.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A checkpoint with this configuration and no tensors.
    fn checkpoint(config: &Value) -> (tempfile::TempDir, Checkpoint) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let header = b"\x08\0\0\0\0\0\0\0{}      ";
        std::fs::write(dir.path().join("model.safetensors"), header).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        (dir, checkpoint)
    }

    fn theta(config: Value) -> Result<f64> {
        rope_theta(&checkpoint(&config).1)
    }

    #[test]
    fn rope_theta_in_both_styles() {
        assert_eq!(theta(json!({"rope_theta": 1e6, "rope_scaling": null})).unwrap(), 1e6);
        assert_eq!(
            theta(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})).unwrap(),
            5e5
        );
        // Where both are given, the newer style is the one that transformers reads.
        assert_eq!(theta(json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}})).unwrap(), 5e5);
    }

    #[test]
    fn scaled_or_absurd_rotary_embeddings_are_refused() {
        let refused = |config| theta(config).unwrap_err().to_string();
        let yarn = json!({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}});
        assert!(refused(yarn).contains("`yarn`"));
        let linear = json!({"rope_parameters": {"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0}});
        assert!(refused(linear).contains("`linear`"));
        assert!(refused(json!({})).contains("no `rope_theta`"));
        assert!(refused(json!({"rope_theta": 0.5})).contains("0.5"));
    }

    #[test]
    fn the_real_configurations_are_understood() {
        let real = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/real"));
        if !real.exists() {
            eprintln!("skipped: {} is absent", real.display());
            return;
        }
        for name in ["qwen2.5-0.5b-instruct", "qwen2.5-1.5b-instruct", "qwen2.5-7b-instruct"] {
            let text = std::fs::read(real.join(name).join("config.json")).unwrap();
            let (_dir, checkpoint) = checkpoint(&serde_json::from_slice(&text).unwrap());
            assert_eq!(architecture(&checkpoint).unwrap(), "Qwen2ForCausalLM");
            assert_eq!(rope_theta(&checkpoint).unwrap(), 1e6);
        }
    }
}
