//! `y = W x` for one input in eight bits: integer dot products, straight from the codes.

use super::{rows_of, with_last_dim};
use crate::{
    Packed, QuantizedInput,
    arch::{self, Kernels},
    disjoint::Disjoint,
    quantized_input::GROUP,
    scheme::PANEL_ROWS,
    team,
};
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape};
use std::sync::Arc;

/// `x [.., cols] -> y [.., rows]`, f32, where `x` is a single input and `rows` those of all matrices, one after the other.
#[derive(Debug)]
pub struct MatVec {
    /// Each `W [rows, cols]`, of a scheme of integers.
    pub weights: Vec<Packed>,
    /// The input that the op is applied to, quantised.
    pub input: Arc<QuantizedInput>,
}

impl CustomOp1 for MatVec {
    fn name(&self) -> &'static str {
        "squish-matvec"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for weight in &self.weights {
            let (_, batch) = rows_of(self.name(), storage, layout, weight.cols())?;
            let groups = weight.cols().div_ceil(GROUP);
            if batch != 1 || self.input.scales().len() != groups || weight.scheme().integers().is_none() {
                let (name, scheme) = (self.name(), weight.scheme().name());
                let message =
                    format!("{name}: {batch} inputs of {groups} groups do not suit a matrix in {scheme}");
                return Err(Error::Msg(message).bt());
            }
        }
        let kernels = arch::kernels().map_err(Error::wrap)?;
        let rows = self.weights.iter().map(Packed::rows).sum();
        let mut y = vec![0.0; rows];
        matvec(&kernels, &self.weights.iter().collect::<Vec<_>>(), &self.input, &mut y);
        Ok((CpuStorage::F32(y), with_last_dim(layout, rows)))
    }
}

/// `y [rows] = W x` for all matrices, by these kernels, in parallel over strips of rows.
///
/// One parallel region for all of them: to wake threads and to wait for the last one costs as much as a small matrix does.
///
/// # Panics
/// When a scheme is not one of integers, or `x` or `y` has another length.
pub fn matvec(kernels: &Kernels, weights: &[&Packed], x: &QuantizedInput, y: &mut [f32]) {
    let rows = weights.iter().map(|w| w.rows()).sum::<usize>();
    assert!(y.len() == rows && weights.iter().all(|w| x.scales().len() == w.cols().div_ceil(GROUP)));
    let strips = |w: &Packed| w.rows().div_ceil(PANEL_ROWS);
    let y = Disjoint::new(y);
    team::for_each(weights.iter().map(|w| strips(w)).sum(), |mut strip| {
        let (mut weights, mut before) = (weights.iter().copied(), 0);
        let w = loop {
            let w = weights.next().expect("fewer strips than this");
            if strip < strips(w) {
                break w;
            }
            (strip, before) = (strip - strips(w), before + w.rows());
        };
        let integers = w.scheme().integers().expect("a scheme of integers");
        let first = strip * PANEL_ROWS;
        // SAFETY: a strip's outputs are its own.
        let y = unsafe { y.part(before + first, PANEL_ROWS.min(w.rows() - first)) };
        integers.dot(kernels, w, first, x, y);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{QuantizedBatch, ops::matmat::matmat, scheme};
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    proptest! {
        /// Every bit pattern is a valid matrix: all schemes, all shapes, any bytes, with scales that are numbers.
        #[test]
        fn products_equal_the_reference(
            s in 0..scheme::ALL.len(), rows in 1..40usize, tiles in 1..60usize, batch in 1..30usize, seed: u64,
        ) {
            let scheme = scheme::ALL[s];
            prop_assume!(scheme.integers().is_some());
            let fits = |cols, group| Packed::layout(scheme, rows, cols, group).is_ok();
            let cols = if fits(16, 16) { 16 * tiles } else { 64 * tiles.div_ceil(4) };
            let group = [scheme.default_group(cols), cols, 64].into_iter().find(|&group| fits(cols, group)).unwrap();
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as u32
            };
            let parts = Packed::layout(scheme, rows, cols, group).unwrap();
            let parts = parts.iter().map(|part| match part.dtype {
                scheme::PartType::F16 => (0..part.bytes() / 2)
                    .flat_map(|_| half::f16::from_f32(next() as f32 / (1 << 23) as f32 - 1.0).to_le_bytes())
                    .collect::<Vec<u8>>(),
                _ => (0..part.bytes()).map(|_| next() as u8).collect(),
            });
            let parts = parts.map(bytes::Bytes::from).collect();
            let weight = Packed::new(scheme, rows, cols, group, parts).unwrap();
            let x: Vec<f32> = (0..batch * cols).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect();
            let inputs: Vec<QuantizedInput> = x.chunks(cols).map(QuantizedInput::new).collect();
            let matrix = weight.dequant();
            let expected: Vec<(f64, f64)> = inputs.iter().flat_map(|x| matrix.chunks(cols).map(|row| {
                let products = row.iter().zip(x.values()).enumerate()
                    .map(|(c, (&w, &v))| f64::from(w) * f64::from(x.scales()[c / 64]) * f64::from(v));
                products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
            })).collect();
            let check = |isa: &str, found: &[f32], expected: &[(f64, f64)]| {
                for (found, (sum, size)) in found.iter().zip(expected) {
                    let error = (f64::from(*found) - sum).abs();
                    prop_assert!(error <= 3e-6 * size + 1e-6, "{isa} {}: {found} {sum}", scheme.name());
                }
                Ok(())
            };
            for kernels in arch::available() {
                let mut y = vec![f32::NAN; rows];
                matvec(&kernels, &[&weight], &inputs[0], &mut y);
                check(kernels.isa, &y, &expected)?;
                if let Some(panels) = kernels.panels {
                    let mut y = vec![f32::NAN; batch * rows];
                    let (integers, inputs) = (scheme.integers().unwrap(), QuantizedBatch::new(&x, cols, panels.depth));
                    matmat(&panels, &integers, &weight, &inputs, &mut y);
                    check(kernels.isa, &y, &expected)?;
                }
            }
        }
    }

    #[test]
    fn refuses_what_it_cannot_multiply() {
        let bf16 = Packed::new(&scheme::BF16, 1, 64, 1, vec![vec![0; 128].into()]).unwrap();
        let int8 =
            Packed::new(&scheme::INT8, 1, 64, 64, vec![vec![0; 64].into(), vec![0; 2].into()]).unwrap();
        let input = |n| Arc::new(QuantizedInput::new(&vec![1.0; n]));
        let x = |batch| Tensor::ones((batch, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
        for (x, weight, input) in
            [(x(1), bf16, input(64)), (x(2), int8.clone(), input(64)), (x(1), int8.clone(), input(128))]
        {
            let error = x.apply_op1_no_bwd(&MatVec { weights: vec![weight], input }).unwrap_err().to_string();
            assert!(error.contains("squish-matvec"), "{error}");
        }
        assert!(
            x(1).apply_op1_no_bwd(&MatVec { weights: vec![int8.clone(), int8], input: input(64) }).is_ok()
        );
    }
}
