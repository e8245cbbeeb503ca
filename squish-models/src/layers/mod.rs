//! The parts that architectures are made of.
//!
//! Activations are f32 tensors `[positions, features]` of one sequence.

mod attention;
mod linear;
mod mlp;
mod norm;
mod rotary;

pub use attention::{Attention, AttentionShape};
pub use linear::{Embedding, Linear, Observer};
pub use mlp::{Activation, GatedMlp};
pub use norm::{NormStyle, RmsNorm, Stream};
pub use rotary::{Rope, RopeScaling, Rotary, RotaryTable};
