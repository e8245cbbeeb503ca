//! Matrices to test with, and how well a result fits.

use half::{bf16, f16};
use rand::{Rng, SeedableRng, rngs::StdRng};
use squish_kernels::{
    Packed,
    scheme::{self, PartType},
};

/// A source of test data.
pub struct Random(StdRng);

/// A matrix and the bytes of its parts.
pub struct Matrix {
    /// The matrix.
    pub packed: Packed,
    /// Its parts.
    pub parts: Vec<Vec<u8>>,
}

impl Matrix {
    /// The parts as slices.
    pub fn parts(&self) -> Vec<&[u8]> {
        self.parts.iter().map(Vec::as_slice).collect()
    }
}

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Values in -1..1.
    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.0.random_range(-1.0..1.0)).collect()
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// A matrix with random codes, and scales of sane size.
    pub fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Matrix {
        let scheme = scheme::by_name(name).expect("a known scheme");
        let groups = [scheme.default_group(cols), 64, cols];
        let group =
            groups.into_iter().find(|&g| Packed::layout(scheme, rows, cols, g).is_ok()).expect("a group");
        let layout = Packed::layout(scheme, rows, cols, group).expect("a shape that the scheme stores");
        let parts: Vec<Vec<u8>> = layout
            .iter()
            .map(|part| (0..part.shape[0] * part.shape[1]).flat_map(|_| self.element(part.dtype)).collect())
            .collect();
        let shared = parts.iter().map(|part| part.clone().into()).collect();
        Matrix { packed: Packed::new(scheme, rows, cols, group, shared).expect("parts as laid out"), parts }
    }

    fn element(&mut self, dtype: PartType) -> Vec<u8> {
        let value: f32 = self.0.random_range(-1.0..1.0);
        match dtype {
            PartType::U8 | PartType::I8 => vec![self.0.random()],
            PartType::F16 => f16::from_f32(value).to_le_bytes().into(),
            PartType::BF16 => bf16::from_f32(value).to_le_bytes().into(),
            PartType::F32 => value.to_le_bytes().into(),
        }
    }
}

/// Ratio of the signal's to the error's energy, in decibels.
pub fn snr(expected: &[f64], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let signal: f64 = expected.iter().map(|e| e * e).sum();
    let noise: f64 = expected.iter().zip(found).map(|(e, &f)| (e - f64::from(f)).powi(2)).sum();
    // Added, not the larger of the two: what is no number must stay none.
    10.0 * (signal / (noise + f64::MIN_POSITIVE)).log10()
}
