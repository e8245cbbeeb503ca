//! The checkpoint's own defaults: `generation_config.json`, with `config.json` to fall back on.

use std::path::Path;

use serde::Deserialize;

use crate::json_file::read_optional;
use crate::{GenerationOptions, Result};

/// How the checkpoint's makers meant it to be sampled, and the tokens that end an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// Defaults for [`Pipeline`](crate::Pipeline).
    pub options: GenerationOptions,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads the files in `dir`; both are optional.
    ///
    /// As in transformers, without `do_sample: true` the default is greedy, and sampling without a
    /// `top_k` keeps 50 tokens. `eos_token_id` is a number or a list, and is taken from
    /// `config.json` when `generation_config.json` does not have it.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read) and [`Error::Json`](crate::Error::Json) name the file,
    /// [`Error::Option`](crate::Error::Option) a value outside its range.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let generation: GenerationFile =
            read_optional(&dir.join("generation_config.json"), "generation options in a JSON object")?
                .unwrap_or_default();
        let eos = match generation.eos_token_id {
            Some(ref ids) => Some(ids.to_vec()),
            None => read_optional::<ModelFile>(
                &dir.join("config.json"),
                "a model configuration in a JSON object",
            )?
            .and_then(|config| config.eos_token_id)
            .map(|ids| ids.to_vec()),
        };
        let options = generation.options();
        options.validate()?;
        Ok(GenerationConfig { options, eos_token_ids: eos.unwrap_or_default() })
    }
}

/// Tokens kept by transformers when a checkpoint asks for sampling but names no `top_k`.
const DEFAULT_TOP_K: usize = 50;

#[derive(Debug, Default, Deserialize)]
struct GenerationFile {
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    max_new_tokens: Option<usize>,
    eos_token_id: Option<TokenIds>,
}

impl GenerationFile {
    fn options(&self) -> GenerationOptions {
        let plain = GenerationOptions::default();
        let sampled = self.do_sample.unwrap_or(false);
        GenerationOptions {
            repetition_penalty: self.repetition_penalty.unwrap_or(plain.repetition_penalty),
            temperature: if sampled { self.temperature.unwrap_or(plain.temperature) } else { 0.0 },
            // 0 is the files' way to say "off".
            top_k: Some(self.top_k.unwrap_or(DEFAULT_TOP_K)).filter(|&k| k > 0),
            top_p: self.top_p.unwrap_or(plain.top_p),
            min_p: self.min_p.unwrap_or(plain.min_p),
            max_tokens: self.max_new_tokens,
            ..plain
        }
    }
}

#[derive(Debug, Deserialize)]
struct ModelFile {
    eos_token_id: Option<TokenIds>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    fn to_vec(&self) -> Vec<u32> {
        match self {
            TokenIds::One(id) => vec![*id],
            TokenIds::Many(ids) => ids.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn read(generation: Option<&str>, config: Option<&str>) -> Result<GenerationConfig> {
        let dir = tempfile::tempdir().unwrap();
        if let Some(text) = generation {
            std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
        }
        if let Some(text) = config {
            std::fs::write(dir.path().join("config.json"), text).unwrap();
        }
        GenerationConfig::from_dir(dir.path())
    }

    #[test]
    fn the_usual_file() {
        let text = r#"{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
            "repetition_penalty": 1.1, "eos_token_id": [7, 5], "transformers_version": "4.49.0"}"#;
        let config = read(Some(text), Some(r#"{"eos_token_id": 1}"#)).unwrap();
        assert_eq!(config.eos_token_ids, [7, 5]);
        let expected =
            GenerationOptions::default().temperature(0.7).top_k(20).top_p(0.8).repetition_penalty(1.1);
        assert_eq!(config.options, expected);
    }

    #[test]
    fn without_do_sample_it_is_greedy() {
        let config = read(Some(r#"{"temperature": 0.7, "max_new_tokens": 9}"#), None).unwrap();
        assert_eq!(config.options.temperature, 0.0);
        assert_eq!(config.options.top_k, Some(50));
        assert_eq!(config.options.max_tokens, Some(9));
        assert!(config.eos_token_ids.is_empty());
    }

    #[test]
    fn eos_falls_back_to_the_model_configuration() {
        let config = read(Some(r#"{"top_k": 0}"#), Some(r#"{"eos_token_id": 3}"#)).unwrap();
        assert_eq!(config.eos_token_ids, [3]);
        assert_eq!(config.options.top_k, None);
        assert!(read(None, None).unwrap().eos_token_ids.is_empty());
    }

    #[test]
    fn bad_files_are_named() {
        let error = read(Some("{"), None).unwrap_err();
        assert!(matches!(error, Error::Json { .. }));
        assert!(error.to_string().contains("generation_config.json"), "{error}");
        let error = read(Some(r#"{"eos_token_id": "x"}"#), None).unwrap_err();
        assert!(matches!(error, Error::Json { .. }));
        let error = read(Some(r#"{"top_p": 7}"#), None).unwrap_err();
        assert!(matches!(error, Error::Option { field: "top_p", .. }));
    }
}
