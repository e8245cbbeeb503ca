//! `int4`: a scale and a minimum per group, chosen by search.
//!
//! The range from the smallest to the largest weight wastes levels on the two extremes. So some narrower ranges are
//! tried; for each, the codes of the nearest levels, and then the least-squares scale and minimum
//! for those codes. The best of all is kept.

use super::{Block, Encoder, put_f16, scalar::round_block};
use squish_kernels::scheme::{CodeUnit, Int4, UNIT, Unit4};

/// Fractions of the group's range that are tried.
const RANGES: [f32; 6] = [1.0, 0.94, 0.88, 0.82, 0.76, 0.70];

impl Encoder for Int4 {
    fn block(&self, _group: usize) -> usize {
        UNIT
    }

    fn encode(&self, block: Block, group: usize, parts: &mut [&mut [u8]]) {
        let [codes, scales, mins] = parts else { unreachable!("int4 has three parts") };
        let Block { first, width, values, metric } = block;
        let lines: Vec<Line> = values
            .chunks(group)
            .enumerate()
            .map(|(g, values)| {
                let Line { step, min } = search(values);
                // Scales are stored as 16 steps; the codes are chosen for what was stored.
                let step = self.step(put_f16(scales, first / group + g, 16.0 * step));
                Line { step, min: put_f16(mins, first / group + g, min) }
            })
            .collect();
        let mut block_codes = vec![0; width];
        round_block(values, metric, |c, v| {
            let line = lines[c / group];
            let code = line.code(v);
            block_codes[c] = code as u8;
            line.min + line.step * code
        });
        let bytes = width / UNIT * Unit4::BYTES;
        Unit4::pack_row(&block_codes, &mut codes[first / UNIT * Unit4::BYTES..][..bytes]);
    }
}

/// The levels `min + step * code`.
#[derive(Clone, Copy)]
struct Line {
    step: f32,
    min: f32,
}

impl Line {
    fn code(self, value: f32) -> f32 {
        let inverse = if self.step > 0.0 { 1.0 / self.step } else { 0.0 };
        ((value - self.min) * inverse).round().clamp(0.0, 15.0)
    }

    fn error(self, values: &[f32]) -> f32 {
        values.iter().map(|&v| (v - self.min - self.step * self.code(v)).powi(2)).sum()
    }

    /// The least-squares line through `(code, value)` for this line's codes; itself where all codes are equal.
    fn refit(self, values: &[f32]) -> Self {
        let (mut c1, mut c2, mut v1, mut cv) = (0.0, 0.0, 0.0, 0.0);
        for &v in values {
            let c = self.code(v);
            (c1, c2, v1, cv) = (c1 + c, c2 + c * c, v1 + v, cv + c * v);
        }
        let n = values.len() as f32;
        let determinant = n * c2 - c1 * c1;
        if determinant <= 0.0 {
            return self;
        }
        let step = (n * cv - c1 * v1) / determinant;
        Self { step, min: (v1 - step * c1) / n }
    }
}

fn search(values: &[f32]) -> Line {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (center, width) = ((low + high) / 2.0, high - low);
    let mut best = Line { step: width / 15.0, min: low };
    let mut least = best.error(values);
    for range in RANGES {
        let mut line = Line { step: range * width / 15.0, min: center - range * width / 2.0 };
        for _ in 0..2 {
            line = line.refit(values);
            let error = line.error(values);
            if error < least {
                (best, least) = (line, error);
            }
        }
    }
    best
}
