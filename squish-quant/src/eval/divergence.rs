//! How far a model's predictions are from another's: Kullback-Leibler divergence per token.

use super::{Conditions, Logits, Windows, check};
use crate::{Error, Progress, Result};
use serde::Serialize;
use squish_models::{Model, Session, model::PREFILL_CHUNK};
use std::{path::Path, time::Instant};

/// What was measured, over the predicted tokens. Divergences and likelihoods are in nats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// Mean of `KL(reference || model)`.
    pub kl_mean: f64,
    /// Standard error of the mean, from the means of the windows, which are independent where tokens are not; absent for
    /// one window.
    pub kl_stderr: Option<f64>,
    /// Its median.
    pub kl_median: f64,
    /// Its 99th percentile: the value at index `0.99 (tokens - 1)` in ascending order, interpolated.
    pub kl_p99: f64,
    /// Its largest value.
    pub kl_max: f64,
    /// Fraction of the tokens for which both find the same token likeliest.
    pub top1_agreement: f64,
    /// Mean negative log-likelihood of the text's tokens under the reference.
    pub reference_nll: f64,
    /// The same under the model.
    pub nll: f64,
    /// `nll - reference_nll`.
    pub nats_lost: f64,
    /// Its standard error, as that of the divergence.
    pub nats_lost_stderr: Option<f64>,
    /// Tokens that were predicted: all but the first of each window.
    pub tokens: usize,
    /// Windows that were used.
    pub windows: usize,
    /// Tokens of a window, of the longest where they differ.
    pub window: usize,
    /// Wall-clock time of the forward passes and the comparison.
    pub seconds: f64,
}

/// Measures `KL(original || squished)` on the windows of a text ([`Windows::read`], with the original's tokenizer). The original's
/// keys and values are in f32, the other's as the conditions say. Windows are fed as a whole, whatever [`Conditions::decode`] says.
///
/// # Errors
/// [`Error::Parameter`] where tokens should be fed one at a time; /// When a checkpoint, the tokenizer or the text cannot be used, or the two are no versions of one model.
pub fn kl(
    original: &Path,
    squished: &Path,
    text: &Path,
    windows: Windows,
    conditions: Conditions,
    progress: &dyn Progress,
) -> Result<Divergence> {
    let reference = super::exact(original)?;
    let model = super::exact(squished)?;
    let windows = windows.read(original, reference.config(), text)?;
    let prefix = conditions.prefix(original)?;
    let sessions = [reference.session(), conditions.session(&model)?];
    between(sessions, &prefix, &windows, progress).map_err(|error| match error {
        Error::NotFiniteLogits { model, part, index } => {
            let dir = if model == REFERENCE { original } else { squished };
            Error::NotFiniteLogits { model: dir.display().to_string(), part, index }
        }
        other => other,
    })
}

/// What an error calls the two models.
const REFERENCE: &str = "the reference";
const MODEL: &str = "the model";

