//! `int4`: four bits, asymmetric, in groups of 32; needs no rotation.
//!
//! Each group of 32 weights has a scale (the width of its range) and a minimum, both f16:
//!
//! ```text
//! weight = minimum[row, col / 32] + scale[row, col / 32] * code / 16
//! ```
//!
//! Parts: `codes` U8 `[rows, cols / 2]` in units of 64 codes (two groups: the first in the low
//! nibbles, the second in the high ones), `scales` and `mins` F16 `[rows, cols / 32]`: 5.0 bits a weight.

use super::{CodeUnit, Integers, PANEL_COLS, Part, PartType, Scheme, UNIT, Unit4};
use crate::Packed;
use std::ops::Range;

/// Weights that share a scale and a minimum.
const GROUP: usize = 32;
/// What a code is divided by.
const CODE_UNIT: f32 = 16.0;

/// The scheme.
pub static INT4: Int4 = Int4;

/// Four bits, asymmetric, in groups of 32.
#[derive(Debug)]
pub struct Int4;

impl Int4 {
    /// The distance between two levels, for a stored scale.
    pub fn step(&self, scale: f32) -> f32 {
        scale / CODE_UNIT
    }
}

impl Scheme for Int4 {
    fn name(&self) -> &'static str {
        "int4"
    }

    fn default_group(&self, _cols: usize) -> usize {
        GROUP
    }

    fn refuse(&self, _rows: usize, cols: usize, group: usize) -> Option<&'static str> {
        if group != GROUP {
            Some("the group is always 32")
        } else if !cols.is_multiple_of(UNIT) {
            Some("columns must be a multiple of 64")
        } else {
            None
        }
    }

    fn parts(&self, rows: usize, cols: usize, group: usize) -> Vec<Part> {
        let side = [rows, cols / group];
        vec![
            Part { suffix: "codes", dtype: PartType::U8, shape: [rows, cols / UNIT * Unit4::BYTES] },
            Part { suffix: "scales", dtype: PartType::F16, shape: side },
            Part { suffix: "mins", dtype: PartType::F16, shape: side },
        ]
    }

    fn weight(&self, m: &Packed, row: usize, col: usize) -> f32 {
        let unit = &m.row(0, row)[col / UNIT * Unit4::BYTES..][..Unit4::BYTES];
        let code = f32::from(Unit4::code(unit, col % UNIT));
        m.f16(2, row, col / GROUP) + m.f16(1, row, col / GROUP) * (code / CODE_UNIT)
    }

    fn integers(&self) -> Option<Integers<'_>> {
        Some(Integers::Units {
            bits: 4,
            table: std::array::from_fn(|code| code as i8),
            level_unit: CODE_UNIT,
            minima: Some(2),
        })
    }

    fn decode_panel(&self, m: &Packed, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_mut(PANEL_COLS)) {
            let codes = &m.row(0, row)[cols.start / UNIT * Unit4::BYTES..];
            let units = codes.chunks_exact(Unit4::BYTES).zip(out[..cols.len()].as_chunks_mut::<UNIT>().0);
            for (u, (unit, out)) in units.enumerate() {
                let mut codes = [0; UNIT];
                Unit4::unpack(unit, &mut codes);
                let halves = out.as_chunks_mut::<GROUP>().0.iter_mut().zip(codes.as_chunks::<GROUP>().0);
                for (g, (out, codes)) in halves.enumerate() {
                    let group = (cols.start + u * UNIT) / GROUP + g;
                    let (step, min) = (m.f16(1, row, group) / CODE_UNIT, m.f16(2, row, group));
                    for (out, &code) in out.iter_mut().zip(codes) {
                        // step * code is exact in f32 (11 + 4 bits), so one rounding happens, as in the reference.
                        *out = min + step * f32::from(code);
                    }
                }
            }
        }
    }
}
