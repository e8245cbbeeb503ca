//! Each op against its definition in f64 over the scalar reference.

use super::*;
use crate::{Input, LowRank, Packed, Rotation, Sparse, Weight, scheme};
use candle_core::{CudaStorage, CustomOp1, DType, Device, Tensor};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::sync::Arc;

/// A matrix with random codes and scales of sane size.
pub(super) fn random(name: &str, rows: usize, cols: usize, group: usize, rng: &mut StdRng) -> Packed {
    use scheme::PartType::*;
    let scheme = scheme::by_name(name).unwrap();
    let parts = Packed::layout(scheme, rows, cols, group).unwrap();
    let parts = parts.iter().map(|part| {
        let mut bytes = Vec::with_capacity(part.bytes());
        for _ in 0..part.shape[0] * part.shape[1] {
            let value: f32 = rng.random_range(-1.0..1.0);
            match part.dtype {
                U8 | I8 => bytes.push(rng.random()),
                F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
                BF16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
                F32 => bytes.extend(value.to_le_bytes()),
            }
        }
        bytes.into()
    });
    Packed::new(scheme, rows, cols, group, parts.collect()).unwrap()
}

pub(super) fn input(batch: usize, cols: usize, rng: &mut StdRng) -> Vec<f32> {
    (0..batch * cols).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// `x W^T` in f64, for `w [rows, cols]`.
fn product(x: &[f32], w: &[f32], cols: usize) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    x.chunks(cols).flat_map(|x| w.chunks(cols).map(move |w| dot(x, w))).collect()
}

/// Ratio of the signal's to the error's energy, in decibels.
fn snr(expected: &[f64], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let signal: f64 = expected.iter().map(|e| e * e).sum();
    let noise: f64 = expected.iter().zip(found).map(|(e, &f)| (e - f64::from(f)).powi(2)).sum();
    10.0 * (signal / (noise + f64::MIN_POSITIVE)).log10()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn matmul_equals_the_reference(
        s in 0..scheme::ALL.len(), rows in 1..70usize, units in 1..8usize, batch in 1..20usize, seed: u64,
    ) {
        let (name, cols) = (scheme::ALL[s].name(), 64 * units);
        let group = match name { "int4" => 32, name if name.starts_with("tcq") => cols, _ => 64 };
        let rng = &mut StdRng::seed_from_u64(seed);
        let w = random(name, rows, cols, group, rng);
        let x = input(batch, cols, rng);
        let expected = product(&x, &w.dequant(), cols);
        let x = Tensor::from_vec(x, (batch, cols), &Device::Cpu).unwrap();
        let y = x.apply_op1_no_bwd(&MatMul(w)).unwrap();
        prop_assert_eq!(y.dims(), &[batch, rows]);
        let ratio = snr(&expected, &y.flatten_all().unwrap().to_vec1().unwrap());
        prop_assert!(ratio > 100.0, "{name}: {ratio} dB");
    }
}

#[test]
fn a_large_batch_equals_the_reference() {
    let rng = &mut StdRng::seed_from_u64(5);
    for (name, rows, cols, batch) in [("nf2", 50, 192, 48), ("bf16", 130, 77, 100), ("int4", 2100, 512, 64)] {
        let w = random(name, rows, cols, if name == "int4" { 32 } else { 64 }, rng);
        let x = input(batch, cols, rng);
        let expected = product(&x, &w.dequant(), cols);
        let x = Tensor::from_vec(x, (batch, cols), &Device::Cpu).unwrap();
        let y = x.apply_op1_no_bwd(&MatMul(w)).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(snr(&expected, &y) > 100.0, "{name}");
    }
}

#[test]
fn unaligned_widths_of_unquantised_matrices() {
    let rng = &mut StdRng::seed_from_u64(3);
    for cols in [1, 7, 63, 255, 257, 300] {
        let w = random("bf16", 19, cols, 1, rng);
        let x = input(5, cols, rng);
        let expected = product(&x, &w.dequant(), cols);
        let y = Tensor::from_vec(x, (5, cols), &Device::Cpu).unwrap().apply_op1_no_bwd(&MatMul(w)).unwrap();
        assert!(snr(&expected, &y.flatten_all().unwrap().to_vec1().unwrap()) > 100.0, "{cols}");
    }
}