/// `KL(reference || model)` on windows of tokens, each a context of its own. Both models run over one chunk of
/// [`PREFILL_CHUNK`] tokens after the other; memory holds the two logits of a chunk. The same models and
/// windows give the same numbers.
///
/// # Errors
/// [`Error::Parameter`] for no window or one of fewer than two tokens, [`Error::Vocabularies`],
/// [`Error::NotFiniteLogits`], [`Error::Interrupted`], or a failed forward pass.
pub fn divergence(
    reference: &Model,
    model: &Model,
    windows: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Divergence> {
    between([reference.session(), model.session()], &[], windows, progress)
}

fn between(
    [mut theirs, mut ours]: [Session; 2],
    prefix: &[u32],
    windows: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Divergence> {
    let vocabularies = [&theirs, &ours].map(|session| session.model().config().vocab_size);
    let mut tally = Tally::new(vocabularies[0], vocabularies[1], windows)?;
    for (i, ids) in windows.iter().enumerate() {
        check(progress, i, windows.len(), "windows")?;
        for session in [&mut theirs, &mut ours] {
            session.reset();
            if !prefix.is_empty() {
                session.feed(prefix)?;
            }
        }
        for (chunk, targets) in chunks(ids) {
            let theirs = feed(&mut theirs, chunk, targets)?;
            tally.add(&theirs, &feed(&mut ours, chunk, targets)?, targets);
        }
        tally.end(i)?;
    }
    progress.at(windows.len(), windows.len(), "windows");
    Ok(tally.finish(windows))
}

/// A reference whose logits are kept, to compare many models with: 4 bytes x vocabulary for every predicted token.
#[derive(Debug, Clone)]
pub struct Reference {
    vocabulary: usize,
    windows: Vec<Vec<u32>>,
    /// The logits of each window, chunk by chunk.
    logits: Vec<Vec<Logits>>,
}

impl Reference {
    /// Runs the reference over windows of tokens, each a context of its own.
    ///
    /// # Errors
    /// As [`divergence`].
    pub fn new(model: &Model, windows: Vec<Vec<u32>>, progress: &dyn Progress) -> Result<Self> {
        let vocabulary = model.config().vocab_size;
        check_windows(&windows)?;
        let mut session = model.session();
        let mut logits = Vec::with_capacity(windows.len());
        for (i, ids) in windows.iter().enumerate() {
            check(progress, i, windows.len(), "windows")?;
            session.reset();
            let of_window: Vec<Logits> = chunks(ids)
                .map(|(chunk, targets)| feed(&mut session, chunk, targets))
                .collect::<Result<_>>()?;
            let nll: f64 = of_window
                .iter()
                .zip(chunks(ids))
                .map(|(logits, (_, targets))| logits.total_nll(targets))
                .sum();
            check_finite(nll, REFERENCE, i)?;
            logits.push(of_window);
        }
        progress.at(windows.len(), windows.len(), "windows");
        Ok(Self { vocabulary, windows, logits })
    }

    /// `KL(reference || model)`: what [`divergence`] measures of the two models, bit for bit.
    ///
    /// # Errors
    /// As [`divergence`].
    pub fn divergence(&self, model: &Model, progress: &dyn Progress) -> Result<Divergence> {
        let windows = &self.windows;
        let mut tally = Tally::new(self.vocabulary, model.config().vocab_size, windows)?;
        let mut session = model.session();
        for (i, (ids, of_window)) in windows.iter().zip(&self.logits).enumerate() {
            check(progress, i, windows.len(), "windows")?;
            session.reset();
            for ((chunk, targets), theirs) in chunks(ids).zip(of_window) {
                tally.add(theirs, &feed(&mut session, chunk, targets)?, targets);
            }
            tally.end(i)?;
        }
        progress.at(windows.len(), windows.len(), "windows");
        Ok(tally.finish(windows))
    }
}

/// The chunks of a window, each with the tokens that its positions predict.
fn chunks(ids: &[u32]) -> impl Iterator<Item = (&[u32], &[u32])> {
    // The last position predicts a token that is not there; it is still fed where a chunk has others.
    let ends = ids.chunks(PREFILL_CHUNK).enumerate().map(|(i, chunk)| (i * PREFILL_CHUNK, chunk));
    let pairs = ends.map(|(start, chunk)| (chunk, &ids[start + 1..(start + 1 + chunk.len()).min(ids.len())]));
    pairs.filter(|(_, targets)| !targets.is_empty())
}

/// Feeds a chunk and returns the logits of the positions that have a target.
fn feed(session: &mut Session, chunk: &[u32], targets: &[u32]) -> Result<Logits> {
    let mut found = None;
    session.feed_all(chunk, |_, logits| {
        found = Some(Logits::new(&logits, targets.len())?);
        Ok(())
    })?;
    Ok(found.expect("a chunk is fed in one pass"))
}

fn check_windows(windows: &[Vec<u32>]) -> Result<()> {
    match windows.iter().map(Vec::len).min() {
        Some(2..) => Ok(()),
        shortest => Err(Error::Parameter {
            name: "the shortest window",
            value: shortest.map_or("absent".into(), |n| format!("{n} tokens long")),
            expected: "at least 2 tokens",
        }),
    }
}

fn check_finite(value: f64, model: &str, index: usize) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::NotFiniteLogits { model: model.into(), part: "window", index })
}

/// Sums over the tokens seen so far.
struct Tally {
    /// The divergence at every token.
    kl: Vec<f64>,
    agreed: usize,
    reference_nll: f64,
    nll: f64,
    /// What every token lost.
    lost: Vec<f64>,
    /// Tokens up to the end of each window.
    ends: Vec<usize>,
    start: Instant,
}

