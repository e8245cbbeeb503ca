//! `silu(gate) * up`, in one pass (Shazeer, "GLU Variants Improve Transformer", 2020).

use super::{rows_of, softmax::exp};
use crate::team;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape};
use pulp::Arch;
use rayon::prelude::*;
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{MetalStorage, backend::BackendStorage},
};

/// Values that one thread works on; fewer are not worth a second thread.
const CHUNK: usize = 1 << 11;

/// `gate`, `up [.., n] -> [.., n]`, f32, with `silu(x) = x / (1 + e^-x)`.
#[derive(Debug, Clone, Copy)]
pub struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "squish-swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let cols = gate_layout.dims().last().copied().unwrap_or(0);
        let (gate, _) = rows_of(self.name(), gate, gate_layout, cols)?;
        let (up, _) = rows_of(self.name(), up, up_layout, cols)?;
        check_lengths(self.name(), gate_layout, up_layout)?;
        let mut y = gate.to_vec();
        let work = |i: usize, y: &mut [f32]| multiply(y, &up[i * CHUNK..][..y.len()]);
        match y.len() / cols.max(1) {
            1 => team::for_each_chunk(&mut y, CHUNK, work),
            _ => y.par_chunks_mut(CHUNK).enumerate().for_each(|(i, y)| work(i, y)),
        }
        Ok((CpuStorage::F32(y), gate_layout.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(
        &self,
        gate: &MetalStorage,
        gate_layout: &Layout,
        up: &MetalStorage,
        up_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let cols = gate_layout.dims().last().copied().unwrap_or(0);
        let (gates, _) = super::rows_in(self.name(), gate.dtype(), gate_layout, cols)?;
        let (ups, _) = super::rows_in(self.name(), up.dtype(), up_layout, cols)?;
        check_lengths(self.name(), gate_layout, up_layout)?;
        let inputs = [(gate, gates.start), (up, ups.start)];
        let launch = metal::gated(gates.len(), false);
        let y = device::run(self.name(), gate.device(), &[launch], None, &inputs, gates.len())?;
        Ok((y, gate_layout.shape().clone()))
    }
}

fn check_lengths(name: &str, gate: &Layout, up: &Layout) -> Result<()> {
    if gate.shape().elem_count() == up.shape().elem_count() {
        return Ok(());
    }
    Err(candle_core::Error::Msg(format!("{name}: {:?} and {:?} differ", gate.dims(), up.dims())).bt())
}

fn multiply(gate: &mut [f32], up: &[f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (g, u) in gate.iter_mut().zip(up) {
                // e^-|x| does not overflow: 1 / (1 + e^-x) is 1 / (1 + e) for x >= 0, and e / (1 + e) below.
                let e = exp(-g.abs());
                let numerator = if *g >= 0.0 { 1.0 } else { e };
                *g = *g * numerator / (1.0 + e) * u;
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn equals_the_definition() {
        for (rows, n) in [(2, 1), (2, 7), (1, 64), (1, 3 * CHUNK + 3), (3, CHUNK + 3)] {
            let values = |factor: f32| -> Vec<f32> {
                (0..rows * n).map(|i| ((i * 37 % 101) as f32 - 50.0) * factor).collect()
            };
            let (gate, up) = (values(0.6), values(0.1));
            let tensor = |v: &[f32]| Tensor::from_slice(v, (rows, n), &Device::Cpu).unwrap();
            let y = tensor(&gate).apply_op2_no_bwd(&tensor(&up), &SwiGlu).unwrap();
            for ((y, g), u) in y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().zip(gate).zip(up) {
                let (g, u) = (f64::from(g), f64::from(u));
                let expected = g / (1.0 + (-g).exp()) * u;
                assert!((f64::from(*y) - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{g} {u}: {y}");
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none_and_shapes_must_agree() {
        let tensor = |v: &[f32]| Tensor::from_slice(v, v.len(), &Device::Cpu).unwrap();
        let y = tensor(&[f32::NAN, f32::INFINITY]).apply_op2_no_bwd(&tensor(&[1.0, 1.0]), &SwiGlu).unwrap();
        let y = y.to_vec1::<f32>().unwrap();
        assert!(y[0].is_nan() && y[1] == f32::INFINITY);
        let error = tensor(&[1.0]).apply_op2_no_bwd(&tensor(&[1.0, 2.0]), &SwiGlu).unwrap_err();
        assert!(error.to_string().contains("squish-swiglu"), "{error}");
    }
}
