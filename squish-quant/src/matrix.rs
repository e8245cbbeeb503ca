//! One matrix, or some of its rows, through rotation, encoding and corrections.

use crate::{
    encode::{LARGEST, encoder},
    feedback::Job,
    hessian::Factor,
    low_rank,
    sparse::{self, SparseParts},
};
use bytes::Bytes;
use rayon::prelude::*;
use squish_kernels::{
    Error, LowRank, Packed, Result, Rotation, Sparse, Weight,
    scheme::{self, Scheme},
};
use squish_models::checkpoint::{LowRankRecord, PackedRecord, RotationRecord, SparseRecord, TensorRecord};
use std::sync::Arc;

/// How a matrix `[rows, cols]` is to be stored.
#[derive(Debug, Clone)]
pub struct MatrixSpec {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The scheme.
    pub scheme: &'static dyn Scheme,
    /// Weights of one row that share a scale.
    pub group: usize,
    /// The rotation of the input, if any.
    pub rotation: Option<Arc<Rotation>>,
    /// Rank of the low-rank correction; 0 for none.
    pub rank: usize,
    /// Entries of the sparse correction; 0 for none.
    pub entries: usize,
    /// Seed of the low-rank factorisation.
    pub seed: u64,
}

/// Bytes of each part of a packed matrix, in its scheme's order.
pub type Parts = Vec<Vec<u8>>;

/// Encoded rows: bytes of each part, and how well they fit.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The packed rows.
    pub parts: Parts,
    /// Energy of the weights.
    pub signal: f64,
    /// Energy of what the codes miss.
    pub noise: f64,
    /// What that costs under the factor; without one, the same energy.
    pub cost: f64,
}

impl Rows {
    /// Appends the rows that follow.
    pub fn append(&mut self, rows: Self) {
        self.parts.resize(rows.parts.len(), Vec::new());
        self.parts.iter_mut().zip(rows.parts).for_each(|(all, more)| all.extend(more));
        self.signal += rows.signal;
        self.noise += rows.noise;
        self.cost += rows.cost;
    }
}

/// A whole matrix, encoded.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// The bytes of all parts, in the order in which [`TensorRecord::stored`] lists them.
    pub parts: Vec<Bytes>,
    /// The weight as it would be loaded.
    pub weight: Weight,
    /// Its record, with what was measured.
    pub record: TensorRecord,
    /// What the error of the codes costs under the Hessian; their energy where there is none.
    pub cost: f64,
}

/// What the corrections of a matrix are stored as.
#[derive(Debug, Clone, Default)]
pub struct Corrections {
    /// Parts of the left and the right low-rank factor.
    pub low_rank: Option<(Parts, Parts)>,
    /// Parts of the sparse correction.
    pub sparse: Option<SparseParts>,
    /// Energy of what packed matrix and low-rank correction miss.
    pub noise_after_low_rank: f64,
    /// Energy of what all of them miss.
    pub noise: f64,
}

impl Corrections {
    /// The bytes of all parts, in the order in which [`TensorRecord::stored`] lists them.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let low_rank = self.low_rank.iter().flat_map(|(left, right)| left.iter().chain(right));
        let sparse = self.sparse.iter().flat_map(|s| [&s.offsets, &s.columns, &s.values]);
        low_rank.chain(sparse).map(Vec::as_slice)
    }
}

/// A ratio of energies in decibels, rounded to hundredths.
///
/// Capped at 200 dB, more than f32 can express: an exact copy has no finite ratio.
pub fn decibels(signal: f64, noise: f64) -> f64 {
    let ratio = if signal > 0.0 { 10.0 * (signal / noise).log10() } else { 200.0 };
    (ratio.clamp(-200.0, 200.0) * 100.0).round() / 100.0
}

/// Index of the first weight that cannot be encoded: not finite, or above [`LARGEST`].
pub fn first_unfit(weights: &[f32]) -> Option<usize> {
    weights.par_iter().position_first(|v| v.abs() > LARGEST || !v.is_finite())
}

impl MatrixSpec {
    /// A spec without rotation and corrections.
    pub fn plain(scheme: &'static dyn Scheme, rows: usize, cols: usize, group: usize) -> Self {
        Self { rows, cols, scheme, group, rotation: None, rank: 0, entries: 0, seed: 0 }
    }

    /// Whether the whole matrix must be seen at once.
    pub fn has_corrections(&self) -> bool {
        self.rank > 0 || self.entries > 0
    }

    /// The scheme and group of a low-rank factor with rows of `length`: 4 bits where the length allows it.
    fn factor(length: usize) -> (&'static dyn Scheme, usize) {
        match length {
            _ if length.is_multiple_of(128) => (&scheme::INT4R, 128),
            _ if length.is_multiple_of(64) => (&scheme::INT4R, 64),
            _ => (&scheme::F16, 1),
        }
    }

