//! Text to tokens, as a checkpoint's files say.

use crate::{Error, Result, output::io_error};
use serde::Deserialize;
use squish_models::checkpoint::text_file;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// A checkpoint's tokenizer.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Tokenizer,
    path: PathBuf,
    /// What a text begins with: a BOS for Gemma, nothing for Qwen.
    prefix: Vec<u32>,
}

/// The fields of `tokenizer_config.json` that matter here.
#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(default)]
    add_bos_token: bool,
    bos_token: Option<BosToken>,
}

/// A special token as the files write it: its text, or an object with the text as `content`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum BosToken {
    Text(String),
    Object { content: String },
}

impl Encoder {
    /// Reads `tokenizer.json` and, where it is there, `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Tokenizer`].
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = text_file::read(&path).map_err(io_error(&path))?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(refuse(&path))?;
        // Settings for training batches, which would cut or pad a text.
        tokenizer.with_truncation(None).map_err(refuse(&path))?;
        tokenizer.with_padding(None);
        // The tokenizer itself may add tokens, or leave that to whoever reads its configuration.
        let mut prefix = tokenizer.encode_fast("", true).map_err(refuse(&path))?.get_ids().to_vec();
        if prefix.is_empty() {
            prefix.extend(bos(dir)?.and_then(|token| tokenizer.token_to_id(&token)));
        }
        Ok(Self { tokenizer, path, prefix })
    }

    /// The tokens of a text, nothing added.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(text, false).map_err(refuse(&self.path))?.get_ids().to_vec())
    }

    /// What a prompt begins with: a BOS where the checkpoint asks for one.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// What a prompt of the checkpoint in `dir` begins with; nothing where it has no tokenizer.
    ///
    /// # Errors
    /// As [`Encoder::from_dir`].
    pub fn prefix_of(dir: &Path) -> Result<Vec<u32>> {
        if dir.join("tokenizer.json").exists() { Ok(Self::from_dir(dir)?.prefix) } else { Ok(Vec::new()) }
    }

    /// The text of tokens, without special tokens. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(refuse(&self.path))
    }
}

/// The text of the BOS token, if `tokenizer_config.json` asks for one.
fn bos(dir: &Path) -> Result<Option<String>> {
    let path = dir.join("tokenizer_config.json");
    let config: Config = match text_file::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| refuse(&path)(e.into()))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Config::default(),
        Err(e) => return Err(io_error(&path)(e)),
    };
    let token = config.bos_token.filter(|_| config.add_bos_token);
    Ok(token.map(|token| match token {
        BosToken::Text(text) | BosToken::Object { content: text } => text,
    }))
}

/// What went wrong with the file `path`.
fn refuse(path: &Path) -> impl Fn(tokenizers::Error) -> Error + '_ {
    move |e| Error::Tokenizer { path: path.into(), reason: e.to_string() }
}
