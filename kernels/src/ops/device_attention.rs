//! Attention over pages on a GPU.

use crate::kv::DeviceHistory;
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape};
#[cfg(feature = "metal")]
use {
    super::{DenseAttention, FloatsOf, rows_in},
    crate::metal::{self, device},
    candle_core::{MetalStorage, backend::BackendStorage},
};

/// `q [heads, n, head_dim] -> [n, heads * head_dim]` f32, for the queries of the last `n` positions of a history, as
/// [`SplitHeads::append_pages`](super::SplitHeads::append_pages) gives them: rotated where keys are.
///
/// Each sees its own position and those before it, as many as the history's window says. `heads` is a multiple
/// of the history's heads: each of those serves as many consecutive query heads. The CPU has [`Attention`](super::Attention).
#[derive(Debug, Clone, Copy)]
pub struct DeviceAttention<'a> {
    /// What scores are multiplied by, usually `head_dim^-1/2`.
    pub scale: f32,
    /// Scores become `softcap * tanh(score / softcap)` where this is set.
    pub softcap: Option<f32>,
    /// Keys and values, those of the queries' own positions included.
    pub history: &'a DeviceHistory,
}

impl CustomOp1 for DeviceAttention<'_> {
    fn name(&self) -> &'static str {
        "squish-device-attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Err(Error::Msg(format!("{}: is for GPUs", self.name())).bt())
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, q: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (name, history) = (self.name(), self.history);
        let refuse = || {
            let (q, len) = (layout.dims(), history.len());
            Error::Msg(format!("{name}: queries {q:?} and {len} positions of pages do not fit")).bt()
        };
        let (&[heads, n, head_dim], Some(pages)) = (layout.dims(), history.shape()) else {
            return Err(refuse());
        };
        let fits = pages.head_dim == head_dim
            && heads > 0
            && heads.is_multiple_of(pages.kv_heads)
            && (1..=history.len()).contains(&n);
        let (true, Some(tensors)) = (fits, history.tensors()) else { return Err(refuse()) };
        let (at, _) = rows_in(name, q.dtype(), layout, head_dim)?;
        let op = DenseAttention { scale: self.scale, softcap: self.softcap, window: history.window() };
        let launch = metal::attention_pages(&op, [heads, n], history.len(), &pages).ok_or_else(refuse)?;
        let held = tensors.map(FloatsOf::new);
        let mut inputs = vec![(q, at.start)];
        for held in &held {
            inputs.push(held.any_on_metal(name)?);
        }
        let y = device::run(name, q.device(), &[launch], &[], &inputs, n * heads * head_dim)?;
        Ok((y, (n, heads * head_dim).into()))
    }
}
