//! The rotation, alone and behind a norm or a gated product, and these without it.

use shader_tests::{ORDERS, Random, Shaders, bytes, snr};
use squish_kernels::{
    Rotation,
    metal::{self, Before},
};

const EPS: f32 = 1e-6;

/// What comes before a rotation, in f64.
fn before(kind: Before, x: &[f32], other: &[f32], cols: usize) -> Vec<f64> {
    let norm = |row: &[f32]| {
        let square = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / cols as f64;
        1.0 / (square + f64::from(EPS)).sqrt()
    };
    let gelu =
        |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
    x.chunks(cols)
        .enumerate()
        .flat_map(|(r, row)| {
            let factor = norm(row);
            row.iter().enumerate().map(move |(c, &v)| (r, c, factor, f64::from(v))).collect::<Vec<_>>()
        })
        .map(|(r, c, factor, v)| {
            let up = || f64::from(other[r * cols + c]);
            match kind {
                Before::Nothing => v,
                Before::Norm { .. } => v * factor * f64::from(other[c]),
                Before::Silu => v / (1.0 + (-v).exp()) * up(),
                Before::Gelu => gelu(v) * up(),
            }
        })
        .collect()
}

fn rotated(rotation: &Rotation, values: &[f64]) -> Vec<f64> {
    let mut out = Vec::new();
    for row in values.chunks(rotation.cols()) {
        let mut row = row.to_vec();
        for (c, v) in row.iter_mut().enumerate() {
            if rotation.signs()[c / 64] >> (c % 64) & 1 == 1 {
                *v = -*v;
            }
        }
        for run in row.chunks_mut(rotation.block()) {
            let mut half = 1;
            while half < run.len() {
                for i in (0..run.len()).filter(|i| i & half == 0) {
                    (run[i], run[i + half]) = (run[i] + run[i + half], run[i] - run[i + half]);
                }
                half *= 2;
            }
            run.iter_mut().for_each(|v| *v /= (rotation.block() as f64).sqrt());
        }
        out.extend(row);
    }
    out
}

#[test]
fn every_block_and_source_equals_the_definition() {
    let shaders = Shaders::new();
    let shapes = [
        (6, 2),
        (24, 8),
        (48, 16),
        (96, 32),
        (192, 64),
        (1408, 128),
        (768, 256),
        (3584, 512),
        (2048, 1024),
        (2048, 2048),
        (8192, 4096),
        (16384, 16384),
    ];
    for (i, (cols, block)) in shapes.into_iter().enumerate() {
        let rotation = Rotation::new(cols, block, 11 + i as u64).unwrap();
        for kind in [Before::Nothing, Before::Norm { eps: EPS }, Before::Silu, Before::Gelu] {
            let batch = 1 + i % 3;
            let random = &mut Random::new(i as u64);
            let (x, other) = (random.floats(batch * cols), random.floats(batch * cols));
            let expected = rotated(&rotation, &before(kind, &x, &other, cols));
            let launches = metal::rotate(&rotation, batch, kind);
            for order in ORDERS {
                let inputs = [bytes(&x), bytes(&other)];
                let found =
                    shaders.run(&launches, &[], &[&inputs[0], &inputs[1]], 4 * batch * cols, order).floats();
                let ratio = snr(&expected, &found);
                assert!(ratio > 100.0, "{cols} in blocks of {block}, {kind:?}, {order:?}: {ratio} dB");
            }
        }
    }
}

/// Large arguments: an exponential that overflows must not make a product that is no number.
#[test]
fn norms_and_gated_products_alone() {
    let shaders = Shaders::new();
    for (cols, batch) in [(1, 3), (64, 1), (300, 2), (3584, 1)] {
        let random = &mut Random::new(cols as u64);
        let x: Vec<f32> = random.floats(batch * cols).iter().map(|v| v * 120.0).collect();
        let other = random.floats(batch * cols);
        let kinds = [Before::Norm { eps: EPS }, Before::Silu, Before::Gelu];
        for (kind, order) in kinds.into_iter().zip(ORDERS) {
            let launch = match kind {
                Before::Norm { eps } => metal::rms_norm(cols, batch, eps),
                kind => metal::gated(batch * cols, kind == Before::Gelu),
            };
            let inputs = [bytes(&x), bytes(&other)];
            let found =
                shaders.run(&[launch], &[], &[&inputs[0], &inputs[1]], 4 * batch * cols, order).floats();
            let ratio = snr(&before(kind, &x, &other, cols), &found);
            assert!(ratio > 100.0, "{cols} {kind:?}: {ratio} dB");
        }
    }
}

#[test]
fn rotary_embedding() {
    let shaders = Shaders::new();
    for (heads, positions, head_dim) in [(1, 1, 2), (3, 5, 64), (8, 1, 128), (2, 9, 20)] {
        let random = &mut Random::new(head_dim as u64);
        let (count, half) = (heads * positions * head_dim, head_dim / 2);
        let x = random.floats(count);
        let (cosines, sines) = (random.floats(positions * half), random.floats(positions * half));
        let expected: Vec<f64> = (0..count)
            .map(|i| {
                let (row, pair) = (i / head_dim, i % half);
                let [a, b] = [pair, pair + half].map(|c| f64::from(x[row * head_dim + c]));
                let at = row % positions * half + pair;
                let (cos, sin) = (f64::from(cosines[at]), f64::from(sines[at]));
                if i % head_dim < half { a * cos - b * sin } else { a * sin + b * cos }
            })
            .collect();
        let inputs = [bytes(&x), bytes(&cosines), bytes(&sines)];
        let inputs = [&inputs[0][..], &inputs[1], &inputs[2]];
        let launches = [metal::rope([heads, positions, head_dim])];
        let found = shaders.run(&launches, &[], &inputs, 4 * count, ORDERS[2]).floats();
        assert!(snr(&expected, &found) > 100.0, "{heads} {positions} {head_dim}");
    }
}
