//! `int8`: the scale is the group's largest magnitude.

use super::{Block, Encoder, put_f16, scalar::round_block};
use squish_kernels::scheme::Int8;

impl Encoder for Int8 {
    fn block(&self, group: usize) -> usize {
        group
    }

    fn encode(&self, block: Block, group: usize, parts: &mut [&mut [u8]]) {
        let [codes, scales] = parts else { unreachable!("int8 has two parts") };
        let Block { first, width, values, metric } = block;
        let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        // The largest code is 127, at scale * 127 / 128.
        let step = self.step(put_f16(scales, first / group, largest * (128.0 / 127.0)));
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        let codes = &mut codes[first..first + width];
        round_block(values, metric, |c, v| {
            let code = (v * inverse).round().clamp(-127.0, 127.0);
            codes[c] = code as i8 as u8;
            step * code
        });
    }
}
