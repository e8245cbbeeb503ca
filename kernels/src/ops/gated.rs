//! The gated product of an MLP (Shazeer, "GLU Variants Improve Transformer", 2020), rotated for the matrix that follows.

use super::{rows_of, softmax::exp};
use crate::{Rotation, arch::vectorized, team};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape};
use rayon::prelude::*;
use std::sync::Arc;
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{MetalStorage, backend::BackendStorage},
};

/// Values that one thread works on; fewer are not worth a second thread.
const CHUNK: usize = 1 << 11;

const NAME: &str = "squish-gated";

/// What the gate passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, the approximation of GELU by tanh.
    GeluTanh,
}

/// `gate`, `up [.., n] -> activation(gate) * up [.., n]`, f32, rotated where there is a rotation.
#[derive(Debug, Clone)]
pub struct Gated {
    /// What the gate passes through.
    pub activation: Activation,
    /// The rotation behind the product.
    pub rotation: Option<Arc<Rotation>>,
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let cols = self.check(gate_layout, up_layout)?;
        let (gate, _) = rows_of(NAME, gate, gate_layout, cols)?;
        let (up, _) = rows_of(NAME, up, up_layout, cols)?;
        let mut y = vec![0.0; gate.len()];
        if y.len() == cols {
            self.row(gate, up, &mut y)?;
        } else {
            let inputs = gate.par_chunks(cols.max(1)).zip(up.par_chunks(cols.max(1)));
            y.par_chunks_mut(cols.max(1)).zip(inputs).for_each(|(y, (gate, up))| self.part(gate, up, 0, y));
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
        let cols = self.check(gate_layout, up_layout)?;
        let (gates, rows) = super::rows_in(NAME, gate.dtype(), gate_layout, cols)?;
        let (ups, _) = super::rows_in(NAME, up.dtype(), up_layout, cols)?;
        let inputs = [(gate, gates.start), (up, ups.start)];
        let gelu = self.activation == Activation::GeluTanh;
        let launches = match &self.rotation {
            Some(rotation) => {
                let before = if gelu { metal::Before::Gelu } else { metal::Before::Silu };
                metal::rotate(rotation, rows, before)
            }
            None => vec![metal::gated(gates.len(), gelu)],
        };
        let y = device::run(NAME, gate.device(), &launches, &[], &inputs, gates.len())?;
        Ok((y, gate_layout.shape().clone()))
    }
}

impl Gated {
    /// The op of a single row on the CPU, into `y`.
    ///
    /// # Errors
    /// When the three differ in length, or the rotation is for another.
    pub fn row(&self, gate: &[f32], up: &[f32], y: &mut [f32]) -> Result<()> {
        let cols = y.len();
        let fits = self.rotation.as_ref().is_none_or(|rotation| rotation.cols() == cols);
        if gate.len() != cols || up.len() != cols || !fits {
            let message =
                format!("{NAME}: {}, {} and {cols} differ, or the rotation's size", gate.len(), up.len());
            return Err(candle_core::Error::Msg(message).bt());
        }
        // One thread's values are whole blocks of the rotation, and whole words of its signs.
        let block = self.rotation.as_ref().map_or(1, |rotation| rotation.block()).max(64);
        let chunk = block * CHUNK.div_ceil(block);
        if self.rotation.as_ref().is_none_or(|rotation| rotation.block() >= 64) {
            team::for_each_chunk(y, chunk, |i, y| {
                let at = i * chunk..i * chunk + y.len();
                self.part(&gate[at.clone()], &up[at], i * chunk, y);
            });
        } else {
            self.part(gate, up, 0, y);
        }
        Ok(())
    }

    /// The values from `first` on of a row, where whole blocks of the rotation begin and end.
    fn part(&self, gate: &[f32], up: &[f32], first: usize, y: &mut [f32]) {
        y.copy_from_slice(gate);
        multiply(self.activation, y, up);
        self.rotation.iter().for_each(|rotation| rotation.apply_from(first, y));
    }

