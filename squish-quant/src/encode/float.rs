//! Rounding to an unquantised element type.

use super::Encoder;
use half::{bf16, f16};
use squish_kernels::scheme::Float;

impl Encoder for Float<bf16> {
    fn encode_row(&self, row: &[f32], _group: usize, parts: &mut [&mut [u8]]) {
        for (out, &v) in parts[0].as_chunks_mut::<2>().0.iter_mut().zip(row) {
            *out = bf16::from_f32(v).to_le_bytes();
        }
    }
}

impl Encoder for Float<f16> {
    fn encode_row(&self, row: &[f32], _group: usize, parts: &mut [&mut [u8]]) {
        for (out, &v) in parts[0].as_chunks_mut::<2>().0.iter_mut().zip(row) {
            *out = f16::from_f32(v).to_le_bytes();
        }
    }
}

impl Encoder for Float<f32> {
    fn encode_row(&self, row: &[f32], _group: usize, parts: &mut [&mut [u8]]) {
        for (out, &v) in parts[0].as_chunks_mut::<4>().0.iter_mut().zip(row) {
            *out = v.to_le_bytes();
        }
    }
}
