//! `tokenizer_config.json`: special tokens and, in many checkpoints, the chat template.

use std::path::Path;

use serde::Deserialize;

use crate::Result;
use crate::json_file::read_optional;

/// The fields that matter here, under Hugging Face's names.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct TokenizerConfig {
    #[serde(default)]
    pub add_bos_token: bool,
    pub bos_token: Option<SpecialToken>,
    pub eos_token: Option<SpecialToken>,
    pub unk_token: Option<SpecialToken>,
    pub pad_token: Option<SpecialToken>,
    pub chat_template: Option<Templates>,
}

impl TokenizerConfig {
    /// Reads the file in `dir`; without one, nothing is said.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        Ok(read_optional(&path, "a tokenizer configuration in a JSON object")?.unwrap_or_default())
    }
}

/// A special token as the files write it: its text, or an object with the text as `content`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum SpecialToken {
    Text(String),
    Object { content: String },
}

impl SpecialToken {
    pub fn text(&self) -> &str {
        match self {
            SpecialToken::Text(text) | SpecialToken::Object { content: text } => text,
        }
    }
}

/// One template, or several by name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

/// A template for one purpose, such as `default` or `tool_use`.
#[derive(Debug, Deserialize)]
pub(crate) struct NamedTemplate {
    pub name: String,
    pub template: String,
}