    /// The columns of two operands that fit each other and the rotation.
    fn check(&self, gate: &Layout, up: &Layout) -> Result<usize> {
        let cols = gate.dims().last().copied().unwrap_or(0);
        let same = gate.dims() == up.dims();
        if same && self.rotation.as_ref().is_none_or(|rotation| rotation.cols() == cols) {
            return Ok(cols);
        }
        let message = format!("{NAME}: {:?} and {:?} differ, or the rotation's size", gate.dims(), up.dims());
        Err(candle_core::Error::Msg(message).bt())
    }
}

/// `gate <- activation(gate) * up`.
fn multiply(activation: Activation, gate: &mut [f32], up: &[f32]) {
    // (1 + tanh(z)) / 2 = 1 / (1 + e^-2z), so both are x / (1 + e^-s(x)); 0.7978846 is sqrt(2 / pi).
    match activation {
        Activation::Silu => multiply_by(gate, up, |x| x),
        Activation::GeluTanh => multiply_by(gate, up, |x| 2.0 * 0.797_884_6 * (x + 0.044_715 * x * x * x)),
    }
}

#[inline(always)]
fn multiply_by(gate: &mut [f32], up: &[f32], s: impl Fn(f32) -> f32 + Copy) {
    vectorized(
        #[inline(always)]
        || {
            for (g, u) in gate.iter_mut().zip(up) {
                // e^-|s| does not overflow: 1 / (1 + e^-s) is 1 / (1 + e) for s >= 0, and e / (1 + e) below.
                let s = s(*g);
                let e = exp(-s.abs());
                let numerator = if s >= 0.0 { 1.0 } else { e };
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
        for (rows, n) in
            [(2, 1), (2, 7), (1, 64), (1, 3 * CHUNK + 3), (3, CHUNK + 3), (1, 96 * 64), (2, 192), (1, 48)]
        {
            let values = |factor: f32| -> Vec<f32> {
                (0..rows * n).map(|i| ((i * 37 % 101) as f32 - 50.0) * factor).collect()
            };
            let (gate, up) = (values(0.6), values(0.1));
            let tensor = |v: &[f32]| Tensor::from_slice(v, (rows, n), &Device::Cpu).unwrap();
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let mut rotations = vec![None];
                for block in [16, 64] {
                    rotations.extend(
                        n.is_multiple_of(block).then(|| Some(Arc::new(Rotation::new(n, block, 1).unwrap()))),
                    );
                }
                for rotation in rotations {
                    let op = Gated { activation, rotation: rotation.clone() };
                    let y = tensor(&gate).apply_op2_no_bwd(&tensor(&up), &op).unwrap();
                    let product = gate.iter().zip(&up).map(|(&g, &u)| {
                        let (g, u) = (f64::from(g), f64::from(u));
                        let gelu = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
                        let passed = match activation {
                            Activation::Silu => g / (1.0 + (-g).exp()),
                            Activation::GeluTanh => 0.5 * g * (1.0 + gelu.tanh()),
                        };
                        (passed * u) as f32
                    });
                    let mut expected: Vec<f32> = product.collect();
                    if let Some(rotation) = rotation {
                        expected.chunks_mut(n).for_each(|row| rotation.apply(row));
                    }
                    let most = expected.iter().fold(1.0f32, |most, v| most.max(v.abs()));
                    for (y, expected) in
                        y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().zip(expected)
                    {
                        assert!(
                            (y - expected).abs() < 2e-6 * most,
                            "{rows} {n} {activation:?}: {y} {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none_and_shapes_must_agree() {
        let tensor = |v: &[f32]| Tensor::from_slice(v, v.len(), &Device::Cpu).unwrap();
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let op = Gated { activation, rotation: None };
            let y = tensor(&[f32::NAN, f32::INFINITY]).apply_op2_no_bwd(&tensor(&[1.0, 1.0]), &op).unwrap();
            let y = y.to_vec1::<f32>().unwrap();
            assert!(y[0].is_nan() && y[1] == f32::INFINITY);
            let error = tensor(&[1.0]).apply_op2_no_bwd(&tensor(&[1.0, 2.0]), &op).unwrap_err();
            assert!(error.to_string().contains("squish-gated"), "{error}");
        }
    }
}
