//! Rounding with error feedback: LDLQ (Chee et al. 2023), which is GPTQ (Frantar et al. 2022) without its
//! inverse, in blocks of columns.
//!
//! With `H = V V^T` ([`crate::hessian`]), the cost of an error `E = W - Q` is `|E V|^2`. Its columns that belong to a block
//! `b` are `E_b V_bb + E_before V_before,b`; coding, in place of `W_b`,
//!
//! ```text
//! X_b = W_b + E_before V_before,b V_bb^-1
//! ```
//!
//! makes them `(X_b - Q_b) V_bb`, which is the block's own cost alone. Without a factor, `X_b = W_b`.

use crate::{
    encode::{Block, Encoder, Metric},
    hessian::Factor,
};
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;
use squish_kernels::scheme::Scheme;

/// Rows that are encoded side by side, a multiple of every strip. It does not depend on the number of threads,
/// and so neither do sums.
const BAND: usize = 256;

/// Bands on which scale factors are tried.
const SAMPLED_BANDS: usize = 2;

/// A matrix to be encoded.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The scheme.
    pub scheme: &'static dyn Scheme,
    /// Weights of one row that share a scale.
    pub group: usize,
    /// `[rows, cols]`.
    pub weights: &'a [f32],
    /// Input features.
    pub cols: usize,
    /// What errors cost; `None` where all errors cost the same.
    pub factor: Option<&'a Factor>,
}

impl Job<'_> {
    /// Encodes into the bytes of all parts, each of whole rows in the scheme's layout. Returns the cost of the error.
    pub fn run(&self, encoder: &dyn Encoder, parts: &mut [Vec<u8>]) -> f64 {
        let factor = self.best_scale_factor(encoder, parts);
        let costs: Vec<f64> = self
            .bands(parts)
            .into_par_iter()
            .map(|(rows, mut parts)| self.encode_band(encoder, factor, rows, &mut parts))
            .collect();
        costs.iter().sum()
    }

    /// The factor of the scales that costs least on a sample of the rows.
    fn best_scale_factor(&self, encoder: &dyn Encoder, parts: &mut [Vec<u8>]) -> f32 {
        let factors = encoder.scale_factors();
        if self.factor.is_none() || factors.len() < 2 {
            return factors[0];
        }
        let mut bands = self.bands(parts);
        let stride = bands.len().div_ceil(SAMPLED_BANDS).max(1);
        let cost = |factor: f32, bands: &mut Vec<Band>| -> f64 {
            let sample: Vec<_> = bands.iter_mut().step_by(stride).collect();
            let costs: Vec<f64> = sample
                .into_par_iter()
                .map(|(rows, parts)| self.encode_band(encoder, factor, rows, parts))
                .collect();
            costs.iter().sum()
        };
        let costs: Vec<f64> = factors.iter().map(|&factor| cost(factor, &mut bands)).collect();
        let least = (0..factors.len()).min_by(|&a, &b| costs[a].total_cmp(&costs[b])).unwrap_or(0);
        factors[least]
    }

    /// The rows in bands, with the bytes of each part that belong to them.
    fn bands<'p>(&'p self, parts: &'p mut [Vec<u8>]) -> Vec<Band<'p>> {
        let weights = self.weights.chunks(BAND * self.cols);
        let mut bands: Vec<Band> = weights.map(|w| (w, Vec::with_capacity(parts.len()))).collect();
        for (part, bytes) in parts.iter_mut().zip(self.bytes_of(BAND)) {
            bands.iter_mut().zip(part.chunks_mut(bytes)).for_each(|(band, bytes)| band.1.push(bytes));
        }
        bands
    }

    /// Bytes of each part that belong to `rows` rows, a multiple of the scheme's strip.
    fn bytes_of(&self, rows: usize) -> Vec<usize> {
        self.scheme.parts(rows, self.cols, self.group).iter().map(|part| part.bytes()).collect()
    }

    /// Encodes a band from left to right.
    fn encode_band(
        &self,
        encoder: &dyn Encoder,
        scale: f32,
        weights: &[f32],
        parts: &mut [&mut [u8]],
    ) -> f64 {
        let (cols, strip) = (self.cols, encoder.strip());
        let rows = weights.len() / cols;
        let mut strips: Vec<Vec<&mut [u8]>> = (0..rows.div_ceil(strip)).map(|_| Vec::new()).collect();
        for (part, bytes) in parts.iter_mut().zip(self.bytes_of(strip)) {
            strips.iter_mut().zip(part.chunks_mut(bytes)).for_each(|(strip, bytes)| strip.push(bytes));
        }
        for (strip_weights, parts) in weights.chunks(strip * cols).zip(&mut strips) {
            encoder.begin(strip_weights, cols, scale, parts);
        }

        let width = encoder.block(self.group).min(cols);
        let mut errors = vec![0.0f32; if self.factor.is_some() { rows * cols } else { 0 }];
        let mut targets = vec![0.0f32; rows * width];
        let mut cost = 0.0;
        for first in (0..cols).step_by(width) {
            let width = width.min(cols - first);
            let targets = &mut targets[..rows * width];
            let metric = self.factor.map(|factor| {
                carry(factor, &errors, cols, first, width, targets);
                factor.metric(first)
            });
            for (row, target) in weights.chunks(cols).zip(targets.chunks_mut(width)) {
                match metric {
                    Some(_) => target.iter_mut().zip(&row[first..]).for_each(|(t, w)| *t += w),
                    None => target.copy_from_slice(&row[first..first + width]),
                }
            }
            let wanted = targets.to_vec();
            for (values, parts) in targets.chunks_mut(strip * width).zip(&mut strips) {
                encoder.encode(Block { first, width, values, metric }, self.group, parts);
            }
            for (wanted, found) in wanted.chunks(width).zip(targets.chunks(width)) {
                cost += error_cost(wanted, found, metric);
            }
            if metric.is_some() {
                for (r, found) in targets.chunks(width).enumerate() {
                    let at = r * cols + first;
                    for (c, q) in found.iter().enumerate() {
                        errors[at + c] = weights[at + c] - q;
                    }
                }
            }
        }
        cost
    }
}

/// Rows, and the bytes of each part that belong to them.
type Band<'a> = (&'a [f32], Vec<&'a mut [u8]>);

/// `out [rows, width] = E_before V_before,b V_bb^-1` for errors `[rows, cols]`.
fn carry(factor: &Factor, errors: &[f32], cols: usize, first: usize, width: usize, out: &mut [f32]) {
    let rows = errors.len() / cols;
    let errors = MatRef::from_row_major_slice(errors, rows, cols).subcols(0, first);
    let v = factor.v().submatrix(0, first, first, width);
    matmul(MatMut::from_row_major_slice_mut(out, rows, width), Accum::Replace, errors, v, 1.0, Par::Seq);
    let metric = factor.metric(first);
    for row in out.chunks_mut(width) {
        for c in 0..width {
            let column = metric.column(c);
            let known: f32 = row[..c].iter().zip(column).map(|(x, v)| x * v).sum();
            row[c] = (row[c] - known) / column[c];
        }
    }
}

/// `|(wanted - found) V|^2`.
fn error_cost(wanted: &[f32], found: &[f32], metric: Option<Metric>) -> f64 {
    let errors: Vec<f32> = wanted.iter().zip(found).map(|(w, f)| w - f).collect();
    let term = |c: usize| match metric {
        Some(metric) => errors.iter().zip(metric.column(c)).map(|(e, v)| e * v).sum::<f32>(),
        None => errors[c],
    };
    (0..errors.len()).map(|c| f64::from(term(c)).powi(2)).sum()
}
