//! What can be wrong with a packed matrix.

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a packed matrix, a rotation or a correction was refused.
///
/// The caller knows the file and the tensor; these variants say what about it is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No scheme of this name is built in.
    #[error("unknown scheme `{0}` (known: {known})", known = crate::scheme::names().join(", "))]
    UnknownScheme(String),
    /// The scheme is known, this version of its layout is not.
    #[error(
        "scheme `{scheme}` version {found} is not supported (this build reads version {supported}: the checkpoint has to be made again, or read by the build that made it)"
    )]
    UnsupportedVersion {
        /// The scheme's name.
        scheme: &'static str,
        /// The version asked for.
        found: u32,
        /// The version this build implements.
        supported: u32,
    },
    /// The scheme cannot store a matrix of this shape with this group size.
    #[error("scheme `{scheme}` cannot store a {rows} x {cols} matrix in groups of {group}: {reason}")]
    Shape {
        /// The scheme's name.
        scheme: &'static str,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Weights that share a scale.
        group: usize,
        /// The rule that is broken.
        reason: &'static str,
    },
    /// A stored part has the wrong number of bytes.
    #[error("part `{part}` has {found} bytes, expected {expected}")]
    PartLength {
        /// The part's suffix, such as `codes`.
        part: &'static str,
        /// Bytes the shape asks for.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// The number of parts differs from what the scheme stores.
    #[error("scheme `{scheme}` stores {expected} parts, found {found}")]
    PartCount {
        /// The scheme's name.
        scheme: &'static str,
        /// Parts the scheme stores.
        expected: usize,
        /// Parts that were given.
        found: usize,
    },
    /// The rotation's block is not a power of two that divides the size.
    #[error("rotation block {block} must be a power of two from 2 to 32768 that divides {cols}")]
    RotationBlock {
        /// Length of one transform.
        block: usize,
        /// Length of the rotated vectors.
        cols: usize,
    },
    /// A correction does not fit the matrix it corrects.
    #[error("{what} has shape {found:?}, expected {expected:?}")]
    CorrectionShape {
        /// Which correction.
        what: &'static str,
        /// Its shape.
        found: [usize; 2],
        /// The shape that fits.
        expected: [usize; 2],
    },
    /// The sparse correction's row offsets or columns are out of range or out of order.
    #[error("sparse correction is malformed: {0}")]
    Sparse(&'static str),
    /// No way of storing keys and values has this name.
    #[error(
        "no KV mode `{0}`: expected f32, f16, or kXvY with bits of keys and of values among 16, 8, 4 and 2, such as k8v4"
    )]
    KvMode(String),
    /// Keys and values of this shape cannot be stored so.
    #[error("keys and values of {kv_heads} heads of {head_dim} cannot be stored as {mode}: {reason}")]
    KvShape {
        /// How they should be stored.
        mode: String,
        /// Heads of keys and values.
        kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
        /// The rule that is broken.
        reason: &'static str,
    },
    /// `SQUISH_ISA` names an instruction set that this machine or build does not have.
    #[error("SQUISH_ISA={asked} is not available here (available: {available})")]
    Isa {
        /// What was asked for.
        asked: String,
        /// What there is.
        available: String,
    },
}
