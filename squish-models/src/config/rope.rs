//! Rotary embeddings in a configuration, in either of the styles that Hugging Face writes: `rope_theta` beside
//! `rope_scaling`, or both inside `rope_parameters`.

use super::Fields;
use crate::{
    Result,
    layers::{Rope, RopeScaling},
};
use serde::Deserialize;
use serde_json::Value;

impl Fields {
    /// The rotary embedding.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a missing or absurd base, and for scalings that are unknown, or that have fields
    /// which are: running with another than the one meant would be silently wrong.
    pub fn rope(&self) -> Result<Rope> {
        self.only("partial_rotary_factor", 1.0)?;
        match self.given("rope_parameters") {
            // Where both are given, the newer style is the one that transformers reads.
            Some(parameters) => {
                self.rope_of("rope_parameters", parameters.get("rope_theta").is_none(), parameters)
            }
            None => {
                let unscaled = Value::Object(serde_json::Map::new());
                self.rope_of("rope_scaling", true, self.given("rope_scaling").unwrap_or(&unscaled))
            }
        }
    }

    /// The rotary embedding of layers of one type, where `rope_parameters` has those of each; `None` where not.
    ///
    /// # Errors
    /// As [`Fields::rope`].
    pub fn rope_of_type(&self, layer_type: &str) -> Result<Option<Rope>> {
        self.only("partial_rotary_factor", 1.0)?;
        match self.given("rope_parameters").and_then(|p| p.get(layer_type)).filter(|v| !v.is_null()) {
            Some(parameters) => {
                let key = format!("rope_parameters.{layer_type}");
                self.rope_of(&key, false, parameters).map(Some)
            }
            None => Ok(None),
        }
    }

    /// What the object `key` says; the base stands in it, or `outside`.
    fn rope_of(&self, key: &str, outside: bool, parameters: &Value) -> Result<Rope> {
        let refuse = |reason: String| self.refuse(format!("`{key}`: {reason}"));
        let Some(parameters) = parameters.as_object() else {
            return Err(self.refuse(format!("`{key}` is {parameters}, expected an object")));
        };
        let mut parameters = parameters.clone();
        let inside = parameters.remove("rope_theta");
        let theta = if outside { self.given("rope_theta").cloned() } else { inside };
        let theta = self.base("rope_theta", theta.as_ref())?;

        // The name was `type` once.
        let old_name = parameters.remove("type");
        let name = parameters.remove("rope_type").or(old_name).unwrap_or_else(|| "default".into());
        parameters.insert("rope_type".into(), name.clone());
        parameters.retain(|_, value| !value.is_null());
        let scaling = RopeScaling::deserialize(Value::Object(parameters))
            .map_err(|e| refuse(format!("rotary embeddings of type {name}: {e}")))?;
        match scaling.fault() {
            Some(fault) => Err(refuse(fault)),
            None => Ok(Rope { theta, scaling }),
        }
    }

    /// The base of a rotary embedding, in the field `key`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), which names the field.
    pub fn base(&self, key: &str, value: Option<&Value>) -> Result<f64> {
        match value.map(|v| (v, v.as_f64())) {
            Some((_, Some(theta))) if theta.is_finite() && theta > 1.0 => Ok(theta),
            Some((value, _)) => Err(self.refuse(format!("`{key}` is {value}, expected a number above 1"))),
            None => Err(self.refuse(format!("no `{key}`"))),
        }
    }
}
