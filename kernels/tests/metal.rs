//! Each op on a Metal device, against f64 or the CPU. Does nothing where there is no such device.
#![cfg(feature = "metal")]

use candle_core::{Device, Result, Tensor};
use rand::{Rng, SeedableRng, rngs::StdRng};
use squish_kernels::{
    Input, LowRank, Packed, Rotation, Sparse, Weight,
    metal::first_device,
    ops::{Activation, DenseAttention, Gated, MatMul, Norm, RmsScale, Rotate, SplitHeads},
    scheme::{self, PartType},
};
use std::sync::Arc;

/// The device, or `None` with a message.
fn device() -> Option<Device> {
    let device = first_device();
    if device.is_none() {
        eprintln!("skipped: there is no Metal device");
    }
    device
}

/// A matrix with random codes, and scales of sane size.
fn random(name: &str, rows: usize, cols: usize, rng: &mut StdRng) -> Packed {
    let scheme = scheme::by_name(name).unwrap();
    let groups = [scheme.default_group(cols), 64, cols];
    let group = groups.into_iter().find(|&g| Packed::layout(scheme, rows, cols, g).is_ok()).unwrap();
    let layout = Packed::layout(scheme, rows, cols, group).unwrap();
    let mut element = |dtype| -> Vec<u8> {
        let value: f32 = rng.random_range(-1.0..1.0);
        match dtype {
            PartType::U8 | PartType::I8 => vec![rng.random()],
            PartType::F16 => half::f16::from_f32(value).to_le_bytes().into(),
            PartType::BF16 => half::bf16::from_f32(value).to_le_bytes().into(),
            PartType::F32 => value.to_le_bytes().into(),
        }
    };
    let mut parts = Vec::new();
    for part in &layout {
        let bytes: Vec<u8> = (0..part.shape[0] * part.shape[1]).flat_map(|_| element(part.dtype)).collect();
        parts.push(bytes.into());
    }
    Packed::new(scheme, rows, cols, group, parts).unwrap()
}

