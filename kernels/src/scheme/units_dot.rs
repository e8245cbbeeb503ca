//! Rows of units times an input in eight bits, for the schemes whose rows are units of 64 levels.

use crate::{
    Packed, QuantizedInput,
    arch::{Kernels, UnitRows},
};

/// How the rows of a scheme consist of units.
#[derive(Debug, Clone, Copy)]
pub struct Units {
    /// Bits of a code: 2, 3, 4, or 8 where the codes are the levels.
    pub bits: usize,
    /// The level of each code below 16.
    pub table: [i8; 16],
    /// What a stored scale is divided by, a power of two.
    pub level_unit: f32,
    /// The part with the minima, if there is one.
    pub minima: Option<usize>,
}

impl Units {
    /// `out[r] = W[first + r] . x`, for codes in part 0 and scales in part 1.
    pub fn dot(&self, kernels: &Kernels, m: &Packed, first: usize, x: &QuantizedInput, out: &mut [f32]) {
        let rows = first..first + out.len();
        let minima = self.minima.map_or(&[][..], |part| m.some_rows(part, rows.clone()));
        (kernels.units_dot)(
            UnitRows {
                bits: self.bits,
                table: &self.table,
                codes: m.some_rows(0, rows.clone()),
                scales: m.some_rows(1, rows),
                minima,
                level_unit: self.level_unit,
                group: m.group(),
                x,
            },
            out,
        );
    }
}
