//! The rotation, alone and behind a norm or a gated product, and these without it.

use shader_tests::{ORDERS, Random, Shaders, bytes, snr};
use squish_kernels::{
    Rotation,
    metal::{self, Before, Sum},
};

const EPS: f32 = 1e-6;

/// What comes before a rotation, in f64.
fn before(kind: Before, x: &[f32], other: &[f32], cols: usize) -> Vec<f64> {
    let gelu =
        |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
    x.chunks(cols)
        .enumerate()
        .flat_map(|(r, row)| {
            row.iter().enumerate().map(move |(c, &v)| (r, c, f64::from(v))).collect::<Vec<_>>()
        })
        .map(|(r, c, v)| {
            let up = || f64::from(other[r * cols + c]);
            match kind {
                Before::Nothing => v,
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
        for kind in [Before::Nothing, Before::Silu, Before::Gelu] {
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

/// `v / sqrt(mean(v^2) + EPS) * factor` of each row.
fn normalised(values: &[f64], factor: &[f32]) -> Vec<f64> {
    let row = |row: &[f64]| {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
        row.iter().zip(factor).map(|(v, &f)| v * scale * f64::from(f)).collect::<Vec<_>>()
    };
    values.chunks(factor.len()).flat_map(row).collect()
}

/// Of x, of x and what is added to it, and of what is added in normalised form; rotated and not.
#[test]
fn norms_of_the_stream() {
    let shaders = Shaders::new();
    let shapes = [(1, 0), (300, 0), (3584, 0), (24, 8), (192, 64), (3584, 512), (2048, 2048), (16384, 16384)];
    for (i, (cols, block)) in shapes.into_iter().enumerate() {
        let rotation = (block > 0).then(|| Rotation::new(cols, block, 3).unwrap());
        let batch = 1 + i % 3;
        let random = &mut Random::new(i as u64);
        let [x, added] = [0; 2].map(|_| random.floats(batch * cols));
        let [factor, after] = [0; 2].map(|_| random.floats(cols));
        for (sum, order) in [Sum::Nothing, Sum::Added, Sum::Normed { eps: EPS }].into_iter().zip(ORDERS) {
            let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            let more = match sum {
                Sum::Nothing => vec![0.0; x.len()],
                Sum::Added => wide(&added),
                Sum::Normed { .. } => normalised(&wide(&added), &after),
            };
            let stream: Vec<f64> = wide(&x).iter().zip(&more).map(|(x, more)| x + more).collect();
            let mut expected = normalised(&stream, &factor);
            if let Some(rotation) = &rotation {
                expected = rotated(rotation, &expected);
            }
            if sum != Sum::Nothing {
                expected.extend(stream);
            }
            let launches = metal::norm(cols, batch, sum, EPS, rotation.as_ref());
            let inputs = [&x, &factor, &added, &after].map(|values| bytes(values));
            let inputs = inputs.each_ref().map(Vec::as_slice);
            let found = shaders.run(&launches, &[], &inputs, 4 * expected.len(), order).floats();
            for (expected, found) in expected.chunks(batch * cols).zip(found.chunks(batch * cols)) {
                let ratio = snr(expected, found);
                assert!(ratio > 100.0, "{cols} in blocks of {block}, {sum:?}, {order:?}: {ratio} dB");
            }
        }
    }
}

/// Large arguments: an exponential that overflows must not make a product that is no number.
#[test]
fn gated_products_alone() {
    let shaders = Shaders::new();
    for (cols, batch) in [(1, 3), (64, 1), (300, 2), (3584, 1)] {
        let random = &mut Random::new(cols as u64);
        let x: Vec<f32> = random.floats(batch * cols).iter().map(|v| v * 120.0).collect();
        let other = random.floats(batch * cols);
        let kinds = [Before::Silu, Before::Gelu];
        for (kind, order) in kinds.into_iter().zip(ORDERS) {
            let launch = metal::gated(batch * cols, kind == Before::Gelu);
            let inputs = [bytes(&x), bytes(&other)];
            let found =
                shaders.run(&[launch], &[], &[&inputs[0], &inputs[1]], 4 * batch * cols, order).floats();
            let ratio = snr(&before(kind, &x, &other, cols), &found);
            assert!(ratio > 100.0, "{cols} {kind:?}: {ratio} dB");
        }
    }
}
