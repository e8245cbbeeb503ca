//! `int8`: eight bits, symmetric, one f16 scale a group; for embeddings and heads.
//!
//! ```text
//! weight = scale[row, col / group] * code / 128
//! ```
//!
//! Parts: `codes` I8 `[rows, cols]`, `scales` F16 `[rows, cols / group]`. In groups of 128: 8.125 bits.

use super::{Integers, PANEL_COLS, Part, PartType, Scheme, refuse_units};
use crate::Packed;
use std::ops::Range;

/// What a code is divided by.
const CODE_UNIT: f32 = 128.0;

/// The scheme.
pub static INT8: Int8 = Int8;

/// Eight bits, symmetric.
#[derive(Debug)]
pub struct Int8;

impl Int8 {
    /// The distance between two levels, for a stored scale.
    pub fn step(&self, scale: f32) -> f32 {
        scale / CODE_UNIT
    }
}

impl Scheme for Int8 {
    fn name(&self) -> &'static str {
        "int8"
    }

    fn default_group(&self, _cols: usize) -> usize {
        128
    }

    fn refuse(&self, _rows: usize, cols: usize, group: usize) -> Option<&'static str> {
        refuse_units(cols, group)
    }

    fn parts(&self, rows: usize, cols: usize, group: usize) -> Vec<Part> {
        vec![
            Part { suffix: "codes", dtype: PartType::I8, shape: [rows, cols] },
            Part { suffix: "scales", dtype: PartType::F16, shape: [rows, cols / group] },
        ]
    }

    fn weight(&self, m: &Packed, row: usize, col: usize) -> f32 {
        let code = f32::from(m.row(0, row)[col] as i8);
        m.f16(1, row, col / m.group()) * (code / CODE_UNIT)
    }

    fn integers(&self) -> Option<Integers<'_>> {
        Some(Integers::Units { bits: 8, table: [0; 16], level_unit: CODE_UNIT, minima: None })
    }

    fn decode_panel(&self, m: &Packed, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_mut(PANEL_COLS)) {
            let codes = &m.row(0, row)[cols.clone()];
            // A panel may begin inside a group, so the first run may be shorter than a group.
            let mut col = cols.start;
            while col < cols.end {
                let end = ((col / m.group() + 1) * m.group()).min(cols.end);
                let step = m.f16(1, row, col / m.group()) / CODE_UNIT;
                let run = col - cols.start..end - cols.start;
                for (out, &code) in out[run.clone()].iter_mut().zip(&codes[run]) {
                    *out = step * f32::from(code as i8);
                }
                col = end;
            }
        }
    }
}