    /// The record of the matrix, without measured values.
    pub fn record(&self) -> TensorRecord {
        let factor = |length| {
            let (scheme, group) = Self::factor(length);
            PackedRecord::new(scheme, group)
        };
        let low_rank = LowRankRecord {
            rank: self.rank,
            left: factor(self.rows),
            right: factor(self.cols),
            gain_db: 0.0,
        };
        TensorRecord {
            shape: [self.rows, self.cols],
            packed: PackedRecord::new(self.scheme, self.group),
            rotation: self.rotation.as_deref().map(RotationRecord::from),
            low_rank: (self.rank > 0).then_some(low_rank),
            sparse: (self.entries > 0).then_some(SparseRecord { entries: self.entries, gain_db: 0.0 }),
            snr_db: None,
        }
    }

    /// Rotates and encodes consecutive rows of the matrix, from a multiple of the scheme's strip on. On return
    /// `rows` holds what the codes miss, in the rotated frame.
    ///
    /// # Errors
    /// When the scheme cannot store rows of this length.
    pub fn encode_rows(&self, rows: &mut [f32]) -> Result<Rows> {
        if let Some(rotation) = &self.rotation {
            rows.par_chunks_mut(self.cols).for_each(|row| rotation.apply(row));
        }
        self.encode_rotated(rows, None)
    }

    /// As [`MatrixSpec::encode_rows`], for rows in the rotated frame, with error feedback under a factor of the
    /// Hessian in that frame.
    ///
    /// # Errors
    /// When the scheme cannot store rows of this length.
    pub fn encode_rotated(&self, rows: &mut [f32], factor: Option<&Factor>) -> Result<Rows> {
        let count = rows.len() / self.cols;
        let (parts, cost) = pack(self.scheme, rows, count, self.cols, self.group, factor)?;
        let shared = parts.into_iter().map(Bytes::from).collect::<Vec<_>>();
        let packed = Packed::new(self.scheme, count, self.cols, self.group, shared.clone())?;
        // Energies are summed by row, then over rows in order: the same whatever the number of threads.
        let energies: Vec<(f64, f64)> = rows
            .par_chunks_mut(self.cols)
            .enumerate()
            .map(|(r, row)| {
                let mut decoded = vec![0.0; self.cols];
                packed.decode_row(r, &mut decoded);
                let signal = energy(row);
                row.iter_mut().zip(&decoded).for_each(|(v, d)| *v -= d);
                (signal, energy(row))
            })
            .collect();
        let (signal, noise) = energies.iter().fold((0.0, 0.0), |(s, n), e| (s + e.0, n + e.1));
        // The last other owner of the bytes: without it they become vectors again without a copy.
        drop(packed);
        Ok(Rows { parts: shared.into_iter().map(Vec::from).collect(), signal, noise, cost })
    }

    /// Encodes the corrections for the residual of the whole matrix, which on return holds what they leave. With a factor of the
    /// Hessian, they are those that cost least under it.
    ///
    /// # Errors
    /// When a factor cannot be stored.
    pub fn encode_corrections(&self, residual: &mut [f32], hessian: Option<&Factor>) -> Result<Corrections> {
        let mut corrections = Corrections::default();
        if self.rank > 0 {
            let (left, right) =
                low_rank::factor(residual, [self.rows, self.cols], self.rank, self.seed, hessian);
            let pack_factor = |values: &[f32], length: usize| -> Result<_> {
                let (scheme, group) = Self::factor(length);
                let (parts, _) = pack(scheme, values, self.rank, length, group, None)?;
                let bytes = parts.iter().map(|p| Bytes::copy_from_slice(p)).collect();
                Ok((parts, Packed::new(scheme, self.rank, length, group, bytes)?.dequant()))
            };
            let (left_parts, left) = pack_factor(&left, self.rows)?;
            let (right_parts, right) = pack_factor(&right, self.cols)?;
            residual.par_chunks_mut(self.cols).enumerate().for_each(|(r, row)| {
                for i in 0..self.rank {
                    let l = left[i * self.rows + r];
                    row.iter_mut().zip(&right[i * self.cols..]).for_each(|(v, right)| *v -= l * right);
                }
            });
            corrections.low_rank = Some((left_parts, right_parts));
        }
        corrections.noise_after_low_rank = energy(residual);
        if self.entries > 0 {
            let importance = hessian.map(Factor::diagonal);
            corrections.sparse =
                Some(sparse::extract(residual, [self.rows, self.cols], self.entries, importance.as_deref()));
        }
        corrections.noise = energy(residual);
        Ok(corrections)
    }

