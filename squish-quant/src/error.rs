//! What can go wrong between a checkpoint and a squished one.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a compression or a measurement failed. Nothing that looks complete is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Model(#[from] squish_models::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The checkpoint is squished already.
    #[error("{dir}: already squished; compress the original checkpoint instead", dir = .0.display())]
    AlreadySquished(PathBuf),
    /// A weight is not a number, or infinite.
    #[error("{path}: tensor `{name}` holds {value} at row {row}, column {col}; weights must be finite", path = .path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// The weight.
        value: f32,
    },
    /// A weight is too large for f16 scales.
    #[error("{path}: tensor `{name}` holds {value} at row {row}, column {col}; the largest weight that f16 scales hold is {limit}", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// The weight.
        value: f32,
        /// The limit.
        limit: f32,
    },
    /// The recipe is neither built in nor a readable file.
    #[error("no recipe `{name}`: neither built in ({known}) nor a file")]
    UnknownRecipe {
        /// What was asked for.
        name: String,
        /// Names of the built-in recipes.
        known: String,
    },
    /// The recipe says something that cannot be done.
    #[error("recipe {name}: {reason}")]
    Recipe {
        /// Its name or file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The output directory is there and not empty.
    #[error("{dir}: the output directory exists and is not empty", dir = .0.display())]
    OutputNotEmpty(PathBuf),
    /// The disk has too little room.
    #[error("{dir}: not enough disk space: {needed} bytes are needed, {available} are free", dir = .dir.display())]
    DiskFull {
        /// Where the output was to go.
        dir: PathBuf,
        /// Bytes of the output.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// A matrix cannot be packed as asked.
    #[error("tensor `{name}`: {source}")]
    Matrix {
        /// The tensor.
        name: String,
        /// What is wrong.
        source: squish_kernels::Error,
    },
    /// The tokenizer cannot be loaded or used.
    #[error("{path}: {reason}", path = .path.display())]
    Tokenizer {
        /// The tokenizer's file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The text is shorter than one window.
    #[error("{path}: the text has {tokens} tokens, fewer than one window of {window}", path = .path.display())]
    TextTooShort {
        /// The text.
        path: PathBuf,
        /// Its tokens.
        tokens: usize,
        /// The window asked for.
        window: usize,
    },
    /// The model's logits are not numbers.
    #[error("{dir}: the logits of window {window} are not finite; are the weights damaged?", dir = .dir.display())]
    NotFiniteLogits {
        /// The checkpoint.
        dir: PathBuf,
        /// Index of the window.
        window: usize,
    },
    /// A parameter is out of its range.
    #[error("{name} is {value}, expected {expected}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: String,
        /// Its range.
        expected: &'static str,
    },
    /// The caller asked to stop.
    #[error("interrupted; nothing was written")]
    Interrupted,
}