/// A matrix of more than 191 columns with a low-rank and a sparse correction.
pub(super) fn corrected(packed: Packed, rng: &mut StdRng) -> Weight {
    let (rows, cols) = (packed.rows(), packed.cols());
    let low_rank =
        LowRank::new(random("int4r", 4, rows, 64, rng), random("int4r", 4, cols, 64, rng)).unwrap();
    let le = |v: &[u32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into();
    let mut offsets = vec![2; rows + 1];
    (offsets[0], offsets[1]) = (0, 1);
    let sparse = Sparse::new(
        rows,
        cols,
        le(&offsets),
        [5u16, 191].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into(),
        [half::f16::ONE; 2].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into(),
    );
    Weight::from(packed).with_low_rank(low_rank).and_then(|w| w.with_sparse(sparse.unwrap())).unwrap()
}

/// A weight with everything: rotated, with a low-rank and a sparse correction.
#[test]
fn a_corrected_weight_multiplies_and_gathers_as_its_rows_say() {
    let (rows, cols, batch) = (128, 192, 3);
    let rng = &mut StdRng::seed_from_u64(7);
    let packed = random("nf2", rows, cols, 64, rng);
    let weight = corrected(packed, rng).with_rotation(Arc::new(Rotation::new(cols, 64, 9).unwrap())).unwrap();
    let mut dense = vec![0.0; rows * cols];
    for (r, row) in dense.chunks_mut(cols).enumerate() {
        weight.row(r, row);
    }

    let x = input(batch, cols, rng);
    let expected = product(&x, &dense, cols);
    let x = Input::new(Tensor::from_vec(x, (batch, cols), &Device::Cpu).unwrap());
    let y = weight.forward(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert!(snr(&expected, &y) > 100.0);

    let ids = Tensor::new(&[127u32, 0, 3], &Device::Cpu).unwrap();
    let rows = weight.gather(&ids).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(rows[0], dense[127 * cols..]);
    assert_eq!(rows[1], dense[..cols]);
}

#[test]
fn a_bad_input_is_an_error_that_names_the_op() {
    let rng = &mut StdRng::seed_from_u64(1);
    let w = || random("nf2", 4, 64, 64, &mut StdRng::seed_from_u64(1));
    let message = |x: Tensor| x.apply_op1_no_bwd(&MatMul(w())).unwrap_err().to_string();
    let zeros = |shape: (usize, usize), dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    assert!(
        message(zeros((1, 65), DType::F32)).contains("squish-matmul: input [1, 65] F32 must have 64 columns")
    );
    assert!(message(zeros((1, 64), DType::F64)).contains("must be F32"));
    assert!(message(zeros((64, 64), DType::F32).t().unwrap()).contains("must be contiguous"));
    let weight = Weight::from(random("nf2", 4, 64, 64, rng));
    let ids = Tensor::new(&[4u32], &Device::Cpu).unwrap();
    assert!(weight.gather(&ids).unwrap_err().to_string().contains("squish-gather: id 4 is not below 4"));
    let empty = Tensor::zeros((0, 64), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(empty.apply_op1_no_bwd(&MatMul(w())).unwrap().dims(), &[0, 4]);
}

#[test]
fn an_absent_backend_names_the_op() {
    let w = random("nf2", 4, 64, 64, &mut StdRng::seed_from_u64(1));
    let rotation = Arc::new(Rotation::new(64, 64, 0).unwrap());
    let empty: bytes::Bytes = Vec::new().into();
    let sparse = Sparse::new(4, 64, vec![0; 20].into(), empty.clone(), empty).unwrap();
    let ops: [&dyn CustomOp1; 5] = [
        &MatMul(w.clone()),
        &TransposedMatMul(w.clone()),
        &Rotate(rotation),
        &SparseMatMul(Arc::new(sparse)),
        &Gather(w.into()),
    ];
    for op in ops {
        let layout = Layout::contiguous((1, 64));
        let cuda = op.cuda_fwd(&CudaStorage, &layout).unwrap_err().to_string();
        assert!(cuda.contains("cuda") && cuda.contains(op.name()), "{cuda}");
    }
}
