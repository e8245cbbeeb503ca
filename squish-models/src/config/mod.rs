//! What is read from `config.json`.

mod rope;

use crate::{Checkpoint, Error, Result, layers::NormStyle};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::path::PathBuf;

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
    /// Positions that some blocks see at most, where there are such.
    pub sliding_window: Option<usize>,
    /// How many blocks these are.
    pub num_sliding_layers: usize,
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
        .ok_or_else(|| Error::Config { path: checkpoint.config_path(), reason: "no `architectures`".into() })
}

/// The fields of `config.json` that describe a language model.
#[derive(Debug, Clone)]
pub struct Fields {
    path: PathBuf,
    values: Value,
}

/// The sizes that families give under the same names.
#[derive(Debug, Clone, Deserialize)]
pub struct Sizes {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    head_dim: Option<usize>,
    /// Positions.
    pub max_position_embeddings: usize,
    rms_norm_eps: f64,
}

/// What a block's attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum LayerType {
    /// All positions before a new one.
    #[serde(rename = "full_attention")]
    Full,
    /// The latest of them.
    #[serde(rename = "sliding_attention")]
    Sliding,
}

impl Sizes {
    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// The norms.
    pub fn norm(&self) -> NormStyle {
        NormStyle { eps: self.rms_norm_eps, one_plus: false }
    }
}

impl Fields {
    /// The fields of a checkpoint, with `defaults` for those that it leaves out.
    pub fn new(checkpoint: &Checkpoint, defaults: Value) -> Self {
        let mut values = checkpoint.config().clone();
        fill(&mut values, defaults);
        Self { path: checkpoint.config_path(), values }
    }

    /// Those of the object `key`, with `defaults` for what it leaves out.
    ///
    /// # Errors
    /// [`Error::Config`] where there is no such object.
    pub fn inner(&self, key: &str, defaults: Value) -> Result<Self> {
        let mut values = self.given(key).filter(|v| v.is_object()).cloned();
        let values = values.as_mut().ok_or_else(|| self.refuse(format!("no object `{key}`")))?;
        fill(values, defaults);
        Ok(Self { path: self.path.clone(), values: values.take() })
    }

    /// A field that is there and not null.
    pub fn given(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|v| !v.is_null())
    }

    /// A number between `least` and `most`; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Config`], which names the field.
    pub fn number(&self, key: &str, least: f64, most: f64) -> Result<Option<f64>> {
        let Some(value) = self.given(key) else { return Ok(None) };
        match value.as_f64().filter(|v| (least..=most).contains(v)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.refuse(format!("`{key}` is {value}, expected a number from {least} to {most}"))),
        }
    }

    /// A switch; false where it is not there.
    ///
    /// # Errors
    /// [`Error::Config`], which names the field.
    pub fn switch(&self, key: &str) -> Result<bool> {
        let wrong = |value| self.refuse(format!("`{key}` is {value}, expected true or false"));
        self.given(key).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| wrong(value)))
    }

    /// The type of each of so many blocks; `None` where `layer_types` is not there.
    ///
    /// # Errors
    /// [`Error::Config`], which names the field.
    pub fn layer_types(&self, blocks: usize) -> Result<Option<Vec<LayerType>>> {
        let Some(list) = self.given("layer_types") else { return Ok(None) };
        let types = Vec::<LayerType>::deserialize(list);
        let types = types.map_err(|e| self.refuse(format!("`layer_types`: {e}")))?;
        if types.len() == blocks {
            return Ok(Some(types));
        }
        Err(self
            .refuse(format!("`layer_types` has {} entries, `num_hidden_layers` is {blocks}", types.len())))
    }

    /// Refuses a field with another value than the one that is implemented. Where it is not there, all is well.
    ///
    /// # Errors
    /// [`Error::Config`], which names the field.
    pub fn only(&self, key: &str, supported: impl Into<Value>) -> Result<()> {
        let supported = supported.into();
        let same = |found: &Value| match (found.as_f64(), supported.as_f64()) {
            (Some(found), Some(supported)) => found == supported,
            _ => *found == supported,
        };
        match self.given(key).filter(|found| !same(found)) {
            None => Ok(()),
            Some(found) => {
                let expected = format!("this architecture is supported with {supported}");
                Err(self.refuse(format!("`{key}` is {found}, {expected}")))
            }
        }
    }

    /// The fields as an architecture's own structure.
    ///
    /// # Errors
    /// [`Error::Config`], which names the field.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.values).map_err(|e| self.refuse(e.to_string()))
    }

    /// The sizes, with every value that later arithmetic relies on checked.
    ///
    /// # Errors
    /// [`Error::Config`], which names the field.
    pub fn sizes(&self) -> Result<Sizes> {
        /// No real model is wider, deeper or longer.
        const LARGEST: usize = 1 << 24;
        let sizes: Sizes = self.parse()?;
        let named = [
            ("vocab_size", sizes.vocab_size),
            ("hidden_size", sizes.hidden_size),
            ("intermediate_size", sizes.intermediate_size),
            ("num_hidden_layers", sizes.num_hidden_layers),
            ("num_attention_heads", sizes.num_attention_heads),
            ("num_key_value_heads", sizes.num_key_value_heads),
            ("max_position_embeddings", sizes.max_position_embeddings),
            ("head_dim", sizes.head_dim.unwrap_or(1)),
        ];
        if let Some((name, size)) = named.iter().find(|(_, size)| !(1..LARGEST).contains(size)) {
            return Err(self.refuse(format!("`{name}` is {size}, expected 1 to {}", LARGEST - 1)));
        }
        if !sizes.num_attention_heads.is_multiple_of(sizes.num_key_value_heads) {
            return Err(self.refuse("`num_attention_heads` is not a multiple of `num_key_value_heads`"));
        }
        let head_dim = sizes.head_dim();
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(self.refuse(format!("the head dimension is {head_dim}, expected an even number")));
        }
        if !(sizes.rms_norm_eps > 0.0 && sizes.rms_norm_eps < 1.0) {
            let found = sizes.rms_norm_eps;
            return Err(self.refuse(format!("`rms_norm_eps` is {found}, expected a small positive number")));
        }
        Ok(sizes)
    }

    /// An error about these fields.
    pub fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::Config { path: self.path.clone(), reason: reason.into() }
    }
}

/// Adds the defaults for what an object leaves out.
fn fill(values: &mut Value, defaults: Value) {
    if let (Value::Object(values), Value::Object(defaults)) = (values, defaults) {
        let missing = defaults.into_iter().filter(|(key, _)| !values.contains_key(key));
        let missing: Map<String, Value> = missing.collect();
        values.extend(missing);
    }
}

#[cfg(test)]
mod tests;
