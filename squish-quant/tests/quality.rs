//! The quality gates of the schemes: signal-to-noise ratio at true bits, everything counted.

use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, StandardNormal, StudentT};
use squish_kernels::{Rotation, Weight, scheme};
use squish_models::checkpoint::TensorRecord;
use squish_quant::{
    matrix::{Encoded, MatrixSpec},
    sparse,
};
use std::sync::Arc;

/// The shape that the gates are stated for.
const ROWS: usize = 1536;
const COLS: usize = 576;
const SIGMA: f32 = 0.02;

fn gaussian(rng: &mut StdRng) -> Vec<f32> {
    (0..ROWS * COLS).map(|_| SIGMA * rng.sample::<f32, _>(StandardNormal)).collect()
}

fn student(rng: &mut StdRng) -> Vec<f32> {
    let t = StudentT::new(3.0f32).unwrap();
    (0..ROWS * COLS).map(|_| SIGMA * t.sample(rng)).collect()
}

/// A Gaussian with one weight in a thousand 20 times as large.
fn outliers(rng: &mut StdRng) -> Vec<f32> {
    let mut weights = gaussian(rng);
    weights.iter_mut().filter(|_| rng.random_bool(0.001)).for_each(|w| *w *= 20.0);
    weights
}

/// What a matrix came to: the ratio of the *loaded* weights to the original ones in decibels, and true bits.
struct Outcome {
    snr: f64,
    bits: f64,
    record: TensorRecord,
}

fn compress(name: &str, group: usize, rank: usize, fraction: f64, weights: &[f32]) -> Outcome {
    let scheme = scheme::by_name(name).unwrap();
    let mut spec = MatrixSpec::plain(scheme, ROWS, COLS, group);
    if scheme.wants_rotation() {
        spec.rotation = Some(Arc::new(Rotation::new(COLS, Rotation::best_block(COLS).unwrap(), 1).unwrap()));
    }
    (spec.rank, spec.entries) = (rank, sparse::entry_count(ROWS, COLS, fraction));
    let Encoded { weight, record, .. } = spec.encode(weights).unwrap();
    let snr = ratio(&weight, weights);
    // What the tool reports is what a loaded weight really has.
    assert!((snr - record.snr_db.unwrap()).abs() < 0.02, "{snr} {:?}", record.snr_db);
    let outcome = Outcome { snr, bits: weight.bytes() as f64 * 8.0 / (ROWS * COLS) as f64, record };
    println!("{name} group {group} rank {rank} sparse {fraction}: {snr:.2} dB at {:.3} bits", outcome.bits);
    outcome
}

/// The ratio of the weights to the error of the loaded rows, in the frame of the original.
fn ratio(weight: &Weight, original: &[f32]) -> f64 {
    let mut row = vec![0.0; COLS];
    let (mut signal, mut noise) = (0.0, 0.0);
    for (r, expected) in original.chunks(COLS).enumerate() {
        weight.row(r, &mut row);
        for (a, b) in expected.iter().zip(&row) {
            signal += f64::from(*a).powi(2);
            noise += f64::from(a - b).powi(2);
        }
    }
    10.0 * (signal / noise).log10()
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(20)
}

#[test]
fn nf2_reaches_9_3_db_at_2_25_bits_on_any_distribution() {
    for (what, weights) in [
        ("Gaussian", gaussian(&mut rng())),
        ("Student-t(3)", student(&mut rng())),
        ("outliers", outliers(&mut rng())),
    ] {
        println!("{what}:");
        let outcome = compress("nf2", 64, 0, 0.0, &weights);
        let bar = if what == "Gaussian" { 9.3 } else { 9.2 };
        assert!(outcome.snr >= bar, "{what}: {}", outcome.snr);
        assert!(outcome.bits <= 2.25, "{what}: {}", outcome.bits);
    }
}

#[test]
fn nf2_with_rank_16_and_1_percent_sparse_reaches_10_db() {
    let outcome = compress("nf2", 64, 16, 0.01, &gaussian(&mut rng()));
    assert!(outcome.snr >= 10.0, "{}", outcome.snr);
    let (low_rank, sparse) = (outcome.record.low_rank.unwrap(), outcome.record.sparse.unwrap());
    assert_eq!((low_rank.rank, sparse.entries), (16, 8847));
    println!("rank 16: {:+.2} dB, sparse 1 %: {:+.2} dB", low_rank.gain_db, sparse.gain_db);
    assert!(low_rank.gain_db > 0.0 && sparse.gain_db > 0.0);
    // 2.25 of nf2; 4.25 for the factors' 16 (1536 + 576) weights; 32 for each entry and 32 a row.
    assert!((2.7..2.85).contains(&outcome.bits), "{}", outcome.bits);
}

#[test]
fn int3_reaches_14_8_db_at_3_25_bits() {
    let outcome = compress("int3", 64, 0, 0.0, &gaussian(&mut rng()));
    assert!(outcome.snr >= 14.8 && outcome.bits <= 3.25, "{} {}", outcome.snr, outcome.bits);
}

#[test]
fn int4_reaches_22_db_at_5_bits() {
    let outcome = compress("int4", 32, 0, 0.0, &gaussian(&mut rng()));
    assert!(outcome.snr >= 22.0 && outcome.bits == 5.0, "{} {}", outcome.snr, outcome.bits);
}

#[test]
fn int4r_and_int8_are_as_good_as_their_bits() {
    let outcome = compress("int4r", 64, 0, 0.0, &gaussian(&mut rng()));
    assert!(outcome.snr >= 20.2 && outcome.bits == 4.25, "{} {}", outcome.snr, outcome.bits);
    let outcome = compress("int8", 64, 0, 0.0, &gaussian(&mut rng()));
    assert!(outcome.snr >= 42.0 && outcome.bits == 8.25, "{} {}", outcome.snr, outcome.bits);
}

#[test]
fn trellis_codes_reach_what_their_bits_should_give() {
    let gates = [("tcq2", 2.0, 11.3), ("tcq3", 3.0, 17.0), ("tcq4", 4.0, 22.2), ("tcq5", 5.0, 28.1)];
    for (name, bits, gate) in gates {
        let outcome = compress(name, COLS, 0, 0.0, &gaussian(&mut rng()));
        assert!(outcome.snr >= gate && outcome.bits <= bits + 0.03, "{} {}", outcome.snr, outcome.bits);
    }
}

#[test]
fn degenerate_matrices_are_stored_exactly_or_nearly() {
    for name in ["nf2", "int3", "int4r", "int4", "int8"] {
        let group = if name == "int4" { 32 } else { 64 };
        let scheme = scheme::by_name(name).unwrap();
        for value in [0.0, 1.0, -3e-4, 1e4] {
            let weight = MatrixSpec::plain(scheme, 2, 64, group).encode(&[value; 128]).unwrap().weight;
            let mut row = [1.0; 64];
            weight.row(1, &mut row);
            // A constant is one level times a scale: only f16's rounding of the scale remains.
            assert!(
                row.iter().all(|v| (v - value).abs() <= 2e-3 * value.abs()),
                "{name} {value}: {:?}",
                &row[..2]
            );
        }
    }
}
