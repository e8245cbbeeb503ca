//! Text to tokens and back.

use std::path::Path;
use std::sync::Arc;

use squish_models::checkpoint::text_file;

use crate::tokenizer_config::{SpecialToken, TokenizerConfig};
use crate::{Detokenizer, Error, Result};

/// A checkpoint's tokenizer. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    /// Put before plain text when the checkpoint asks for it.
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `dir`, and `add_bos_token`, `bos_token` and `eos_token` from
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::TokenizerFile`] and [`Error::Json`] name the file.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join("tokenizer.json");
        let bytes = text_file::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let broken =
            |e: tokenizers::Error| Error::TokenizerFile { path: path.clone(), message: e.to_string() };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(broken)?;
        // Settings for training batches, which would cut or pad a prompt.
        inner.with_truncation(None).map_err(broken)?;
        inner.with_padding(None);

        let config = TokenizerConfig::from_dir(dir.as_ref())?;
        let id = |token: Option<SpecialToken>| inner.token_to_id(token?.text());
        let bos = id(config.bos_token.filter(|_| config.add_bos_token));
        let eos = id(config.eos_token);
        Ok(Tokenizer { inner: Arc::new(inner), bos, eos })
    }

    /// Tokens of text that a chat template rendered: special tokens written in it are recognised,
    /// and nothing is added.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(tokenizer_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Tokens of plain text to be completed: like [`encode`](Self::encode), with the special tokens
    /// around it that the checkpoint asks for (a BOS for Gemma, nothing for Qwen).
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true).map_err(tokenizer_error)?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(bos) = self.bos.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Text of `tokens`, without special tokens. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, true).map_err(tokenizer_error)
    }

    /// Decodes tokens one at a time.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.clone())
    }

    /// The id of `token`, such as `"<|im_end|>"`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of `eos_token` in `tokenizer_config.json`.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos
    }

    /// Whether `token` has text: it is known, and not special.
    pub(crate) fn is_text(&self, token: u32) -> bool {
        self.inner
            .id_to_token(token)
            .is_some_and(|text| !self.inner.get_added_vocabulary().is_special_token(&text))
    }
}

fn tokenizer_error(e: tokenizers::Error) -> Error {
    Error::Tokenizer { message: e.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{real_dir, tiny_tokenizer_dir};

    #[test]
    fn special_tokens_in_the_text_are_one_token_each() {
        let dir = tiny_tokenizer_dir();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let end = tokenizer.token_id("<|end|>").unwrap();
        let ids = tokenizer.encode("ab<|end|>").unwrap();
        assert_eq!(ids.last(), Some(&end));
        assert_eq!(tokenizer.decode(&ids).unwrap(), "ab");
        assert!(!tokenizer.is_text(end));
        assert!(!tokenizer.is_text(1_000_000));
    }

    #[test]
    fn bos_comes_first_in_plain_text_where_asked_for_and_only_once() {
        let dir = tiny_tokenizer_dir();
        let config = r#"{"add_bos_token": true, "bos_token": {"content": "<|end|>"}}"#;
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let bos = tokenizer.token_id("<|end|>").unwrap();
        let plain = tokenizer.encode("a").unwrap();
        let with_bos = [&[bos], plain.as_slice()].concat();
        assert_eq!(tokenizer.encode_plain("a").unwrap(), with_bos);
        assert_eq!(tokenizer.encode_plain("<|end|>a").unwrap(), with_bos);
        assert_eq!(tokenizer.encode_plain("").unwrap(), [bos]);
    }

    #[test]
    fn bad_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tokenizer::from_dir(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Read { .. }));
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        let error = Tokenizer::from_dir(dir.path()).unwrap_err();
        assert!(matches!(error, Error::TokenizerFile { .. }));
    }

    #[test]
    fn the_real_tokenizer() {
        let Some(dir) = real_dir("qwen2.5-0.5b-instruct") else {
            return;
        };
        let tokenizer = Tokenizer::from_dir(dir).unwrap();
        let ids = tokenizer.encode("<|im_start|>user\nHello, world!<|im_end|>\n").unwrap();
        assert_eq!(ids, [151644, 872, 198, 9707, 11, 1879, 0, 151645, 198]);
        assert_eq!(tokenizer.encode_plain("Hello, world!").unwrap(), ids[3..7]);
    }
}
