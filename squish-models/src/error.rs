//! What can go wrong between a directory and a model's logits.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a checkpoint was refused, or a forward pass failed. Each names the file and what was expected of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory holds no checkpoint.
    #[error("{dir}: no model.safetensors and no model.safetensors.index.json here", dir = .0.display())]
    NoWeights(PathBuf),
    /// A JSON file does not say what is expected of it.
    #[error("{path}: {reason}", path = .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A weights file is no valid safetensors file: garbage, truncated, or with offsets out of range.
    #[error("{path}: not a valid safetensors file: {source} (is the file complete?)", path = .path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: safetensors::SafeTensorError,
    },
    /// A squished file of a format version that this build cannot read.
    #[error("{path}: squish format {found} is not supported (this build reads format {supported})", path = .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version this build reads.
        supported: u32,
    },
    /// `config.json` names an architecture that no file of this crate implements.
    #[error("{path}: architecture `{found}` is not supported (supported: {supported})", path = .path.display())]
    Architecture {
        /// The configuration file.
        path: PathBuf,
        /// The architecture it names.
        found: String,
        /// Those that are implemented.
        supported: String,
    },
    /// A tensor that the architecture needs is not in the checkpoint.
    #[error("{dir}: tensor `{name}` is missing", dir = .dir.display())]
    MissingTensor {
        /// The checkpoint.
        dir: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("{path}: tensor `{name}` has shape {found:?}, expected {expected:?}", path = .path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that is needed.
        expected: Vec<usize>,
    },
    /// A tensor has an element type that is not expected there.
    #[error("{path}: tensor `{name}` has type {found}, expected {expected}", path = .path.display())]
    ElementType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A squished tensor's record or stored parts are wrong: unknown scheme or version, bad lengths or indices.
    #[error("{path}: tensor `{name}`: {source}", path = .path.display())]
    Weight {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        source: squish_kernels::Error,
    },
    /// A checkpoint carries no certificate, or one that does not meet what the caller asked of it.
    #[error("{path}: {reason}", path = .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// More positions than the context holds: the model's own, or the one that was asked for.
    #[error("the context is full: {needed} positions needed, there are {limit}")]
    ContextFull {
        /// Positions asked for, those in the cache counted.
        needed: usize,
        /// Positions there are.
        limit: usize,
    },
    /// Keys and values cannot be packed so where the model computes.
    #[error(
        "keys and values in {0} are for heads of 64, 128, 192 or 256 on this device, expected f16 or f32"
    )]
    KvDevice(squish_kernels::kv::Mode),
    /// A session of so many positions was asked for, which the model does not have.
    #[error("a context of {asked} was asked for, expected 1 to the model's {limit}")]
    Context {
        /// Positions asked for.
        asked: usize,
        /// Positions the model has.
        limit: usize,
    },
    /// Keys and values cannot be stored as asked.
    #[error(transparent)]
    Kv(#[from] squish_kernels::Error),
    /// A session could not be written down, or what was written down is not one of this model.
    #[error("{path}: {reason}", path = .path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A token id that is not in the vocabulary.
    #[error("token id {id} is not below the vocabulary size {vocab_size}")]
    Token {
        /// The id.
        id: u32,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// No token was given where at least one is needed.
    #[error("no tokens to process")]
    NoTokens,
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}
