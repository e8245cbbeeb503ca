//! Encoders: the choice of scales and codes, one file per family of schemes.
//!
//! An encoder works on one row at a time, so that a matrix can be streamed and its rows encoded in
//! parallel. To add one: write its file, list it in [`encoder`].

mod float;
mod gaussian;
mod int4;
mod int8;

use squish_kernels::scheme::{self, Scheme};

/// Chooses the codes of a row.
pub trait Encoder: Sync {
    /// Encodes `row` in groups of `group` into the row's bytes of each part, in the scheme's order of parts.
    ///
    /// The row is finite and below [`LARGEST`] in magnitude.
    fn encode_row(&self, row: &[f32], group: usize, parts: &mut [&mut [u8]]);
}

/// The largest weight that f16 scales can represent in every scheme.
pub const LARGEST: f32 = 16384.0;

/// The encoder of a scheme; `None` where there is none (a scheme that can only be read).
pub fn encoder(scheme: &dyn Scheme) -> Option<&'static dyn Encoder> {
    match scheme.name() {
        "nf2" => Some(&scheme::NF2),
        "int3" => Some(&scheme::INT3),
        "int4r" => Some(&scheme::INT4R),
        "int4" => Some(&scheme::INT4),
        "int8" => Some(&scheme::INT8),
        "bf16" => Some(&scheme::BF16),
        "f16" => Some(&scheme::F16),
        "f32" => Some(&scheme::F32),
        _ => None,
    }
}

/// Writes the `index`-th f16 of a part's row and returns the value that was stored.
fn put_f16(part: &mut [u8], index: usize, value: f32) -> f32 {
    let stored = half::f16::from_f32(value);
    part[2 * index..2 * index + 2].copy_from_slice(&stored.to_le_bytes());
    stored.to_f32()
}
