//! A text as windows of tokens.

use super::Encoder;
use crate::{Error, Result, output::io_error};
use squish_models::ModelConfig;
use std::path::Path;

/// Which part of a text to measure on.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// Tokens of a window, at least 2.
    pub size: usize,
    /// At most so many windows, from the beginning of the text; `None` for all.
    pub count: Option<usize>,
}

impl Windows {
    /// Tokenises a text with a checkpoint's tokenizer, all of it at once and without special tokens, and cuts it into
    /// consecutive windows. A rest shorter than a window is left out.
    ///
    /// # Errors
    /// [`Error::Parameter`] when the window does not fit the model's context or no window is asked for,
    /// [`Error::Tokenizer`], [`Error::Io`], or [`Error::TextTooShort`].
    pub fn read(self, dir: &Path, config: &ModelConfig, text: &Path) -> Result<Vec<Vec<u32>>> {
        if !(2..=config.context_length).contains(&self.size) {
            let expected = "at least 2, and at most the model's context length";
            return Err(Error::Parameter { name: "the window", value: self.size.to_string(), expected });
        }
        if self.count == Some(0) {
            let expected = "at least 1";
            return Err(Error::Parameter { name: "the number of windows", value: "0".into(), expected });
        }
        let encoder = Encoder::from_dir(dir)?;
        let contents = std::fs::read_to_string(text).map_err(io_error(text))?;
        let ids = encoder.encode(&contents)?;
        if ids.len() < self.size {
            return Err(Error::TextTooShort { path: text.into(), tokens: ids.len(), window: self.size });
        }
        let count = self.count.unwrap_or(usize::MAX);
        Ok(ids.chunks_exact(self.size).take(count).map(<[u32]>::to_vec).collect())
    }
}
