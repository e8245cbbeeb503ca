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
use squish_models::{Arithmetic, Checkpoint, Device, Model, Session};
use std::path::Path;

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