    /// Encodes a whole matrix with error feedback. `weights` and `wanted` are in the rotated frame: the original,
    /// against which the result is measured, and what it is to be rounded from.
    ///
    /// # Errors
    /// When the shape does not fit the scheme.
    pub fn encode_calibrated(
        &self,
        weights: &[f32],
        mut wanted: Vec<f32>,
        factor: &Factor,
    ) -> Result<Encoded> {
        let rows = self.encode_rotated(&mut wanted, Some(factor))?;
        let corrections = self.encode_corrections(&mut wanted, Some(factor))?;
        let mut encoded = self.encoded(rows, corrections)?;
        // Against the original, and not against what was rounded.
        let energies: Vec<(f64, f64)> = weights
            .par_chunks(self.cols)
            .enumerate()
            .map(|(r, row)| {
                let mut found = vec![0.0; self.cols];
                encoded.weight.rotated_row(r, &mut found);
                found.iter_mut().zip(row).for_each(|(f, w)| *f -= w);
                (energy(row), energy(&found))
            })
            .collect();
        let (signal, noise) = energies.iter().fold((0.0, 0.0), |(s, n), e| (s + e.0, n + e.1));
        encoded.record.snr_db = Some(decibels(signal, noise));
        Ok(encoded)
    }

    /// Encodes a whole matrix in memory.
    ///
    /// # Errors
    /// When the shape does not fit the scheme.
    pub fn encode(&self, weights: &[f32]) -> Result<Encoded> {
        let mut residual = weights.to_vec();
        let rows = self.encode_rows(&mut residual)?;
        let corrections = self.encode_corrections(&mut residual, None)?;
        self.encoded(rows, corrections)
    }

    /// The matrix of these rows and corrections.
    ///
    /// # Errors
    /// When they do not fit the shape.
    pub fn encoded(&self, rows: Rows, corrections: Corrections) -> Result<Encoded> {
        let record = self.measured(rows.signal, rows.noise, &corrections);
        let corrections = corrections.parts().map(Bytes::copy_from_slice).collect::<Vec<_>>();
        let parts: Vec<Bytes> = rows.parts.into_iter().map(Bytes::from).chain(corrections).collect();
        Ok(Encoded { weight: self.weight(&parts)?, parts, record, cost: rows.cost })
    }

    /// The weight over the bytes of all parts, in the order in which [`TensorRecord::stored`] lists them.
    ///
    /// # Errors
    /// When they do not fit the shape.
    pub fn weight(&self, parts: &[Bytes]) -> Result<Weight> {
        let mut parts = parts.iter().cloned();
        let mut packed = |scheme: &'static dyn Scheme, rows, cols, group| {
            let count = Packed::layout(scheme, rows, cols, group)?.len();
            Packed::new(scheme, rows, cols, group, parts.by_ref().take(count).collect())
        };
        let mut weight = Weight::from(packed(self.scheme, self.rows, self.cols, self.group)?);
        if let Some(rotation) = &self.rotation {
            weight = weight.with_rotation(rotation.clone())?;
        }
        if self.rank > 0 {
            let mut factor = |length| {
                let (scheme, group) = Self::factor(length);
                packed(scheme, self.rank, length, group)
            };
            weight = weight.with_low_rank(LowRank::new(factor(self.rows)?, factor(self.cols)?)?)?;
        }
        if self.entries > 0 {
            let [offsets, columns, values] = [(); 3].map(|()| parts.next().unwrap_or_default());
            weight = weight.with_sparse(Sparse::new(self.rows, self.cols, offsets, columns, values)?)?;
        }
        Ok(weight)
    }

    /// The record with the measured ratios: of the whole, and what each correction added to it.
    pub fn measured(&self, signal: f64, noise: f64, corrections: &Corrections) -> TensorRecord {
        let mut record = self.record();
        let left = if self.has_corrections() { corrections.noise } else { noise };
        record.snr_db = Some(decibels(signal, left));
        if let Some(low_rank) = &mut record.low_rank {
            low_rank.gain_db = decibels(noise, corrections.noise_after_low_rank);
        }
        if let Some(sparse) = &mut record.sparse {
            sparse.gain_db = decibels(corrections.noise_after_low_rank, corrections.noise);
        }
        record
    }
}

fn energy(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

/// Encodes rows as they are into the bytes of each part, and returns with them what the error costs.
fn pack(
    scheme: &'static dyn Scheme,
    weights: &[f32],
    rows: usize,
    cols: usize,
    group: usize,
    factor: Option<&Factor>,
) -> Result<(Parts, f64)> {
    let layout = Packed::layout(scheme, rows, cols, group)?;
    let encoder = encoder(scheme).ok_or_else(|| Error::UnknownScheme(scheme.name().into()))?;
    let mut parts: Parts = layout.iter().map(|part| vec![0; part.bytes()]).collect();
    let cost = Job { scheme, group, weights, cols, factor }.run(encoder, &mut parts);
    Ok((parts, cost))
}
