//! `y = x W^T` for a packed `W`: dequantised panel by panel inside the multiplication, or, for a large batch,
//! some rows at a time for a general matrix product.

use super::{rows_of, with_last_dim};
use crate::{
    Packed,
    arch::{self, Panel, PanelDot},
    scheme::{PANEL_COLS, PANEL_ROWS},
    team,
};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use rayon::prelude::*;
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{MetalStorage, backend::BackendStorage},
};

/// From this batch on, decoding rows to memory costs less than what a blocked product saves.
const LARGE_BATCH: usize = 48;

/// Weights that are decoded for one blocked product: 4 MiB of f32.
const BLOCK_WEIGHTS: usize = 1 << 20;

/// `x [.., cols] -> y [.., rows]`, f32.
#[derive(Debug)]
pub struct MatMul(
    /// `W [rows, cols]`.
    pub Packed,
);

impl CustomOp1 for MatMul {
    fn name(&self) -> &'static str {
        "squish-matmul"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, batch) = rows_of(self.name(), storage, layout, self.0.cols())?;
        let y = if batch >= LARGE_BATCH && !arch::is_forced() {
            blocked(&self.0, x, batch)
        } else {
            matmul(&self.0, x, batch).map_err(candle_core::Error::wrap)?
        };
        Ok((CpuStorage::F32(y), with_last_dim(layout, self.0.rows())))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (x, batch) = super::rows_in(self.name(), storage.dtype(), layout, self.0.cols())?;
        let (device, launch) = (storage.device(), metal::product(&self.0, batch));
        let parts = self.0.resident(device)?;
        let count = batch * self.0.rows();
        let y = device::run(self.name(), device, &[launch], &[parts], &[(storage, x.start)], count)?;
        Ok((y, with_last_dim(layout, self.0.rows())))
    }
}

/// `y [batch, rows]` for `x [batch, cols]`, parallel over panels of rows.
fn matmul(w: &Packed, x: &[f32], batch: usize) -> crate::Result<Vec<f32>> {
    let panel_dot = arch::kernels()?.panel_dot;
    let mut y = vec![0.0; w.rows() * batch];
    match batch {
        0 => Ok(y),
        1 => multiply(w, x, &mut y).map(|()| y),
        _ => {
            // Computed as y^T [rows, batch], so that each panel of rows owns one run of memory.
            let panels = y.par_chunks_mut(PANEL_ROWS * batch).enumerate();
            panels.for_each(|(i, y)| panel(panel_dot, w, i, x, batch, y));
            Ok(transpose(&y, batch))
        }
    }
}

/// `y [rows] = W x` for one input `x [cols]`.
///
/// # Errors
/// As [`arch::kernels`].
///
/// # Panics
/// When `x` or `y` has another length.
pub(crate) fn multiply(w: &Packed, x: &[f32], y: &mut [f32]) -> crate::Result<()> {
    assert!(x.len() == w.cols() && y.len() == w.rows());
    let panel_dot = arch::kernels()?.panel_dot;
    y.fill(0.0);
    team::for_each_chunk(y, PANEL_ROWS, |i, y| panel(panel_dot, w, i, x, 1, y));
    Ok(())
}

/// Adds the products of panel `i` with all inputs to `y [rows of the panel, batch]`.
fn panel(panel_dot: PanelDot, w: &Packed, i: usize, x: &[f32], batch: usize, y: &mut [f32]) {
    w.for_each_panel(i * PANEL_ROWS, |cols, weights| {
        let (width, x) = (cols.len(), &x[cols.start..]);
        panel_dot(Panel { weights, stride: PANEL_COLS, width, x, x_stride: w.cols(), batch }, y);
    });
}

/// `y [batch, rows]` for a large batch `x [batch, cols]`: blocks of rows are decoded, then multiplied by a
/// general matrix product.
fn blocked(w: &Packed, x: &[f32], batch: usize) -> Vec<f32> {
    let (rows, cols) = (w.rows(), w.cols());
    let mut y = vec![0.0; batch * rows];
    let block_rows = (BLOCK_WEIGHTS / cols).next_multiple_of(PANEL_ROWS).min(rows);
    let mut weights = vec![0.0; block_rows * cols];
    for first in (0..rows).step_by(block_rows) {
        let count = block_rows.min(rows - first);
        let weights = &mut weights[..count * cols];
        weights.par_chunks_mut(cols).enumerate().for_each(|(r, out)| w.decode_row(first + r, out));
        assert!(x.len() == batch * cols && y.len() == batch * rows && first + count <= rows);
        // SAFETY: x [batch, cols] and weights^T [cols, count] are read, and columns first..first + count of
        // y [batch, rows] written, within the lengths asserted above. The strides are (column, row).
        unsafe {
            gemm::gemm(
                batch,
                count,
                cols,
                y.as_mut_ptr().add(first),
                1,
                rows as isize,
                false,
                x.as_ptr(),
                1,
                cols as isize,
                weights.as_ptr(),
                cols as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        }
    }
    y
}

/// `[n, batch] -> [batch, n]`.
fn transpose(values: &[f32], batch: usize) -> Vec<f32> {
    /// Rows and columns of a tile that stays in the first-level cache.
    const TILE: usize = 32;
    let n = values.len() / batch;
    let mut out = vec![0.0; values.len()];
    out.par_chunks_mut(TILE * n).enumerate().for_each(|(tile, out)| {
        for start in (0..n).step_by(TILE) {
            for (b, out) in out.chunks_exact_mut(n).enumerate() {
                let column = tile * TILE + b;
                for (i, out) in out[start..n.min(start + TILE)].iter_mut().enumerate() {
                    *out = values[(start + i) * batch + column];
                }
            }
        }
    });
    out
}
