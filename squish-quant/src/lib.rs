//! Compresses Hugging Face checkpoints to 2, 3 or 4 bits a weight, and measures what came of it.
//!
//! The stages a weight matrix passes through, in order:
//!
//! 1. **rotation** ([`squish_kernels::rotation`]): rows are rotated, so that their entries look Gaussian;
//! 2. **encoding** ([`encode`]): each group of weights gets a scale and codes, rounding to the nearest level;
//! 3. **corrections** ([`low_rank`], [`sparse`]), where a recipe asks for them: what the codes missed;
//! 4. **mixing** ([`recipe`]): which tensor gets which scheme.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`compress()`] | a checkpoint in, a squished checkpoint out, tensor by tensor |
//! | [`matrix`] | one matrix, or some of its rows, through stages 1 to 3 |
//! | [`plan`] | what becomes of each tensor, and where in the output it goes |
//! | [`output`] | safetensors files written in place, and directories that appear complete or not at all |
//! | [`mod@inspect`] | true bits of a checkpoint |
//! | [`mod@perplexity`] | nats per token on a text |

mod compress;
pub mod encode;
mod error;
pub mod inspect;
pub mod low_rank;
pub mod matrix;
pub mod output;
pub mod perplexity;
pub mod plan;
mod progress;
pub mod recipe;
pub mod sparse;

pub use compress::{Options, Report, compress};
pub use error::{Error, Result};
pub use inspect::{Inspection, inspect};
pub use perplexity::{Perplexity, perplexity};
pub use progress::{Progress, Silent};
pub use recipe::Recipe;
