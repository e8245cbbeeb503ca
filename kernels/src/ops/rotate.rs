//! The rotation of a linear's input.

use super::rows_of;
use crate::Rotation;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use rayon::prelude::*;
use std::sync::Arc;
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{MetalStorage, backend::BackendStorage},
};

/// `x [.., cols] -> H D x`, f32, each row on its own.
#[derive(Debug)]
pub struct Rotate(
    /// The rotation.
    pub Arc<Rotation>,
);

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "squish-rotate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, batch) = rows_of(self.name(), storage, layout, self.0.cols())?;
        let mut y = x.to_vec();
        if batch == 1 {
            self.0.apply_together(&mut y);
        } else {
            y.par_chunks_mut(self.0.cols()).for_each(|row| self.0.apply(row));
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (x, batch) = super::rows_in(self.name(), storage.dtype(), layout, self.0.cols())?;
        let launches = metal::rotate(&self.0, batch, metal::Before::Nothing);
        let y = device::run(self.name(), storage.device(), &launches, &[], &[(storage, x.start)], x.len())?;
        Ok((y, layout.shape().clone()))
    }
}
