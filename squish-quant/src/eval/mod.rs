//! Measuring a checkpoint: what it predicts, not what its weights look like.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`logits`] | rows of logits: likelihood, divergence, the likeliest token |
//! | [`encoder`] | text to tokens, as a checkpoint's files say |
//! | [`text`] | a text as windows of tokens |
//! | [`mod@perplexity`] | nats per token on a text |
//! | [`mod@divergence`] | divergence from another model on a text |
//! | [`questions`] | multiple-choice questions, and how they become prompts |
//! | [`mod@score`] | accuracy on them |
//! | [`mod@smoke`] | does the model still write text at all? |

pub mod divergence;
pub mod encoder;
pub mod logits;
pub mod perplexity;
pub mod questions;
pub mod score;
pub mod smoke;
pub mod text;

pub use divergence::{Divergence, Reference, divergence, kl};
pub use encoder::Encoder;
pub use logits::Logits;
pub(crate) use logits::sample;
pub use perplexity::{Perplexity, perplexity};
pub use questions::{Question, TASKS, Task};
pub use score::{TaskScore, log_likelihoods, score};
pub use smoke::{Fault, Smoke, smoke};
pub use text::Windows;

use crate::{Error, Progress, Result};
use squish_models::{Arithmetic, Checkpoint, Device, KvMode, Model, Session, SessionOptions};
use std::path::Path;

/// Under which conditions a checkpoint is measured. By default windows are fed as a whole, with nothing before them, and
/// keys and values are as exact as the weights are multiplied: what is measured are the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conditions {
    /// Feed one token at a time, in the arithmetic in which answers are written
    /// ([`Arithmetic::Int8`]); without it, windows as a whole, in f32.
    pub decode: bool,
    /// How keys and values are stored.
    pub kv: KvMode,
    /// Begin each window with what the checkpoint's prompts begin with, a BOS where the family has one. It predicts the window's
    /// first token, which is not counted, so that the tokens that are counted are the same.
    pub bos: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { decode: false, kv: KvMode::F32, bos: false }
    }
}

impl Conditions {
    /// A session under these conditions.
    fn session(&self, model: &Model) -> Result<Session> {
        Ok(model.session_with(SessionOptions::in_mode(self.kv))?)
    }

    /// What every window begins with.
    fn prefix(&self, dir: &Path) -> Result<Vec<u32>> {
        if self.bos { Encoder::prefix_of(dir) } else { Ok(Vec::new()) }
    }
}

/// Reports that `done` of `total` parts are done, and stops if asked to.
fn check(progress: &dyn Progress, done: usize, total: usize, what: &str) -> Result<()> {
    progress.at(done, total, what);
    if progress.interrupted() { Err(Error::Interrupted) } else { Ok(()) }
}

/// A checkpoint's model, multiplied as exactly as can be: what is measured are the weights.
pub(crate) fn exact(dir: &Path) -> Result<Model> {
    let mut checkpoint = Checkpoint::open(dir)?;
    checkpoint.set_arithmetic(Arithmetic::F32);
    Ok(Model::from_checkpoint(&checkpoint, &Device::Cpu)?)
}

/// Feeds tokens, and returns the sum of `-ln p(targets[i])` over the positions `i` that have a target, in nats.
fn nll(session: &mut Session, tokens: &[u32], targets: &[u32]) -> Result<f64> {
    let mut total = 0.0;
    session.feed_all(tokens, |first, logits| {
        let targets = &targets[first.min(targets.len())..];
        total += Logits::new(&logits, targets.len())?.total_nll(targets);
        Ok(())
    })?;
    Ok(total)
}