impl Tally {
    fn new(reference: usize, model: usize, windows: &[Vec<u32>]) -> Result<Self> {
        check_windows(windows)?;
        if reference != model {
            return Err(Error::Vocabularies { reference, model });
        }
        Ok(Self {
            kl: Vec::new(),
            agreed: 0,
            reference_nll: 0.0,
            nll: 0.0,
            lost: Vec::new(),
            ends: Vec::new(),
            start: Instant::now(),
        })
    }

    /// Adds the positions of a chunk. Rows are compared in parallel and summed in order.
    fn add(&mut self, reference: &Logits, model: &Logits, targets: &[u32]) {
        use rayon::prelude::*;
        let rows: Vec<(f64, bool)> = (0..targets.len())
            .into_par_iter()
            .map(|i| (reference.kl(model, i), reference.argmax(i) == model.argmax(i)))
            .collect();
        self.kl.extend(rows.iter().map(|(kl, _)| kl));
        self.agreed += rows.iter().filter(|(_, agreed)| *agreed).count();
        let lost = |(i, &target): (usize, &u32)| model.nll(i, target) - reference.nll(i, target);
        self.lost.extend(targets.iter().enumerate().map(lost));
        self.reference_nll += reference.total_nll(targets);
        self.nll += model.total_nll(targets);
    }

    /// Ends a window, whose sums must be finite.
    fn end(&mut self, window: usize) -> Result<()> {
        self.ends.push(self.kl.len());
        check_finite(self.reference_nll, REFERENCE, window)?;
        check_finite(self.nll, MODEL, window)?;
        check_finite(self.kl.iter().sum(), MODEL, window)
    }

    /// The standard error of the mean of the windows' means: `sqrt(sum_w (m_w - m)^2 / (n (n - 1)))`.
    fn stderr(&self, values: &[f64]) -> Option<f64> {
        let starts = std::iter::once(&0).chain(&self.ends);
        let windows = starts.zip(&self.ends).map(|(&start, &end)| &values[start..end]);
        let means: Vec<f64> = windows.map(|w| w.iter().sum::<f64>() / w.len() as f64).collect();
        let n = means.len() as f64;
        let mean = means.iter().sum::<f64>() / n;
        let squares: f64 = means.iter().map(|m| (m - mean).powi(2)).sum();
        (means.len() > 1).then(|| (squares / (n * (n - 1.0))).sqrt())
    }

    fn finish(mut self, windows: &[Vec<u32>]) -> Divergence {
        let tokens = self.kl.len();
        let mean = |sum: f64| sum / tokens as f64;
        let kl_mean = mean(self.kl.iter().sum());
        let (kl_stderr, nats_lost_stderr) = (self.stderr(&self.kl), self.stderr(&self.lost));
        self.kl.sort_by(f64::total_cmp);
        Divergence {
            kl_mean,
            kl_stderr,
            kl_median: quantile(&self.kl, 0.5),
            kl_p99: quantile(&self.kl, 0.99),
            kl_max: self.kl[tokens - 1],
            top1_agreement: mean(self.agreed as f64),
            reference_nll: mean(self.reference_nll),
            nll: mean(self.nll),
            nats_lost: mean(self.nll) - mean(self.reference_nll),
            nats_lost_stderr,
            tokens,
            windows: windows.len(),
            window: windows.iter().map(Vec::len).max().unwrap_or(0),
            seconds: self.start.elapsed().as_secs_f64(),
        }
    }
}

/// The value at index `q (n - 1)` of `n >= 1` ascending values, linear between neighbours.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[3.0], 0.99), 3.0);
        assert_eq!(quantile(&[0.0, 1.0], 0.5), 0.5);
        let values: Vec<f64> = (0..=200).map(f64::from).collect();
        assert_eq!((quantile(&values, 0.99), quantile(&values, 0.5)), (198.0, 100.0));
    }

    #[test]
    fn chunks_pair_positions_with_the_tokens_they_predict() {
        for n in [2, 3, PREFILL_CHUNK, PREFILL_CHUNK + 1, PREFILL_CHUNK + 2, 2 * PREFILL_CHUNK + 7] {
            let ids: Vec<u32> = (0..n as u32).collect();
            let targets: Vec<u32> = chunks(&ids).flat_map(|(_, targets)| targets).copied().collect();
            assert_eq!(targets, ids[1..]);
            for (chunk, targets) in chunks(&ids) {
                assert!(targets.iter().zip(chunk).all(|(t, c)| *t == c + 1));
            }
        }
    }
}
