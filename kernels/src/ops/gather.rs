//! The embedding look-up.

use crate::Weight;
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape};
use rayon::prelude::*;
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{DType, MetalStorage, backend::BackendStorage},
};

/// `ids [n] u32 -> rows [n, cols] f32`, in the unrotated frame.
///
/// On the CPU an id past the last row is an error; on Metal, where nobody looks before the device is done, its row is no number.
#[derive(Debug)]
pub struct Gather(
    /// The embedding `[vocabulary, cols]`.
    pub Weight,
);

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "squish-gather"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (name, rows, cols) = (self.name(), self.0.rows(), self.0.cols());
        let (CpuStorage::U32(ids), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            return Err(Error::Msg(format!("{name}: ids must be a contiguous U32 tensor")).bt());
        };
        let ids = &ids[start..end];
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(Error::Msg(format!("{name}: id {id} is not below {rows}")).bt());
        }
        let mut out = vec![0.0; ids.len() * cols];
        out.par_chunks_mut(cols).zip(ids).for_each(|(out, &id)| self.0.row(id as usize, out));
        Ok((CpuStorage::F32(out), (ids.len(), cols).into()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (name, weight) = (self.name(), &self.0);
        let (DType::U32, Some((start, end))) = (storage.dtype(), layout.contiguous_offsets()) else {
            return Err(Error::Msg(format!("{name}: ids must be a contiguous U32 tensor")).bt());
        };
        if weight.low_rank().is_some() || weight.sparse().is_some() {
            return Err(Error::Msg(format!("{name}: no embedding with corrections on Metal")).bt());
        }
        let (device, packed) = (storage.device(), weight.packed());
        let launches = metal::gather(packed, weight.rotation().map(|rotation| &**rotation), end - start);
        let parts = packed.resident(device)?;
        let count = (end - start) * packed.cols();
        let rows = device::run(name, device, &launches, &[parts], &[(storage, start)], count)?;
        Ok((rows, (end - start, packed.cols()).into()))
    }
}
