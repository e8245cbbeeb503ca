//! The forward oracle: for every scheme and shape, from a saved and reloaded file, the fused op's output is
//! within 60 dB of `x . dequant(W)^T` in f64.

use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;
use serde_json::{Map, Value, json};
use squish_kernels::{Arithmetic, Input, Rotation, scheme};
use squish_models::{
    Checkpoint, Device, Tensor,
    checkpoint::{FORMAT, MANIFEST_KEY, Manifest},
};
use squish_quant::{
    matrix::MatrixSpec,
    output::{Stored, WeightsFile},
};
use std::{collections::BTreeMap, sync::Arc};

const NAME: &str = "layer.weight";

/// Every scheme in every form: `(scheme, rotated, rank, sparse fraction)`.
const FORMS: &[(&str, bool, usize, f64)] = &[
    ("nf2", true, 0, 0.0),
    ("nf2", true, 16, 0.01),
    ("nf2", false, 0, 0.0),
    ("int3", true, 0, 0.0),
    ("int4r", true, 0, 0.0),
    ("int4", false, 0, 0.0),
    ("int4", true, 0, 0.0),
    ("int8", false, 0, 0.0),
    ("tcq2", true, 0, 0.0),
    ("tcq2", true, 16, 0.01),
    ("tcq3", true, 0, 0.0),
    ("tcq4", false, 0, 0.0),
    ("tcq5", true, 0, 0.0),
    ("bf16", false, 0, 0.0),
    ("f16", false, 0, 0.0),
    ("f32", false, 0, 0.0),
];

/// `[rows, cols]`: shapes of real layers, sizes that 128 does not divide, 33 rows, and one row.
const SHAPES: &[(usize, usize)] =
    &[(1536, 576), (512, 1408), (1408, 512), (896, 4864), (1280, 448), (33, 512), (1, 512)];

fn spec(name: &str, rotated: bool, rank: usize, fraction: f64, rows: usize, cols: usize) -> MatrixSpec {
    let scheme = scheme::by_name(name).unwrap();
    let group = match scheme.default_group(cols) {
        group if cols.is_multiple_of(group) => group,
        _ => 64,
    };
    let mut spec = MatrixSpec::plain(scheme, rows, cols, group);
    if rotated {
        spec.rotation = Some(Arc::new(Rotation::new(cols, Rotation::best_block(cols).unwrap(), 7).unwrap()));
    }
    spec.rank = rank.min(rows);
    spec.entries = squish_quant::sparse::entry_count(rows, cols, fraction);
    spec
}

/// Saves a compressed matrix as a checkpoint and opens it again.
fn reload(spec: &MatrixSpec, weights: &[f32], dir: &std::path::Path) -> Checkpoint {
    let mut rows = weights.to_vec();
    let encoded = spec.encode_rows(&mut rows).unwrap();
    let corrections = spec.encode_corrections(&mut rows, None).unwrap();
    let record = spec.measured(encoded.signal, encoded.noise, &corrections);
    let names = record.stored(NAME).unwrap();
    let mut bytes = encoded.parts;
    bytes.extend(corrections.parts().map(<[u8]>::to_vec));
    assert_eq!(names.len(), bytes.len());

    let manifest = Manifest {
        format: FORMAT,
        tool: "test".into(),
        recipe: "test".into(),
        tensors: BTreeMap::from([(NAME.to_string(), record)]),
        certificate: None,
    };
    let text = serde_json::to_string(&manifest).unwrap();
    let metadata = Map::from_iter([(MANIFEST_KEY.to_string(), Value::from(text))]);
    let stored = names.iter().zip(&bytes).map(|(part, bytes)| Stored {
        name: part.name.clone(),
        dtype: part.dtype,
        shape: part.shape.clone(),
        bytes: bytes.len(),
    });
    let mut file = WeightsFile::create(&dir.join("model.safetensors"), stored.collect(), &metadata).unwrap();
    for (part, bytes) in names.iter().zip(&bytes) {
        file.write(&part.name, 0, bytes).unwrap();
    }
    file.finish(metadata).unwrap();
    let config = json!({"quantization_config": {"quant_method": "squish"}});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    Checkpoint::open(dir).unwrap()
}

