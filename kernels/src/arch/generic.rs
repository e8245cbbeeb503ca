//! The kernels, written once over [`Vector`].

use super::vector::Vector;

/// `y[r, b] += panel[r] . x[b]` for every row `r` of a decoded panel and every input `b` of a batch.
///
/// * `panel`: rows of `width` weights, `panel_stride` apart; as many rows as `y` holds.
/// * `x`: `batch` inputs of `width` values, `x_stride` apart.
/// * `y`: `[rows, batch]`.
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
pub unsafe fn panel_dot<V: Vector, const B: usize>(
    panel: &[f32],
    panel_stride: usize,
    width: usize,
    x: &[f32],
    x_stride: usize,
    batch: usize,
    y: &mut [f32],
) {
    let rows = y.len() / batch;
    assert!(width <= panel_stride && width <= x_stride && y.len() == rows * batch);
    assert!(rows == 0 || (rows - 1) * panel_stride + width <= panel.len());
    assert!((batch - 1) * x_stride + width <= x.len());

    let tile = Tile { panel, panel_stride, width, x, x_stride, batch };
    let mut row = 0;
    while row < rows {
        let full = rows - row >= 4;
        let mut b = 0;
        while b < batch {
            // SAFETY: rows and inputs of the tile are in range: `full` and `wide` say that 4 and B of them are left.
            unsafe {
                let wide = batch - b >= B;
                match (full, wide) {
                    (true, true) => tile.add::<V, 4, B>(row, b, y),
                    (true, false) => tile.add::<V, 4, 1>(row, b, y),
                    (false, true) => tile.add::<V, 1, B>(row, b, y),
                    (false, false) => tile.add::<V, 1, 1>(row, b, y),
                }
                b += if wide { B } else { 1 };
            }
        }
        row += if full { 4 } else { 1 };
    }
}

/// The operands of [`panel_dot`].
struct Tile<'a> {
    panel: &'a [f32],
    panel_stride: usize,
    width: usize,
    x: &'a [f32],
    x_stride: usize,
    batch: usize,
}

impl Tile<'_> {
    /// Adds the products of rows `row..row + R` with inputs `b..b + B`.
    ///
    /// # Safety
    /// Those rows and inputs exist, and the processor has `V`'s instruction set.
    #[inline(always)]
    unsafe fn add<V: Vector, const R: usize, const B: usize>(&self, row: usize, b: usize, y: &mut [f32]) {
        // SAFETY: the caller vouches for the rows, the inputs and the instruction set; every offset below
        // is less than `width` past the start of one of them.
        unsafe {
            let w: [*const f32; R] =
                std::array::from_fn(|r| self.panel.as_ptr().add((row + r) * self.panel_stride));
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
