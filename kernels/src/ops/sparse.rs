//! The multiplication by a sparse correction.

use super::{rows_of, with_last_dim};
use crate::Sparse;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use std::sync::Arc;
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{MetalStorage, backend::BackendStorage},
};

/// `x [.., cols] -> S x [.., rows]`, f32.
#[derive(Debug)]
pub struct SparseMatMul(
    /// `S [rows, cols]`.
    pub Arc<Sparse>,
);

impl CustomOp1 for SparseMatMul {
    fn name(&self) -> &'static str {
        "squish-sparse-matmul"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, batch) = rows_of(self.name(), storage, layout, self.0.cols())?;
        let mut y = vec![0.0; batch * self.0.rows()];
        self.0.multiply_add(x, &mut y);
        Ok((CpuStorage::F32(y), with_last_dim(layout, self.0.rows())))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (x, batch) = super::rows_in(self.name(), storage.dtype(), layout, self.0.cols())?;
        let (device, launch) = (storage.device(), metal::sparse(&self.0, batch));
        let parts = self.0.resident(device)?;
        let count = batch * self.0.rows();
        let y = device::run(self.name(), device, &[launch], &[parts], &[(storage, x.start)], count)?;
        Ok((y, with_last_dim(layout, self.0.rows())))
    }
}
