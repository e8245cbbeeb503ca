//! Nats per token on a text.

use super::Windows;
use crate::{Error, Progress, Result};
use serde::Serialize;
use squish_models::{Device, Model};
use std::{path::Path, time::Instant};

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Perplexity {
    /// Mean negative log-likelihood of a predicted token, in nats.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Tokens that were predicted: all but the first of each window.
    pub tokens: usize,
    /// Windows that were used.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Wall-clock time of the forward passes.
    pub seconds: f64,
}

/// Measures a checkpoint, squished or original, on the windows of a text ([`Windows::read`]), each a context of
/// its own.
///
/// # Errors
/// When the checkpoint, its `tokenizer.json` or the text cannot be used.
pub fn perplexity(dir: &Path, text: &Path, windows: Windows, progress: &dyn Progress) -> Result<Perplexity> {
    let model = Model::from_dir(dir, &Device::Cpu)?;
    let window = windows.size;
    let windows = windows.read(dir, model.config(), text)?;
    let start = Instant::now();
    let mut session = model.session();
    let mut total = 0.0;
    for (i, ids) in windows.iter().enumerate() {
        super::check(progress, i, windows.len(), "windows")?;
        session.reset();
        total += super::nll(&mut session, ids, &ids[1..])?;
        if !total.is_finite() {
            return Err(Error::NotFiniteLogits {
                model: dir.display().to_string(),
                part: "window",
                index: i,
            });
        }
    }
    progress.at(windows.len(), windows.len(), "windows");
    let tokens = windows.len() * (window - 1);
    let nll = total / tokens as f64;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Perplexity { nll, perplexity: nll.exp(), tokens, windows: windows.len(), window, seconds })
}
