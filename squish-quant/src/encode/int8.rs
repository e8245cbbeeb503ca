//! `int8`: the scale is the group's largest magnitude.

use super::{Encoder, put_f16};
use squish_kernels::scheme::Int8;

impl Encoder for Int8 {
    fn encode_row(&self, row: &[f32], group: usize, parts: &mut [&mut [u8]]) {
        let [codes, scales] = parts else { unreachable!("int8 has two parts") };
        for (g, (values, codes)) in row.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
            let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            // The largest code is 127, at scale * 127 / 128.
            let scale = put_f16(scales, g, largest * (128.0 / 127.0));
            let inverse = if scale > 0.0 { 1.0 / self.step(scale) } else { 0.0 };
            for (code, v) in codes.iter_mut().zip(values) {
                *code = (v * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
            }
        }
    }
}
