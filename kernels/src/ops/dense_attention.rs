//! Attention over keys and values in whole tensors, as a cache on a GPU holds them.

use super::{Attention, strided_rows};
use crate::kv::History;
use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape};
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{DType, MetalStorage, backend::BackendStorage},
};

/// `q [heads, n, head_dim]`, `k` and `v [kv_heads, positions, head_dim] -> [n, heads * head_dim]`, all f32.
///
/// The queries are those of the last `n` positions; each sees its own position and those before it. `heads` is a multiple
/// of `kv_heads`: each key head serves as many consecutive query heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseAttention {
    /// What scores are multiplied by, usually `head_dim^-1/2`.
    pub scale: f32,
    /// Scores become `softcap * tanh(score / softcap)` where this is set.
    pub softcap: Option<f32>,
    /// A query sees this many positions at most, its own included; `None` for all before it.
    pub window: Option<usize>,
}

impl CustomOp3 for DenseAttention {
    fn name(&self) -> &'static str {
        "squish-dense-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let heads =
            |what, storage, layout| strided_rows(&format!("{}: {what}", self.name()), storage, layout);
        let (q, k, v) =
            (heads("queries", q, q_layout)?, heads("keys", k, k_layout)?, heads("values", v, v_layout)?);
        self.check(q.dims, k.dims, v.dims)?;
        // The one algorithm for processors reads histories: these keys and values as one, in f32.
        let mut history = History::default();
        history.extend(&k, &v, self.window)?;
        Attention { scale: self.scale, softcap: self.softcap, history: &history }.attend(&q)
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(
        &self,
        q: &MetalStorage,
        q_layout: &Layout,
        k: &MetalStorage,
        k_layout: &Layout,
        v: &MetalStorage,
        v_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let name = self.name();
        let matrices = |what, storage: &MetalStorage, layout| {
            super::strided_matrices(&format!("{name}: {what}"), storage.dtype(), layout)
        };
        let ((q_dims, q_stride), (k_dims, k_stride), (v_dims, v_stride)) = (
            matrices("queries", q, q_layout)?,
            matrices("keys", k, k_layout)?,
            matrices("values", v, v_layout)?,
        );
        self.check(q_dims, k_dims, v_dims)?;
        let [heads, n, head_dim] = q_dims;
        let held = k.dtype();
        let known = q.dtype() == DType::F32 && [DType::F32, DType::F16].contains(&held) && v.dtype() == held;
        let packed = heads == 1 || q_stride == n * head_dim;
        let strides = [k_stride, v_stride];
        let launch = (known && packed)
            .then(|| metal::attention(self, q_dims, [k_dims[0], k_dims[1]], strides, held == DType::F16));
        let Some(Some(launch)) = launch else {
            let message = format!("{name}: queries {q_dims:?} over keys in {held:?} are not for this device");
            return Err(Error::Msg(message).bt());
        };
        let inputs =
            [(q, q_layout.start_offset()), (k, k_layout.start_offset()), (v, v_layout.start_offset())];
        let y = device::run(name, q.device(), &[launch], &[], &inputs, n * heads * head_dim)?;
        Ok((y, (n, heads * head_dim).into()))
    }
}

impl DenseAttention {
    /// Whether queries, keys and values of these dimensions fit each other.
    fn check(&self, q: [usize; 3], k: [usize; 3], v: [usize; 3]) -> Result<()> {
        let fits = k == v
            && q[2] == k[2]
            && q[1] <= k[1]
            && q[0].min(k[0]).min(k[2]) > 0
            && q[0].is_multiple_of(k[0])
            && self.window != Some(0);
        if fits {
            return Ok(());
        }
        let (name, window) = (self.name(), self.window);
        let message =
            format!("{name}: queries {q:?}, keys {k:?} and values {v:?} do not fit, window {window:?}");
        Err(Error::Msg(message).bt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};

    /// As queries after queries find it, each over what was there at its time.
    #[test]
    fn equals_attention_over_a_history() {
        let random = |dims: (usize, usize, usize)| Tensor::randn(0f32, 1.0, dims, &Device::Cpu).unwrap();
        let (q, k, v) = (random((4, 90, 8)), random((2, 90, 8)), random((2, 90, 8)));
        for window in [None, Some(1), Some(33)] {
            let op = DenseAttention { scale: 0.4, softcap: Some(9.0), window };
            let all = q.apply_op3_no_bwd(&k, &v, &op).unwrap().to_vec2::<f32>().unwrap();
            for i in [0, 40, 89] {
                let [q, k, v] = [(&q, i, 1), (&k, 0, i + 1), (&v, 0, i + 1)]
                    .map(|(t, start, len)| t.narrow(1, start, len).unwrap());
                let one = q.apply_op3_no_bwd(&k, &v, &op).unwrap().to_vec2::<f32>().unwrap();
                let error = one[0].iter().zip(&all[i]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error < 1e-5, "{window:?} {i}: {error}");
            }
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let zeros = |dims: (usize, usize, usize)| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
        let op = DenseAttention { scale: 1.0, softcap: None, window: None };
        let (k, v) = (zeros((2, 5, 8)), zeros((2, 5, 8)));
        for (q, window) in [
            (zeros((3, 2, 8)), None),
            (zeros((4, 6, 8)), None),
            (zeros((4, 2, 4)), None),
            (zeros((4, 2, 8)), Some(0)),
        ] {
            let error = q.apply_op3_no_bwd(&k, &v, &DenseAttention { window, ..op }).unwrap_err().to_string();
            assert!(error.contains("squish-dense-attention"), "{error}");
        }
        assert!(zeros((4, 2, 8)).apply_op3_no_bwd(&k, &zeros((2, 4, 8)), &op).is_err());
    }
}
