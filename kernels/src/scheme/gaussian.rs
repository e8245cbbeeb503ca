//! `nf2`, `int3`, `int4r`: scalar codes for a Gaussian source.
//!
//! A rotated weight is close to Gaussian, so a code indexes the Lloyd-Max levels of the unit Gaussian
//! (J. Max, "Quantizing for minimum distortion", 1960), the scalar levels of least mean squared
//! error: 9.30 dB at 2 bits, 14.62 dB at 3, 20.22 dB at 4. The levels are stored as signed bytes, so
//! that a kernel may look them up in a register and feed them to integer dot products:
//!
//! ```text
//! weight = scale[row, col / group] * LEVELS[code] / 64
//! ```
//!
//! Parts: `codes` U8 `[rows, cols * bits / 8]` in units of 64 codes, `scales` F16 `[rows, cols / group]`.

use super::{
    CodeUnit, Integers, PANEL_COLS, Part, PartType, Scheme, UNIT, Unit2, Unit3, Unit4, refuse_units,
};
use crate::{Packed, arch};
use std::{marker::PhantomData, ops::Range};

/// What an integer level is divided by.
const LEVEL_UNIT: f32 = 64.0;

/// Lloyd-Max levels, 2 bits: +-0.4528, +-1.5104 sigma, times 127 / 1.5104.
const LEVELS_2: [i8; 4] = [-127, -38, 38, 127];
/// Lloyd-Max levels, 3 bits: +-0.2451, 0.7560, 1.3439, 2.1520 sigma, times 127 / 2.1520.
const LEVELS_3: [i8; 8] = [-127, -79, -45, -14, 14, 45, 79, 127];
/// Lloyd-Max levels, 4 bits: +-0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6181, 2.0690, 2.7326 sigma, times 127 / 2.7326.
const LEVELS_4: [i8; 16] = [-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127];

/// Two bits: 9.5 dB on a Gaussian with a searched scale, 2.25 bits in groups of 64.
pub static NF2: Gaussian<Unit2> = Gaussian::new("nf2", 64, &LEVELS_2, 1.5104);
/// Three bits: 14.9 dB on a Gaussian with a searched scale, 3.25 bits in groups of 64.
pub static INT3: Gaussian<Unit3> = Gaussian::new("int3", 64, &LEVELS_3, 2.1520);
/// Four bits for a rotated matrix: 20.4 dB on a Gaussian with a searched scale, 4.125 bits in groups of 128.
pub static INT4R: Gaussian<Unit4> = Gaussian::new("int4r", 128, &LEVELS_4, 2.7326);

/// A scalar code with Gaussian levels and one f16 scale a group.
#[derive(Debug)]
pub struct Gaussian<U> {
    name: &'static str,
    group: usize,
    levels: &'static [i8],
    /// The outermost level for a unit Gaussian.
    widest: f32,
    unit: PhantomData<U>,
}

impl<U: CodeUnit> Gaussian<U> {
    const fn new(name: &'static str, group: usize, levels: &'static [i8], widest: f32) -> Self {
        assert!(levels.len() == 1 << U::BITS);
        Self { name, group, levels, widest, unit: PhantomData }
    }

    /// The levels in ascending order, in units of the scale.
    pub fn levels(&self) -> Vec<f32> {
        self.levels.iter().map(|&level| f32::from(level) / LEVEL_UNIT).collect()
    }

    /// The level of each code, and nothing for codes that there are not.
    fn table(&self) -> [i8; 16] {
        let mut table = [0; 16];
        table[..self.levels.len()].copy_from_slice(self.levels);
        table
    }

    /// The scale that fits a Gaussian of standard deviation 1.
    pub fn gaussian_scale(&self) -> f32 {
        self.widest / (f32::from(self.levels[self.levels.len() - 1]) / LEVEL_UNIT)
    }
}

impl<U: CodeUnit> Scheme for Gaussian<U> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn default_group(&self, _cols: usize) -> usize {
        self.group
    }

    fn wants_rotation(&self) -> bool {
        true
    }

    fn refuse(&self, _rows: usize, cols: usize, group: usize) -> Option<&'static str> {
        refuse_units(cols, group)
    }

    fn parts(&self, rows: usize, cols: usize, group: usize) -> Vec<Part> {
        vec![
            Part { suffix: "codes", dtype: PartType::U8, shape: [rows, cols / UNIT * U::BYTES] },
            Part { suffix: "scales", dtype: PartType::F16, shape: [rows, cols / group] },
        ]
    }

    fn weight(&self, m: &Packed, row: usize, col: usize) -> f32 {
        let unit = &m.row(0, row)[col / UNIT * U::BYTES..][..U::BYTES];
        let level = self.levels[usize::from(U::code(unit, col % UNIT))];
        m.f16(1, row, col / m.group()) * (f32::from(level) / LEVEL_UNIT)
    }

    fn integers(&self) -> Option<Integers<'_>> {
        Some(Integers::Units { bits: U::BITS, table: self.table(), level_unit: LEVEL_UNIT, minima: None })
    }

    fn decode_panel(&self, m: &Packed, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        // A forced instruction set that is absent is an error of the multiplication; decoding then takes its time.
        let lookup = arch::kernels().map_or(arch::scalar::KERNELS.lookup, |kernels| kernels.lookup);
        let table = self.table();
        for (row, out) in rows.zip(out.chunks_mut(PANEL_COLS)) {
            let codes = &m.row(0, row)[cols.start / UNIT * U::BYTES..];
            let units = codes.chunks_exact(U::BYTES).zip(out[..cols.len()].as_chunks_mut::<UNIT>().0);
            for (u, (unit, out)) in units.enumerate() {
                let scale = m.f16(1, row, (cols.start + u * UNIT) / m.group());
                let mut codes = [0; UNIT];
                U::unpack(unit, &mut codes);
                // scale * level is exact in f32 (11 + 7 bits): the same as the reference, in any order.
                lookup(&codes, &table, scale / LEVEL_UNIT, out);
            }
        }
    }
}
