//! Logits of several positions, and what is computed from a row of them. Every measurement goes through here.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Logits `[n, vocabulary]` with the logarithm of each row's normaliser, so that
/// `ln p(t) = logits[t] - ln sum_i exp(logits[i])` costs one subtraction in f64.
#[derive(Debug, Clone)]
pub struct Logits {
    vocabulary: usize,
    values: Vec<f32>,
    log_norms: Vec<f64>,
}

impl Logits {
    /// Takes the first `rows` rows of a tensor `[n, vocabulary]` f32, or all `n` where that is fewer.
    ///
    /// # Errors
    /// When it is of another type or number of dimensions.
    pub fn new(logits: &Tensor, rows: usize) -> Result<Self> {
        let (n, vocabulary) = logits.dims2()?;
        let values = logits.narrow(0, 0, rows.min(n))?.flatten_all()?.to_vec1::<f32>()?;
        let log_norms = values.par_chunks_exact(vocabulary).map(log_sum_exp).collect();
        Ok(Self { vocabulary, values, log_norms })
    }

    /// Positions.
    pub fn len(&self) -> usize {
        self.log_norms.len()
    }

    /// Whether there is no position.
    pub fn is_empty(&self) -> bool {
        self.log_norms.is_empty()
    }

    fn row(&self, position: usize) -> &[f32] {
        &self.values[position * self.vocabulary..][..self.vocabulary]
    }

    /// `-ln p(target)` at a position, in nats. Not finite when the logits are not.
    pub fn nll(&self, position: usize, target: u32) -> f64 {
        self.log_norms[position] - f64::from(self.row(position)[target as usize])
    }

    /// The sum of [`Logits::nll`] over the positions that have a target, in order.
    pub fn total_nll(&self, targets: &[u32]) -> f64 {
        (0..self.len()).zip(targets).map(|(position, &target)| self.nll(position, target)).sum()
    }

    /// The likeliest token at a position; the lowest of equals.
    pub fn argmax(&self, position: usize) -> usize {
        let row = self.row(position);
        (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
    }

    /// `KL(p || q) = sum_i p_i (ln p_i - ln q_i)` at a position, in nats: `p` of these logits, `q` of the
    /// others. Exactly 0 for equal rows. Not finite when some logits are not.
    pub fn kl(&self, other: &Self, position: usize) -> f64 {
        let (p_norm, q_norm) = (self.log_norms[position], other.log_norms[position]);
        let terms = self.row(position).iter().zip(other.row(position)).map(|(&p, &q)| {
            let p = f64::from(p) - p_norm;
            let weight = p.exp();
            // The limit of p ln p at 0 is 0.
            if weight == 0.0 { 0.0 } else { weight * (p - (f64::from(q) - q_norm)) }
        });
        terms.sum()
    }
}

/// `ln sum_i exp(row[i])`, in f64.
fn log_sum_exp(row: &[f32]) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&v| f64::from(v - largest).exp()).sum();
    sum.ln() + f64::from(largest)
}

/// The token at which the cumulated probabilities, at the temperature, pass `uniform` in 0..1; `None` where the logits
/// give no probabilities.
pub(crate) fn sample(logits: &[f32], temperature: f64, uniform: f64) -> Option<u32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|&v| (f64::from(v - largest) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    if !total.is_finite() {
        return None;
    }
    let mut left = uniform * total;
    let passed = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    // Rounding may leave a little: the last token that can be drawn.
    passed.or_else(|| weights.iter().rposition(|&weight| weight > 0.0)).map(|token| token as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn logits(rows: &[&[f32]]) -> Logits {
        let tensor = Tensor::new(rows.iter().map(|r| r.to_vec()).collect::<Vec<_>>(), &Device::Cpu).unwrap();
        Logits::new(&tensor, usize::MAX).unwrap()
    }

    #[test]
    fn uniform_logits_cost_the_logarithm_of_the_vocabulary() {
        let rows = logits(&[&[3.0; 8], &[3.0; 8]]);
        assert!((rows.total_nll(&[0, 7]) - 2.0 * 8f64.ln()).abs() < 1e-12);
        assert_eq!(rows.total_nll(&[]), 0.0);
        let certain = logits(&[&[0.0, 200.0]]);
        assert!(certain.nll(0, 1) < 1e-12);
        assert!((certain.nll(0, 0) - 200.0).abs() < 1e-9);
        assert_eq!((rows.argmax(0), certain.argmax(0)), (0, 1));
    }

    #[test]
    fn divergence_of_known_distributions() {
        // p = (1/2, 1/2), q = (1/4, 3/4): ln 2 - (ln 3) / 2.
        let (p, q) = (logits(&[&[5.0, 5.0]]), logits(&[&[0.0, 3f32.ln()]]));
        assert!((p.kl(&q, 0) - (2f64.ln() - 3f64.ln() / 2.0)).abs() < 1e-7);
        assert_eq!(q.kl(&q.clone(), 0), 0.0);
        // A token that the first rules out costs nothing, one that the second rules out everything.
        let never = logits(&[&[0.0, f32::NEG_INFINITY]]);
        assert!((never.kl(&p, 0) - 2f64.ln()).abs() < 1e-12);
        assert_eq!(p.kl(&never, 0), f64::INFINITY);
        assert!(p.kl(&logits(&[&[f32::NAN, 0.0]]), 0).is_nan());
    }
}
