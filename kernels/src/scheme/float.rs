//! `bf16`, `f16`, `f32`: unquantised matrices, as original checkpoints hold them.
//!
//! One part, without suffix, of the scheme's own element type. Groups mean nothing here.

use super::{PANEL_COLS, Part, PartType, Scheme};
use crate::Packed;
use half::{bf16, f16};
use std::{marker::PhantomData, ops::Range};

/// bfloat16, 16 bits a weight.
pub static BF16: Float<bf16> = Float::new("bf16", PartType::BF16);
/// IEEE half precision, 16 bits a weight.
pub static F16: Float<f16> = Float::new("f16", PartType::F16);
/// IEEE single precision, 32 bits a weight.
pub static F32: Float<f32> = Float::new("f32", PartType::F32);

/// An element type of a stored matrix.
pub trait Element: Send + Sync + std::fmt::Debug + 'static {
    /// The value of one little-endian element.
    fn read(bytes: &[u8]) -> f32;
}

impl Element for bf16 {
    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        // A bfloat16 is the upper half of an f32.
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

impl Element for f32 {
    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

/// An unquantised matrix of elements `E`.
#[derive(Debug)]
pub struct Float<E> {
    name: &'static str,
    dtype: PartType,
    element: PhantomData<E>,
}

impl<E> Float<E> {
    const fn new(name: &'static str, dtype: PartType) -> Self {
        Self { name, dtype, element: PhantomData }
    }
}

impl<E: Element> Scheme for Float<E> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn default_group(&self, _cols: usize) -> usize {
        1
    }

    fn refuse(&self, _rows: usize, _cols: usize, _group: usize) -> Option<&'static str> {
        None
    }

    fn parts(&self, rows: usize, cols: usize, _group: usize) -> Vec<Part> {
        vec![Part { suffix: "", dtype: self.dtype, shape: [rows, cols] }]
    }

    fn weight(&self, m: &Packed, row: usize, col: usize) -> f32 {
        E::read(&m.row(0, row)[col * self.dtype.size()..])
    }

    fn decode_panel(&self, m: &Packed, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        let size = self.dtype.size();
        for (row, out) in rows.zip(out.chunks_mut(PANEL_COLS)) {
            let elements = m.row(0, row)[cols.start * size..cols.end * size].chunks_exact(size);
            for (out, element) in out.iter_mut().zip(elements) {
                *out = E::read(element);
            }
        }
    }
}
