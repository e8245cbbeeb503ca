//! The parts that architectures are made of.
//!
//! Activations are f32 tensors `[positions, features]` of one sequence. For a single position on the CPU each has a way over buffers as
//! well, with the same results to the bit: layers `decode`, [`RmsNorm::of_layer`], [`Embedding::row`], [`Rotary::row`].

mod attention;
mod linear;
mod mlp;
mod norm;
mod rotary;

pub use attention::{Attention, AttentionShape, AttentionWorkspace};
pub use linear::{Embedding, Linear, Observer};
pub use mlp::{Activation, GatedMlp, MlpWorkspace};
pub use norm::{NormStyle, RmsNorm, Stream};
pub use rotary::{Rope, RopeScaling, Rotary, RotaryRow, RotaryTable};
