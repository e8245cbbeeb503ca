//! Nats per token on a text.

use crate::{Error, Progress, Result, output::io_error};
use rayon::prelude::*;
use serde::Serialize;
use squish_models::{Device, Model};
use std::{path::Path, time::Instant};
use tokenizers::Tokenizer;

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

/// Which part of a text to measure on.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// Tokens of a window, at least 2.
    pub size: usize,
    /// At most so many windows, from the beginning of the text; `None` for all.
    pub count: Option<usize>,
}

/// Measures a checkpoint, squished or original, on a text: the whole text is tokenised once, without
/// special tokens, and cut into consecutive windows, each a context of its own; a rest shorter than a
/// window is left out.
///
/// # Errors
/// When the checkpoint, its `tokenizer.json` or the text cannot be used.
pub fn perplexity(dir: &Path, text: &Path, windows: Windows, progress: &dyn Progress) -> Result<Perplexity> {
    let model = Model::from_dir(dir, &Device::Cpu)?;
    let context = model.config().context_length;
    if !(2..=context).contains(&windows.size) {
        let expected = "at least 2, and at most the model's context length";
        return Err(Error::Parameter { name: "the window", value: windows.size.to_string(), expected });
    }
    if windows.count == Some(0) {
        let expected = "at least 1";
        return Err(Error::Parameter { name: "the number of windows", value: "0".into(), expected });
    }
    let ids = tokenize(&dir.join("tokenizer.json"), text)?;
    let available = ids.len() / windows.size;
    if available == 0 {
        return Err(Error::TextTooShort { path: text.into(), tokens: ids.len(), window: windows.size });
    }
    let count = windows.count.unwrap_or(available).min(available);
    let start = Instant::now();
    let mut session = model.session();
    let mut total = 0.0;
    for (i, ids) in ids.chunks_exact(windows.size).take(count).enumerate() {
        progress.at(i, count, "windows");
        session.reset();
        session.feed_all(ids, |first, logits| {
            let targets = &ids[(first + 1).min(ids.len())..];
            total += negative_log_likelihood(&logits.to_vec2::<f32>()?, targets);
            Ok(())
        })?;
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        if !total.is_finite() {
            return Err(Error::NotFiniteLogits { dir: dir.into(), window: i });
        }
    }
    progress.at(count, count, "windows");
    let tokens = count * (windows.size - 1);
    let nll = total / tokens as f64;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Perplexity { nll, perplexity: nll.exp(), tokens, windows: count, window: windows.size, seconds })
}

fn tokenize(tokenizer: &Path, text: &Path) -> Result<Vec<u32>> {
    let refuse = |e: tokenizers::Error| Error::Tokenizer { path: tokenizer.into(), reason: e.to_string() };
    let bytes = std::fs::read(tokenizer).map_err(io_error(tokenizer))?;
    let loaded = Tokenizer::from_bytes(bytes).map_err(refuse)?;
    let text = std::fs::read_to_string(text).map_err(io_error(text))?;
    Ok(loaded.encode_fast(text, false).map_err(refuse)?.get_ids().to_vec())
}

/// The sum over positions of `-log softmax(logits)[target]`, in f64; positions without a target are left out.
fn negative_log_likelihood(logits: &[Vec<f32>], targets: &[u32]) -> f64 {
    let terms: Vec<f64> = logits
        .par_iter()
        .zip(targets)
        .map(|(row, &target)| {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|&v| f64::from(v - largest).exp()).sum();
            sum.ln() + f64::from(largest) - f64::from(row[target as usize])
        })
        .collect();
    terms.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_logits_cost_the_logarithm_of_the_vocabulary() {
        let rows = vec![vec![3.0; 8]; 2];
        assert!((negative_log_likelihood(&rows, &[0, 7]) - 2.0 * 8f64.ln()).abs() < 1e-12);
        assert_eq!(negative_log_likelihood(&rows, &[]), 0.0);
        let certain = vec![vec![0.0, 200.0]];
        assert!(negative_log_likelihood(&certain, &[1]) < 1e-12);
        assert!((negative_log_likelihood(&certain, &[0]) - 200.0).abs() < 1e-9);
    }
}
