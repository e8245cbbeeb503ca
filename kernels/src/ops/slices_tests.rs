//! What works on slices against the op over tensors, to the bit, with the same buffers from case to case; for attention, in its own tests.

use super::{
    tests::{corrected, input, random},
    *,
};
use crate::{Arithmetic, Input, Rotation, SingleInput, Weight, scheme};
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::sync::Arc;

fn tensor(values: &[f32], dims: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::from_slice(values, dims, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn linears_of_one_input() {
    let rng = &mut StdRng::seed_from_u64(3);
    let (mut single, mut y) = (SingleInput::default(), Vec::new());
    for case in 0..200 {
        let cols = 64 * rng.random_range(3..40);
        let rotation = Arc::new(Rotation::new(cols, 64, 9).unwrap());
        let (frame, arithmetic) = match case % 4 {
            0 => (Some(rotation.clone()), Arithmetic::Int8),
            1 | 2 => (None, Arithmetic::Int8),
            _ => (None, Arithmetic::F32),
        };
        let mut weight = || {
            let scheme = scheme::ALL[rng.random_range(0..scheme::ALL.len())].name();
            let rows = 64 * rng.random_range(1..4);
            let group = match scheme {
                "int4" => 32,
                scheme if scheme.starts_with("tcq") => cols,
                _ => 64,
            };
            let packed = random(scheme, rows, cols, group, rng);
            let weight = if rng.random() { corrected(packed, rng) } else { packed.into() };
            let weight = weight.with_arithmetic(arithmetic);
            let rotated = frame.is_some() || rng.random();
            if rotated { weight.with_rotation(rotation.clone()).unwrap() } else { weight }
        };
        let weights: [Weight; 3] = [weight(), weight(), weight()];
        let weights = weights.each_ref();
        let x = input(1, cols, rng);
        let of_tensor = Input::rotated_by(frame.clone(), tensor(&x, (1, cols)));
        let expected: Vec<f32> =
            Weight::forward_together(&weights, &of_tensor).unwrap().iter().flat_map(values).collect();
        single.renew(cols, frame).copy_from_slice(&x);
        assert_eq!(single.values(), x);
        // Twice: what is held of the input the second time is used.
        for _ in 0..2 {
            y.clear();
            y.resize(expected.len(), f32::NAN);
            Weight::forward_single(weights, &mut single, &mut y).unwrap();
            assert_eq!(y, expected, "case {case}");
        }
    }
}

#[test]
fn linears_refuse_what_does_not_fit() {
    let rng = &mut StdRng::seed_from_u64(4);
    let plain = Weight::from(random("nf2", 8, 64, 64, rng));
    let rotated = plain.clone().with_rotation(Arc::new(Rotation::new(64, 64, 1).unwrap())).unwrap();
    let mut single = SingleInput::default();
    let mut refused = |cols, frame, weight: &Weight, rows| {
        single.renew(cols, frame);
        Weight::forward_single([weight], &mut single, &mut vec![0.0; rows]).is_err()
    };
    let other = Arc::new(Rotation::new(64, 64, 2).unwrap());
    assert!(refused(63, None, &plain, 8) && refused(64, None, &plain, 9) && refused(64, None, &rotated, 7));
    assert!(refused(64, Some(other.clone()), &plain, 8) && refused(64, Some(other), &rotated, 8));
    assert!(!refused(64, None, &plain, 8) && !refused(64, None, &rotated, 8));
}

#[test]
fn norms() {
    let rng = &mut StdRng::seed_from_u64(5);
    for cols in [7, 64, 192, 4096] {
        let [x, y, factor, after] = [0; 4].map(|_| input(1, cols, rng));
        let (factor, after) = (tensor(&factor, cols), tensor(&after, cols));
        let (scale, after) =
            (RmsScale { factor: &factor, eps: 1e-6 }, RmsScale { factor: &after, eps: 1e-3 });
        let rotation = (cols % 64 == 0).then(|| Arc::new(Rotation::new(cols, 64, 3).unwrap()));
        let left = tensor(&y, (1, cols));
        for (added, op_added) in [
            (Added::Nothing, None),
            (Added::AsItIs, Some((&left, None))),
            (Added::Normed(after), Some((&left, Some(after)))),
        ] {
            let op = Norm { scale, added: op_added, rotation: rotation.clone() };
            let expected = values(&tensor(&x, (1, cols)).apply_op1_no_bwd(&op).unwrap());
            let (mut stream, mut normed) = (x.clone(), y.clone());
            norm_in_place(&mut stream, &mut normed, added, scale, rotation.as_deref()).unwrap();
            assert_eq!(normed, expected[..cols]);
            assert_eq!(stream, if op_added.is_some() { &expected[cols..] } else { &x });
        }
        let other = Rotation::new(2 * cols + 2, 2, 1).unwrap();
        let (mut stream, mut short) = (x.clone(), y[1..].to_vec());
        assert!(norm_in_place(&mut stream, &mut short, Added::Nothing, scale, None).is_err());
        assert!(norm_in_place(&mut stream, &mut y.clone(), Added::Nothing, scale, Some(&other)).is_err());
        assert_eq!(stream, x);
    }
}

#[test]
fn biases() {
    let rng = &mut StdRng::seed_from_u64(8);
    let (mut y, bias) = (input(1, 70, rng), input(1, 70, rng));
    let expected: Vec<f32> = y.iter().zip(&bias).map(|(y, bias)| y + bias).collect();
    add_in_place(&mut y, &tensor(&bias, 70)).unwrap();
    assert_eq!(y, expected);
    assert!(add_in_place(&mut y[1..], &tensor(&bias, 70)).is_err());
}

#[test]
fn heads() {
    let rng = &mut StdRng::seed_from_u64(6);
    for (heads, kv_heads, dim) in [(4, 2, 8), (3, 3, 64), (14, 2, 128)] {
        let parts = [heads, kv_heads, kv_heads].map(|heads| heads * dim);
        let qkv = parts.map(|cols| tensor(&input(1, cols, rng), (1, cols)));
        let biases = parts.map(|cols| tensor(&input(1, cols, rng), cols));
        let factors = [0; 2].map(|_| tensor(&input(1, dim, rng), dim));
        let table = [0; 2].map(|_| input(1, dim / 2, rng));
        let [cos, sin] = table.each_ref().map(|values| tensor(values, (1, dim / 2)));
        for (biased, normed) in [(false, false), (true, false), (false, true), (true, true)] {
            let biases = biased.then_some(biases.each_ref());
            let norms = normed.then_some(factors.each_ref().map(|factor| RmsScale { factor, eps: 1e-6 }));
            let op = SplitHeads { heads, kv_heads, head_dim: dim, biases, norms, cos: &cos, sin: &sin };
            let expected: Vec<f32> = op.split(qkv.each_ref()).unwrap().iter().flat_map(values).collect();
            let mut found: Vec<f32> = qkv.iter().flat_map(values).collect();
            let [cos, sin] = table.each_ref().map(|values| &values[..]);
            let op = SplitHeads { heads, kv_heads, head_dim: dim, biases, norms, cos, sin };
            op.in_place(&mut found).unwrap();
            assert_eq!(found, expected);
            assert!(op.in_place(&mut found[1..]).is_err());
            assert!(SplitHeads { cos: &cos[1..], ..op }.in_place(&mut found).is_err());
            assert!(SplitHeads { head_dim: dim / 2, ..op }.in_place(&mut found).is_err());
        }
    }
}
