//! `y = z L` for a packed `L`: the left factor of a low-rank correction.

use super::{rows_of, with_last_dim};
use crate::Packed;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{MetalStorage, backend::BackendStorage},
};

/// `z [.., rank] -> y [.., cols]`, f32.
#[derive(Debug)]
pub struct TransposedMatMul(
    /// `L [rank, cols]`.
    pub Packed,
);

impl CustomOp1 for TransposedMatMul {
    fn name(&self) -> &'static str {
        "squish-transposed-matmul"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rank, cols) = (self.0.rows(), self.0.cols());
        let (z, batch) = rows_of(self.name(), storage, layout, rank)?;
        let mut y = vec![0.0; batch * cols];
        multiply_transposed(&self.0, z, &mut vec![0.0; cols], &mut y);
        Ok((CpuStorage::F32(y), with_last_dim(layout, cols)))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (z, batch) = super::rows_in(self.name(), storage.dtype(), layout, self.0.rows())?;
        let (device, launch) = (storage.device(), metal::transposed(&self.0, batch));
        let parts = self.0.resident(device)?;
        let count = batch * self.0.cols();
        let y = device::run(self.name(), device, &[launch], &[parts], &[(storage, z.start)], count)?;
        Ok((y, with_last_dim(layout, self.0.cols())))
    }
}

/// `y [batch, cols] = z [batch, rank] L`, for which each row of `L` is decoded into `row`.
pub(crate) fn multiply_transposed(l: &Packed, z: &[f32], row: &mut [f32], y: &mut [f32]) {
    y.fill(0.0);
    for r in 0..l.rows() {
        l.decode_row(r, row);
        for (z, y) in z.chunks_exact(l.rows()).zip(y.chunks_exact_mut(l.cols())) {
            y.iter_mut().zip(&*row).for_each(|(y, w)| *y += z[r] * w);
        }
    }
}
