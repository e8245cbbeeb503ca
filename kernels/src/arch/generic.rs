//! The kernels, written once over [`Vector`].

use super::vector::Vector;
use crate::scheme::UNIT;

/// A decoded panel of weights, and the inputs to multiply it with.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// Rows of `width` weights, `stride` apart.
    pub weights: &'a [f32],
    /// Distance between two rows of weights.
    pub stride: usize,
    /// Columns.
    pub width: usize,
    /// `batch` inputs of `width` values, `x_stride` apart.
    pub x: &'a [f32],
    /// Distance between two inputs.
    pub x_stride: usize,
    /// Number of inputs, at least 1.
    pub batch: usize,
}

/// `y[r, b] += weights[r] . x[b]` for `y [rows, batch]`: every row of the panel with every input of the batch.
///
/// Tiles of 4 rows x `B` inputs stay in registers. Each product is summed in the same order whatever the
/// tile, so that results do not depend on the batch.
///
/// # Safety
/// The processor has `V`'s instruction set.
///
/// # Panics
/// When a slice is too short for its shape.
#[inline(always)]
pub unsafe fn panel_dot<V: Vector, const B: usize>(panel: Panel, y: &mut [f32]) {
    let Panel { weights, stride, width, x, x_stride, batch } = panel;
    let rows = y.len() / batch;
    assert!(width <= stride && width <= x_stride && y.len() == rows * batch);
    assert!(rows == 0 || (rows - 1) * stride + width <= weights.len());
    assert!((batch - 1) * x_stride + width <= x.len());

    let mut row = 0;
    while row < rows {
        let full = rows - row >= 4;
        let mut b = 0;
        while b < batch {
            let wide = batch - b >= B;
            // SAFETY: the asserts above cover all rows and inputs; `full` and `wide` say that 4 and B of them are left.
            unsafe {
                match (full, wide) {
                    (true, true) => panel.add::<V, 4, B>(row, b, y),
                    (true, false) => panel.add::<V, 4, 1>(row, b, y),
                    (false, true) => panel.add::<V, 1, B>(row, b, y),
                    (false, false) => panel.add::<V, 1, 1>(row, b, y),
                }
            }
            b += if wide { B } else { 1 };
        }
        row += if full { 4 } else { 1 };
    }
}

impl Panel<'_> {
    /// Adds the products of rows `row..row + R` with inputs `b..b + B`.
    ///
    /// # Safety
    /// Those rows and inputs lie within the slices, and the processor has `V`'s instruction set.
    #[inline(always)]
    unsafe fn add<V: Vector, const R: usize, const B: usize>(&self, row: usize, b: usize, y: &mut [f32]) {
        // SAFETY: the caller vouches for the rows, the inputs and the instruction set; every offset below
        // is less than `width` past the start of one of them.
        unsafe {
            let w: [*const f32; R] =
                std::array::from_fn(|r| self.weights.as_ptr().add((row + r) * self.stride));
            let x: [*const f32; B] = std::array::from_fn(|i| self.x.as_ptr().add((b + i) * self.x_stride));
            let mut acc = [[V::zero(); B]; R];
            let whole = self.width - self.width % V::LANES;
            let mut col = 0;
            while col < whole {
                let inputs: [V; B] = std::array::from_fn(|i| V::load(x[i].add(col)));
                for r in 0..R {
                    let weights = V::load(w[r].add(col));
                    for i in 0..B {
                        acc[r][i] = acc[r][i].mul_add(weights, inputs[i]);
                    }
                }
                col += V::LANES;
            }
            for r in 0..R {
                for i in 0..B {
                    let mut sum = acc[r][i].sum();
                    for col in whole..self.width {
                        sum += *w[r].add(col) * *x[i].add(col);
                    }
                    y[(row + r) * self.batch + b + i] += sum;
                }
            }
        }
    }
}

/// `out[i] = step * table[codes[i]]` for a unit of codes below 16, in exact arithmetic.
#[inline(always)]
pub fn lookup(codes: &[u8; UNIT], table: &[i8; 16], step: f32, out: &mut [f32; UNIT]) {
    let table = table.map(|level| step * f32::from(level));
    for (out, code) in out.iter_mut().zip(codes) {
        *out = table[usize::from(code & 15)];
    }
}