/// `x . W^T` in f64 over the scalar reference of the *stored* weight, in the rotated frame.
fn oracle(weight: &squish_kernels::Weight, x: &[f32]) -> Vec<f64> {
    let cols = weight.cols();
    let mut dense: Vec<f64> = weight.packed().dequant().into_iter().map(f64::from).collect();
    for (r, row) in dense.chunks_mut(cols).enumerate() {
        if let Some(low_rank) = weight.low_rank() {
            for i in 0..low_rank.rank() {
                let left = f64::from(low_rank.left().weight(i, r));
                for (c, v) in row.iter_mut().enumerate() {
                    *v += left * f64::from(low_rank.right().weight(i, c));
                }
            }
        }
        for (col, value) in weight.sparse().into_iter().flat_map(|s| s.row(r)) {
            row[col] += f64::from(value);
        }
    }
    let rotated: Vec<f64> = x.chunks(cols).flat_map(|x| rotate(weight.rotation().map(|r| &**r), x)).collect();
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum();
    rotated.chunks(cols).flat_map(|x| dense.chunks(cols).map(move |w| dot(x, w))).collect()
}

/// `H D x` in f64, by the definition of docs/format.md.
fn rotate(rotation: Option<&Rotation>, x: &[f32]) -> Vec<f64> {
    let Some(rotation) = rotation else { return x.iter().map(|&v| v.into()).collect() };
    let mut state = rotation.seed();
    let mut signs = Vec::new();
    while signs.len() < x.len() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        signs.extend((0..64).map(|i| if z >> i & 1 == 1 { -1.0 } else { 1.0 }));
    }
    let flipped: Vec<f64> = x.iter().zip(&signs).map(|(&v, s)| f64::from(v) * s).collect();
    let n = rotation.block();
    let entry = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let transform = |run: &[f64]| -> Vec<f64> {
        (0..n)
            .map(|i| run.iter().enumerate().map(|(j, v)| entry(i, j) * v).sum::<f64>() / (n as f64).sqrt())
            .collect()
    };
    flipped.chunks(n).flat_map(transform).collect()
}

#[test]
fn every_scheme_and_shape_from_a_saved_file() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut worst = [f64::INFINITY; 2];
    for &(rows, cols) in SHAPES {
        let weights: Vec<f32> =
            (0..rows * cols).map(|_| 0.02 * rng.sample::<f32, _>(StandardNormal)).collect();
        let x: Vec<f32> = (0..17 * cols).map(|_| rng.sample::<f32, _>(StandardNormal)).collect();
        for &(name, rotated, rank, fraction) in FORMS {
            let spec = spec(name, rotated, rank, fraction, rows, cols);
            let dir = tempfile::tempdir().unwrap();
            let checkpoint = reload(&spec, &weights, dir.path());
            let weight = checkpoint.tensors("layer").weight("weight", rows, cols).unwrap();
            assert_eq!(weight.low_rank().map_or(0, |l| l.rank()), spec.rank);
            assert_eq!(weight.sparse().is_some(), spec.entries > 0);
            let expected = oracle(&weight, &x);
            // In integers an input is rounded; a single output may be far below the size of its terms, so nothing is asked of one.
            let integers = if rows > 1 { 38.0 } else { 0.0 };
            let cases =
                [(Arithmetic::F32, 1, 60.0), (Arithmetic::F32, 17, 60.0), (Arithmetic::Int8, 1, integers)];
            for (arithmetic, batch, gate) in cases {
                let weight = weight.clone().with_arithmetic(arithmetic);
                let input = Tensor::from_slice(&x[..batch * cols], (batch, cols), &Device::Cpu).unwrap();
                let y = weight.forward(&Input::new(input)).unwrap();
                assert_eq!(y.dims(), [batch, rows]);
                let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let (mut signal, mut noise) = (0.0, f64::MIN_POSITIVE);
                for (e, f) in expected.iter().zip(&y) {
                    signal += e * e;
                    noise += (e - f64::from(*f)).powi(2);
                }
                let db = 10.0 * (signal / noise).log10();
                if gate > 0.0 {
                    let worst = &mut worst[usize::from(arithmetic == Arithmetic::Int8)];
                    *worst = worst.min(db);
                }
                assert!(
                    db >= gate,
                    "{name} rotated {rotated} rank {rank}: {rows} x {cols}, {arithmetic:?}, batch {batch}: {db:.1} dB"
                );
            }
        }
    }
    println!("worst of all schemes and shapes: {:.1} dB in f32, {:.1} dB in integers", worst[0], worst[1]);
}
