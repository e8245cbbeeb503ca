//! Attention against its definition in f64.

use shader_tests::{ORDERS, Random, Shaders, bytes, snr, traced};
use squish_kernels::{metal, ops::DenseAttention};

/// Sizes of a case: heads, key heads, queries, positions, head_dim.
#[derive(Debug, Clone, Copy)]
struct Case {
    heads: usize,
    kv_heads: usize,
    n: usize,
    positions: usize,
    head_dim: usize,
}

/// The definition, over keys and values whose heads lie `stride` values apart.
fn expected(op: &DenseAttention, c: Case, stride: usize, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let mut y = Vec::new();
    for i in 0..c.n {
        for head in 0..c.heads {
            let q = &q[(head * c.n + i) * c.head_dim..][..c.head_dim];
            let kv = head / (c.heads / c.kv_heads) * stride;
            let end = c.positions - c.n + i + 1;
            let begin = op.window.map_or(0, |w| end.saturating_sub(w));
            let scores = (begin..end).map(|j| {
                let k = &k[kv + j * c.head_dim..][..c.head_dim];
                let dot: f64 = q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let score = f64::from(op.scale) * dot;
                op.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
            });
            let weights: Vec<f64> = scores.collect();
            let sum: f64 = weights.iter().sum();
            for col in 0..c.head_dim {
                let mixed = weights.iter().enumerate();
                let mixed: f64 =
                    mixed.map(|(j, w)| w * f64::from(v[kv + (begin + j) * c.head_dim + col])).sum();
                y.push(mixed / sum);
            }
        }
    }
    y
}

#[test]
fn equals_the_definition() {
    let shaders = Shaders::new();
    let case = |heads, kv_heads, n, positions, head_dim| Case { heads, kv_heads, n, positions, head_dim };
    let cases = [
        case(4, 2, 1, 1, 64),
        case(8, 2, 1, 300, 64),
        case(3, 3, 17, 40, 20),
        case(2, 1, 9, 9, 128),
        case(2, 1, 1, 50, 256),
        case(1, 1, 2, 70, 96),
        case(4, 1, 33, 33, 32),
        case(7, 1, 70, 200, 128),
        case(40, 1, 9, 70, 64),
        case(2, 2, 130, 130, 256),
    ];
    for (i, c) in cases.into_iter().enumerate() {
        for (softcap, window) in [(None, None), (Some(3.0), Some(5)), (None, Some(1000))] {
            for half in [false, true] {
                let op = DenseAttention { scale: 0.4, softcap, window };
                let random = &mut Random::new(i as u64);
                // With room behind, as a cache has it, which holds no numbers.
                let stride = (c.positions + 3) * c.head_dim;
                let mut held = || {
                    let mut values = random.floats(c.kv_heads * stride);
                    for head in values.chunks_mut(stride) {
                        head[c.positions * c.head_dim..].fill(f32::NAN);
                    }
                    let rounded = |v: &mut f32| *v = half::f16::from_f32(*v).to_f32();
                    if half {
                        values.iter_mut().for_each(rounded);
                    }
                    values
                };
                let (k, v) = (held(), held());
                let q: Vec<f32> = random.floats(c.heads * c.n * c.head_dim).iter().map(|v| 4.0 * v).collect();
                let stored = |values: &[f32]| match half {
                    true => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
                    false => bytes(values),
                };
                let expected = expected(&op, c, stride, &q, &k, &v);
                let sizes = ([c.heads, c.n, c.head_dim], [c.kv_heads, c.positions]);
                let launch = metal::attention(&op, sizes.0, sizes.1, [stride, stride], half).unwrap();
                let inputs = [bytes(&q), stored(&k), stored(&v)];
                let inputs = [&inputs[0][..], &inputs[1], &inputs[2]];
                let order = ORDERS[(i + usize::from(half)) % 3];
                let y = shaders.run(&[launch], &[], &inputs, 4 * expected.len(), order).floats();
                let ratio = snr(&expected, &y);
                assert!(ratio > 100.0, "{c:?} {op:?} half {half}: {ratio} dB");
            }
        }
    }
    assert!(
        metal::attention(
            &DenseAttention { scale: 1.0, softcap: None, window: None },
            [1, 1, 320],
            [1, 1],
            [320; 2],
            false
        )
        .is_none()
    );
}

/// In tiles, each byte of keys and values that the queries of a tile see is read once for all of them, whatever their heads; one
/// query at a time, once for each.
#[test]
fn keys_and_values_are_read_once_a_tile() {
    let shaders = Shaders::new();
    if !traced() {
        return;
    }
    let (heads, kv_heads, head_dim) = (4, 2, 64);
    for (n, positions) in [(64, 64), (1, 100)] {
        let random = &mut Random::new(1);
        let stride = positions * head_dim;
        let q = bytes(&random.floats(heads * n * head_dim));
        let [k, v] = [0; 2].map(|_| bytes(&random.floats(kv_heads * stride)));
        let op = DenseAttention { scale: 0.1, softcap: None, window: None };
        let sizes = ([heads, n, head_dim], [kv_heads, positions]);
        let launch = metal::attention(&op, sizes.0, sizes.1, [stride; 2], false).unwrap();
        let found = shaders.run(&[launch], &[], &[&q, &k, &v], q.len(), ORDERS[0]);
        // A tile is 16 positions of two heads.
        let seen: usize =
            if n == 64 { (1..=4).map(|tile| 16 * tile * kv_heads).sum() } else { heads * positions };
        for side in [1, 2] {
            assert_eq!(found.reports[0].traffic[side].loaded as usize, seen * head_dim * 4, "{n} queries");
        }
        assert_eq!(found.reports[0].traffic[3].stored as usize, q.len());
    }
}
