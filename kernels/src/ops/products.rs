//! Several products of one input, in f32.

use super::{matmul::multiply, rows_of};
use crate::Packed;
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape};
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{MetalStorage, backend::BackendStorage},
};

/// `x [1, cols] -> y [1, rows]`, f32, where `rows` are those of all matrices, one after the other: on a GPU in one launch. There they must be so
/// many as [`joined`](crate::metal::joined) says.
#[derive(Debug)]
pub struct Products(
    /// Each `W [rows, cols]`.
    pub Vec<Packed>,
);

impl CustomOp1 for Products {
    fn name(&self) -> &'static str {
        "squish-products"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let cols = self.check(layout)?;
        let (x, _) = rows_of(self.name(), storage, layout, cols)?;
        let mut y = vec![0.0; self.0.iter().map(Packed::rows).sum()];
        let mut rest = &mut y[..];
        for w in &self.0 {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(w.rows());
            multiply(w, x, part).map_err(Error::wrap)?;
            rest = after;
        }
        let shape = (1, y.len()).into();
        Ok((CpuStorage::F32(y), shape))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let cols = self.check(layout)?;
        let (x, _) = super::rows_in(self.name(), storage.dtype(), layout, cols)?;
        let (device, weights) = (storage.device(), self.0.iter().collect::<Vec<_>>());
        if metal::joined(&weights) < weights.len() {
            let message = format!("{}: {} matrices are not for one launch", self.name(), weights.len());
            return Err(Error::Msg(message).bt());
        }
        let parts = weights.iter().map(|w| w.resident(device)).collect::<Result<Vec<_>>>()?;
        let rows = weights.iter().map(|w| w.rows()).sum();
        let launch = metal::products(&weights);
        let y = device::run(self.name(), device, &[launch], &parts, &[(storage, x.start)], rows)?;
        Ok((y, (1, rows).into()))
    }
}

impl Products {
    /// The columns of all matrices, where the input is one for them.
    fn check(&self, layout: &Layout) -> Result<usize> {
        let cols = self.0.first().map_or(0, Packed::cols);
        if self.0.iter().all(|w| w.cols() == cols) && layout.dims() == [1, cols] {
            return Ok(cols);
        }
        let message = format!("{}: {:?} is no single input of all matrices", self.name(), layout.dims());
        Err(Error::Msg(message).bt())
    }
}
