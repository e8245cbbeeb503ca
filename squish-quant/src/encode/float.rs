//! Rounding to an unquantised element type.

use super::{Block, Encoder, scalar::round_block};
use half::{bf16, f16};
use squish_kernels::scheme::Float;

/// Columns at a time; any number would do.
const BLOCK: usize = 64;

/// Rounds a block by `round(value) -> (bytes, decoded value)`.
fn round_to<const N: usize>(block: Block, part: &mut [u8], round: impl Fn(f32) -> ([u8; N], f32)) {
    let out = &mut part.as_chunks_mut::<N>().0[block.first..];
    round_block(block.values, block.metric, |c, v| {
        let (bytes, decoded) = round(v);
        out[c] = bytes;
        decoded
    });
}

impl Encoder for Float<bf16> {
    fn block(&self, _group: usize) -> usize {
        BLOCK
    }

    fn encode(&self, block: Block, _group: usize, parts: &mut [&mut [u8]]) {
        round_to(block, parts[0], |v| {
            let v = bf16::from_f32(v);
            (v.to_le_bytes(), v.to_f32())
        });
    }
}

impl Encoder for Float<f16> {
    fn block(&self, _group: usize) -> usize {
        BLOCK
    }

    fn encode(&self, block: Block, _group: usize, parts: &mut [&mut [u8]]) {
        round_to(block, parts[0], |v| {
            let v = f16::from_f32(v);
            (v.to_le_bytes(), v.to_f32())
        });
    }
}

impl Encoder for Float<f32> {
    fn block(&self, _group: usize) -> usize {
        BLOCK
    }

    fn encode(&self, block: Block, _group: usize, parts: &mut [&mut [u8]]) {
        round_to(block, parts[0], |v| (v.to_le_bytes(), v));
    }
}
