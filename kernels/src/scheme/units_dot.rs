//! Rows of units times an input in eight bits, for the schemes whose rows are units of 64 levels.

use super::{PANEL_ROWS, UNIT};
use crate::{
    Packed, QuantizedInput,
    arch::{Kernels, UnitRun},
};
use half::{f16, slice::HalfFloatSliceExt};

/// Units whose scales are prepared at a time.
const RUN: usize = 64;

/// How the rows of a scheme consist of units.
#[derive(Debug, Clone, Copy)]
pub struct Units {
    /// Bits of a code: 2, 3, 4, or 8 where the codes are the levels.
    pub bits: usize,
    /// The level of each code below 16.
    pub table: [i8; 16],
    /// What a stored scale is divided by.
    pub level_unit: f32,
}

impl Units {
    /// `out[r] = W[first + r] . x`, for codes in part 0 and scales of each group, a multiple or a half of a unit, in part 1.
    pub fn dot(&self, kernels: &Kernels, m: &Packed, first: usize, x: &QuantizedInput, out: &mut [f32]) {
        assert!(out.len() <= PANEL_ROWS && x.values().len() == m.cols());
        let units = m.cols() / UNIT;
        let (mut stored, mut scales) = ([0.0; 2 * RUN], [[0.0; 2]; RUN]);
        for (r, out) in out.iter_mut().enumerate() {
            let row = first + r;
            *out = 0.0;
            for start in (0..units).step_by(RUN) {
                let run = start..units.min(start + RUN);
                let groups = run.start * UNIT / m.group()..(run.end * UNIT).div_ceil(m.group());
                floats(&m.row(1, row)[2 * groups.start..2 * groups.end], &mut stored);
                for (u, scales) in run.clone().zip(&mut scales) {
                    let input = x.scales()[u] / self.level_unit;
                    *scales = [0, UNIT / 2]
                        .map(|half| input * stored[(u * UNIT + half) / m.group() - groups.start]);
                }
                let bytes = UNIT / 8 * self.bits;
                *out += (kernels.units_dot)(UnitRun {
                    bits: self.bits,
                    codes: &m.row(0, row)[run.start * bytes..run.end * bytes],
                    table: &self.table,
                    scales: &scales[..run.len()],
                    values: &x.values()[run.start * UNIT..run.end * UNIT],
                    sums: &x.sums()[run.clone()],
                });
            }
        }
    }
}

/// The f16 in `bytes`, as f32.
pub fn floats(bytes: &[u8], out: &mut [f32; 2 * RUN]) {
    let mut halves = [f16::ZERO; 2 * RUN];
    let count = bytes.len() / 2;
    for (half, bytes) in halves[..count].iter_mut().zip(bytes.as_chunks::<2>().0) {
        *half = f16::from_le_bytes(*bytes);
    }
    halves[..count].convert_to_f32_slice(&mut out[..count]);
}

/// `sum over groups of 32 of minimum * (sum of the input)`, for minima in part `part`.
pub fn minima_dot(m: &Packed, part: usize, row: usize, x: &QuantizedInput) -> f32 {
    let mut minima = [0.0; 2 * RUN];
    let runs = m.row(part, row).chunks(4 * RUN).zip(x.scales().chunks(RUN).zip(x.sums().chunks(RUN)));
    let mut sum = 0.0;
    for (bytes, (scales, sums)) in runs {
        floats(bytes, &mut minima);
        for ((minima, scale), sums) in minima.as_chunks::<2>().0.iter().zip(scales).zip(sums) {
            sum += scale * (minima[0] * sums[0] as f32 + minima[1] * sums[1] as f32);
        }
    }
    sum
}
