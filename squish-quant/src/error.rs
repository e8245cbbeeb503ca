//! What can go wrong between a checkpoint and a squished one.

use crate::guard::Guard;
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
    /// A hub does not give what it should.
    #[error(transparent)]
    Hub(#[from] squish_hub::Error),
    /// A weights file holds another tensor than its header said before it came.
    #[error("{path}: tensor `{name}` is not as the file's header said before; begin again", path = .path.display())]
    Arrival {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
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
    /// The checkpoint is not squished, and carries no certificate.
    #[error("{dir}: not a squished checkpoint; only those carry a certificate", dir = .0.display())]
    NotSquished(PathBuf),
    /// A squished checkpoint was compared with another original than its own.
    #[error("{path}: made from `{original}` with other contents than `{against}`, which it was compared with", path = .path.display())]
    OtherOriginal {
        /// The weights file with the certificate.
        path: PathBuf,
        /// The name of the original that the certificate gives.
        original: String,
        /// The name of what it was compared with.
        against: String,
    },
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
    /// The model's family is known not to bear the recipe.
    #[error(
        "{path}: recipe {recipe} rounds to {scheme}, which is refused for {}: {} \
         (calibrate with --calibrate, or insist with --force-recipe)",
        .guard.name, .guard.reason, path = .path.display()
    )]
    Guarded {
        /// The configuration that names the family.
        path: PathBuf,
        /// The recipe.
        recipe: String,
        /// The scheme that is the matter.
        scheme: String,
        /// What is known of the family.
        guard: Box<Guard>,
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
    /// A file of questions is malformed.
    #[error("{path}: line {line}: {reason}", path = .path.display())]
    Questions {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
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
    #[error("{model}: the logits of {part} {index} are not finite; are the weights damaged?")]
    NotFiniteLogits {
        /// The model, by its directory where that is known.
        model: String,
        /// What was being computed: a window, a question.
        part: &'static str,
        /// Index of that.
        index: usize,
    },
    /// Two models that are to be compared have different vocabularies.
    #[error(
        "the vocabularies have {reference} and {model} tokens; only versions of one model can be compared"
    )]
    Vocabularies {
        /// The reference's vocabulary size.
        reference: usize,
        /// The other model's.
        model: usize,
    },
    /// The file cannot be as small as asked for.
    #[error("{bits} bits per parameter cannot be reached: the recipe's smallest choices take {least:.3}")]
    Budget {
        /// What was asked for.
        bits: f64,
        /// What the smallest choices take.
        least: f64,
        /// The same in bytes.
        least_bytes: usize,
    },
    /// The memory does not hold the model.
    #[error(
        "{limit} bytes do not hold this model: a session of {context} positions takes {session} bytes{weights}",
        context = .memory.context,
        session = .memory.kv_cache_bytes + .memory.working_bytes,
        weights = .least.map(|least| format!(", the recipe's smallest weights {least}")).unwrap_or_default(),
    )]
    Fit {
        /// What was asked for.
        limit: usize,
        /// What is taken beside the weights.
        memory: crate::fit::Memory,
        /// Bytes of the recipe's smallest choices, where it came to that.
        least: Option<usize>,
    },
    /// A matrix was never multiplied by anything but zeros, or by what is no number.
    #[error("tensor `{name}`: the calibration text gives it no finite input")]
    NoInputs {
        /// The tensor.
        name: String,
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
    /// The caller asked to stop, and part of the work is kept.
    #[error("interrupted; the same command goes on from what {dir} holds", dir = .dir.display())]
    Paused {
        /// Where it is kept.
        dir: PathBuf,
    },
    /// The caller asked to stop.
    #[error("interrupted; nothing was written")]
    Interrupted,
}
