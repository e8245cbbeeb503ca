//! Where a checkpoint keeps its chat template.

use std::path::Path;

use crate::Result;
use crate::json_file::read_text;
use crate::tokenizer_config::{Templates, TokenizerConfig};

/// What a checkpoint's files say about its chat template.
#[derive(Debug, Default)]
pub(super) struct TemplateFiles {
    pub default: Option<String>,
    pub tool_use: Option<String>,
    /// Variable and text, such as `("eos_token", "<|im_end|>")`.
    pub special_tokens: Vec<(String, String)>,
}

impl TemplateFiles {
    pub fn read(dir: &Path) -> Result<Self> {
        let config = TokenizerConfig::from_dir(dir)?;
        let tokens = [
            ("bos_token", config.bos_token),
            ("eos_token", config.eos_token),
            ("unk_token", config.unk_token),
            ("pad_token", config.pad_token),
        ];
        let mut files = TemplateFiles {
            special_tokens: tokens
                .into_iter()
                .filter_map(|(name, token)| Some((name.to_owned(), token?.text().to_owned())))
                .collect(),
            ..TemplateFiles::default()
        };
        if let Some(text) = read_text(&dir.join("chat_template.jinja"))? {
            files.default = Some(text);
            return Ok(files);
        }
        match config.chat_template {
            None => {}
            Some(Templates::One(text)) => files.default = Some(text),
            Some(Templates::Named(list)) => {
                let take = |name| {
                    let position = list.iter().position(|entry| entry.name == name)?;
                    Some(list[position].template.clone())
                };
                files.default = take("default");
                files.tool_use = take("tool_use");
            }
        }
        Ok(files)
    }
}
