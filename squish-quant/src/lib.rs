//! Compresses Hugging Face checkpoints to 2, 3 or 4 bits a weight, and measures what came of it.
//!
//! The stages a weight matrix passes through, in order:
//!
//! 1. **rotation** ([`squish_kernels::rotation`]): rows are rotated, so that their entries look Gaussian;
//! 2. **calibration** ([`calibrate`]), where a recipe asks for it: the model runs over a text, and the inputs of each matrix
//!    say what an error in it costs ([`hessian`]);
//! 3. **encoding** ([`encode`]): scales and codes, by rounding to the nearest level, or by a search of the trellis
//!    ([`viterbi`]); with calibration each column makes up for the errors before it ([`feedback`]);
//! 4. **corrections** ([`low_rank`], [`sparse`]), where a recipe asks for them: what the codes missed.
//!
//! Which tensor gets which scheme is a [`recipe`]'s word, or allocated under a budget by measured sensitivity (`allocate`).
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`compress()`] | a checkpoint in, a squished checkpoint out, tensor by tensor |
//! | [`arrivals`] | the same while the original's files arrive one after the other |
//! | `assembly` | the output under construction |
//! | [`matrix`] | one matrix, or some of its rows, through rotation, encoding and corrections |
//! | `source`, `stream` | tensors of the original as checked rows; their way to parts, some rows at a time |
//! | `resume` | what an interrupted calibration has finished |
//! | [`fit`] | the memory a running model takes, and what a limit leaves for its weights |
//! | [`origin`] | where an original is from, and what a result is known by |
//! | [`guard`] | what families of models are known not to bear |
//! | [`plan`] | what becomes of each tensor, and where in the output it goes |
//! | [`output`] | safetensors files written in place, and directories that appear complete or not at all |
//! | [`synth`] | checkpoints of a true shape with random weights, for measurements of speed and memory |
//! | `cholesky` | the factor of a large matrix, by all threads |
//! | [`certificate`] | what was measured, written into the checkpoint |
//! | [`card`] | the page that a published checkpoint introduces itself with |
//! | [`mod@inspect`] | true bits of a checkpoint |
//! | [`eval`] | what the checkpoint predicts: nats per token, divergence from the original, answers |

mod allocate;
pub mod arrivals;
mod assembly;
pub mod calibrate;
pub mod card;
pub mod certificate;
mod cholesky;
mod compress;
pub mod encode;
mod error;
pub mod eval;
pub mod feedback;
pub mod fit;
pub mod guard;
pub mod hessian;
pub mod inspect;
pub mod low_rank;
pub mod matrix;
pub mod origin;
pub mod output;
mod peak_memory;
pub mod plan;
mod progress;
pub mod recipe;
mod resume;
mod source;
pub mod sparse;
mod stream;
pub mod synth;
pub mod viterbi;

pub use arrivals::{Arrivals, compress_arriving};
pub use compress::{Options, Report, compress, examine};
pub use error::{Error, Result};
pub use eval::{Divergence, Perplexity, Reference, Windows, divergence, kl, perplexity};
pub use fit::{Memory, Target};
pub use inspect::{Inspection, inspect};
pub use origin::Origin;
pub use peak_memory::peak_memory;
pub use progress::{Progress, Silent};
pub use recipe::Recipe;
pub use synth::Synthetic;
