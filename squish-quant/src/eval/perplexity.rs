//! Nats per token on a text.

use super::{Conditions, Windows};
use crate::{Error, Progress, Result};
use serde::Serialize;
use squish_models::{Device, KvMode, Model};
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
    /// Whether tokens were fed one at a time, in the arithmetic of decoding.
    pub decode: bool,
    /// How keys and values were stored.
    #[serde(serialize_with = "crate::fit::by_name")]
    pub kv: KvMode,
    /// Whether windows began with what prompts begin with.
    pub bos: bool,
    /// Wall-clock time of the forward passes.
    pub seconds: f64,
}

/// Measures a checkpoint, squished or original, on the windows of a text ([`Windows::read`]), each a context of
/// its own.
///
/// # Errors
/// When the checkpoint, its `tokenizer.json` or the text cannot be used, or the model cannot store keys and values so.
pub fn perplexity(
    dir: &Path,
    text: &Path,
    windows: Windows,
    conditions: Conditions,
    progress: &dyn Progress,
) -> Result<Perplexity> {
    let Conditions { decode, kv, bos } = conditions;
    let model = if decode { Model::from_dir(dir, &Device::Cpu)? } else { super::exact(dir)? };
    let prefix = conditions.prefix(dir)?;
    let window = windows.size;
    let windows = windows.read(dir, model.config(), text)?;
    let start = Instant::now();
    let mut session = conditions.session(&model)?;
    let mut total = 0.0;
    for (i, ids) in windows.iter().enumerate() {
        super::check(progress, i, windows.len(), "windows")?;
        session.reset();
        if !prefix.is_empty() {
            session.feed(&prefix)?;
        }
        let step = if decode { 1 } else { ids.len() };
        for start in (0..ids.len()).step_by(step) {
            let (tokens, targets) = (&ids[start..][..step], &ids[start + 1..]);
            total += super::nll(&mut session, tokens, &targets[..step.min(targets.len())])?;
        }
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
    Ok(Perplexity {
        nll,
        perplexity: nll.exp(),
        tokens,
        windows: windows.len(),
        window,
        decode,
        kv,
        bos,
        seconds,
    })
}