fn tensor(dims: &[usize], rng: &mut StdRng) -> Tensor {
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Ratio of the signal's to the error's energy, in decibels.
fn snr(expected: &[f64], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let signal: f64 = expected.iter().map(|e| e * e).sum();
    let noise: f64 = expected.iter().zip(found).map(|(e, &f)| (e - f64::from(f)).powi(2)).sum();
    // Added, not the larger of the two: what is no number must stay none.
    10.0 * (signal / (noise + f64::MIN_POSITIVE)).log10()
}

/// An op on the device gives what it gives on the CPU.
#[track_caller]
fn same(what: &str, device: &Device, inputs: &[&Tensor], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let on = |device: &Device| {
        let inputs: Vec<Tensor> = inputs.iter().map(|t| t.to_device(device).unwrap()).collect();
        floats(&op(&inputs).unwrap())
    };
    let expected: Vec<f64> = on(&Device::Cpu).into_iter().map(f64::from).collect();
    let ratio = snr(&expected, &on(device));
    assert!(ratio > 60.0, "{what}: {ratio} dB");
}

#[test]
fn products_of_every_scheme() {
    let Some(device) = device() else { return };
    for scheme in scheme::ALL {
        for (rows, cols, batch) in [(37, 448, 1), (70, 1024, 3), (33, 512, 8), (129, 576, 70)] {
            let rng = &mut StdRng::seed_from_u64(rows as u64);
            let w = random(scheme.name(), rows, cols, rng);
            let x = tensor(&[batch, cols], rng);
            let (dense, rows_of_x) = (w.dequant(), floats(&x));
            let dot = |x: &[f32], w: &[f32]| -> f64 {
                x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
            };
            let expected: Vec<f64> =
                rows_of_x.chunks(cols).flat_map(|x| dense.chunks(cols).map(move |w| dot(x, w))).collect();
            let y = x.to_device(&device).unwrap().apply_op1_no_bwd(&MatMul(w)).unwrap();
            let ratio = snr(&expected, &floats(&y));
            assert!(ratio > 60.0, "{} {rows} x {cols}, {batch} inputs: {ratio} dB", scheme.name());
        }
    }
}

#[test]
fn rotations_of_every_block() {
    let Some(device) = device() else { return };
    for block in (1..=15).map(|bits| 1usize << bits) {
        let cols = if block < 4096 { 3 * block } else { block };
        let rotation = Arc::new(Rotation::new(cols, block, 5).unwrap());
        let x = tensor(&[2, cols], &mut StdRng::seed_from_u64(1));
        same(&format!("block {block}"), &device, &[&x], |t| t[0].apply_op1_no_bwd(&Rotate(rotation.clone())));
    }
}

/// Rotated, with a low-rank and a sparse correction; and an embedding.
#[test]
fn corrected_weights_and_embeddings() {
    let Some(device) = device() else { return };
    let rng = &mut StdRng::seed_from_u64(7);
    let (rows, cols) = (128, 192);
    let le = |v: &[u32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into();
    let mut offsets = vec![2; rows + 1];
    (offsets[0], offsets[1]) = (0, 1);
    let columns: Vec<u8> = [5u16, 191].iter().flat_map(|v| v.to_le_bytes()).collect();
    let values: Vec<u8> = [half::f16::ONE; 2].iter().flat_map(|v| v.to_le_bytes()).collect();
    let sparse = Sparse::new(rows, cols, le(&offsets), columns.into(), values.into()).unwrap();
    let low_rank = LowRank::new(random("int4r", 4, rows, rng), random("int4r", 4, cols, rng)).unwrap();
    let rotation = Arc::new(Rotation::new(cols, 64, 9).unwrap());
    let plain = Weight::from(random("nf2", rows, cols, rng)).with_rotation(rotation).unwrap();
    let weight = plain.clone().with_low_rank(low_rank).and_then(|w| w.with_sparse(sparse)).unwrap();
    let x = tensor(&[3, cols], rng);
    same("corrected", &device, &[&x], |t| weight.forward(&Input::new(t[0].clone())));
    let ids = Tensor::new(&[127u32, 0, 3], &Device::Cpu).unwrap();
    same("embedding", &device, &[&ids], |t| plain.gather(&t[0]));
}

/// The residual stream's norm, with all that may be added before and the rotation behind.
#[test]
fn norms() {
    let Some(device) = device() else { return };
    let rng = &mut StdRng::seed_from_u64(4);
    let rotation = Arc::new(Rotation::new(192, 64, 3).unwrap());
    let [x, y] = [0; 2].map(|_| tensor(&[3, 192], rng));
    let [a, b] = [0; 2].map(|_| tensor(&[192], rng));
    for rotation in [None, Some(rotation)] {
        for kind in 0..3 {
            same(&format!("norm {kind}"), &device, &[&x, &y, &a, &b], |t| {
                let after = (kind == 2).then_some(RmsScale { factor: &t[3], eps: 1e-3 });
                let added = (kind > 0).then_some((&t[1], after));
                let scale = RmsScale { factor: &t[2], eps: 1e-6 };
                t[0].apply_op1_no_bwd(&Norm { scale, added, rotation: rotation.clone() })
            });
        }
    }
}

/// Heads as attention wants them, keys and values put among others.
#[test]
fn heads() {
    let Some(device) = device() else { return };
    let rng = &mut StdRng::seed_from_u64(5);
    let (heads, kv_heads, head_dim) = (4, 2, 64);
    for n in [1, 5] {
        let mut inputs =
            [heads, kv_heads, kv_heads].map(|heads| tensor(&[n, heads * head_dim], rng)).to_vec();
        inputs.extend([heads, kv_heads, kv_heads].map(|heads| tensor(&[heads * head_dim], rng)));
        inputs.extend([0; 2].map(|_| tensor(&[head_dim], rng)));
        inputs.extend([0; 2].map(|_| tensor(&[n, head_dim / 2], rng)));
        inputs.extend([0; 2].map(|_| tensor(&[kv_heads, n + 9, head_dim], rng)));
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        for (biased, normed) in [(false, false), (true, true)] {
            for part in 0..4 {
                same(&format!("heads {n} {biased} {part}"), &device, &inputs, |t| {
                    let op = SplitHeads {
                        heads,
                        kv_heads,
                        head_dim,
                        biases: biased.then_some([&t[3], &t[4], &t[5]]),
                        norms: normed.then_some([&t[6], &t[7]].map(|factor| RmsScale { factor, eps: 1e-6 })),
                        cos: &t[8],
                        sin: &t[9],
                    };
                    let qkv = [&t[0], &t[1], &t[2]];
                    if part == 3 {
                        return Ok(op.split(qkv)?[2].clone());
                    }
                    let held = [t[10].copy()?, t[11].copy()?];
                    let q = op.append(qkv, [&held[0], &held[1]], 7)?;
                    Ok([q, held[0].clone(), held[1].clone()][part].clone())
                });
            }
        }
    }
}

#[test]
fn gated_products_and_attention() {
    let Some(device) = device() else { return };
    let rng = &mut StdRng::seed_from_u64(3);
    let (gate, up) = (tensor(&[3, 100], rng), tensor(&[3, 100], rng));
    let (wide_gate, wide_up) = (tensor(&[2, 192], rng), tensor(&[2, 192], rng));
    let rotation = Some(Arc::new(Rotation::new(192, 64, 3).unwrap()));
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let op = Gated { activation, rotation: None };
        same("gated", &device, &[&gate, &up], |t| t[0].apply_op2_no_bwd(&t[1], &op));
        let op = Gated { activation, rotation: rotation.clone() };
        same("gated, rotated", &device, &[&wide_gate, &wide_up], |t| t[0].apply_op2_no_bwd(&t[1], &op));
    }
    for (heads, kv_heads, n, positions, head_dim) in
        [(8, 2, 1, 700, 64), (4, 4, 37, 50, 128), (2, 1, 5, 5, 256)]
    {
        for (softcap, window) in [(None, None), (Some(3.0), Some(20))] {
            let op = DenseAttention { scale: 0.3, softcap, window };
            let q = tensor(&[heads, n, head_dim], rng);
            let mut held = || tensor(&[kv_heads, positions + 9, head_dim], rng);
            let (k, v) = (held(), held());
            // Views of a cache with room behind.
            same(&format!("attention {op:?}"), &device, &[&q, &k, &v], |t| {
                let (k, v) = (t[1].narrow(1, 0, positions)?, t[2].narrow(1, 0, positions)?);
                t[0].apply_op3_no_bwd(&k, &v, &op)
            });
        }
    }
}
