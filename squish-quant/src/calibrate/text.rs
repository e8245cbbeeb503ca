//! What the model runs over.

use crate::{
    Progress, Result,
    certificate::{hash_bytes, hash_file},
    eval::{Encoder, Windows},
};
use squish_models::{
    Checkpoint, Model,
    checkpoint::{Calibration, Source},
};
use std::path::{Path, PathBuf};

/// A text to calibrate on.
#[derive(Debug, Clone)]
pub enum Text {
    /// A UTF-8 file.
    File(PathBuf),
    /// What the model writes itself.
    SelfWritten,
}

/// How much of a text is used.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Tokens of a window; the model's context length where that is less.
    pub window: usize,
    /// Windows, spread evenly over the text.
    pub windows: usize,
}

impl Default for Amount {
    fn default() -> Self {
        Self { window: 512, windows: 64 }
    }
}

/// Tokens to calibrate on, and where they are from.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// Windows, each a context of its own.
    pub windows: Vec<Vec<u32>>,
    /// The text's name and hash.
    pub source: Source,
}

impl Tokens {
    /// What a certificate says of it.
    pub fn record(&self) -> Calibration {
        Calibration {
            source: self.source.clone(),
            windows: self.windows.len() as u64,
            window: self.windows.first().map_or(0, Vec::len) as u64,
        }
    }
}

impl Text {
    /// The text as windows of tokens.
    ///
    /// # Errors
    /// When the tokenizer or the text cannot be used, or the text is shorter than one window.
    pub fn read(
        &self,
        checkpoint: &Checkpoint,
        model: &Model,
        amount: Amount,
        seed: u64,
        progress: &dyn Progress,
    ) -> Result<Tokens> {
        let prefix = Encoder::prefix_of(checkpoint.dir())?;
        let amount = Amount { window: amount.window.min(model.config().context_length), ..amount };
        match self {
            Self::File(path) => {
                let mut windows = from_file(checkpoint.dir(), model, path, amount)?;
                // A model that was trained with a BOS before everything computes differently without.
                for window in &mut windows {
                    let n = prefix.len().min(window.len());
                    window[..n].copy_from_slice(&prefix[..n]);
                }
                Ok(Tokens { windows, source: hash_file(path)? })
            }
            Self::SelfWritten => {
                let windows = super::self_text::self_written(model, &prefix, amount, seed, progress)?;
                let bytes: Vec<u8> = windows.iter().flatten().flat_map(|id| id.to_le_bytes()).collect();
                Ok(Tokens { windows, source: hash_bytes("self", &bytes) })
            }
        }
    }
}

/// Windows of a text file, spread evenly over it; all there are, where it has fewer.
fn from_file(dir: &Path, model: &Model, text: &Path, amount: Amount) -> Result<Vec<Vec<u32>>> {
    let mut available = Windows { size: amount.window, count: None }.read(dir, model.config(), text)?;
    let (count, all) = (amount.windows.min(available.len()), available.len());
    Ok((0..count).map(|i| std::mem::take(&mut available[i * all / count])).collect())
}
