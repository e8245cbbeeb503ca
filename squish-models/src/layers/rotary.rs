//! Rotary position embedding (Su et al. 2021), in the half-split form of Hugging Face's models, and the ways of
//! stretching it to longer contexts that their configurations name.
//!
//! Dimensions `i` and `i + d/2` of a head are a pair, turned at position `p` by the angle `p * f_i`, where
//! `f_i = theta^(-2i/d)` unless it is scaled.

use candle_core::{Device, Result, Tensor};
use serde::Deserialize;
use std::f64::consts::TAU;

/// What a configuration says of a rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base.
    pub theta: f64,
    /// What is done to the frequencies.
    pub scaling: RopeScaling,
}

/// How the frequencies `f` are changed for contexts longer than those of training, under Hugging Face's names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// Not at all.
    Default {},
    /// `f / factor`: positions are interpolated (Chen et al. 2023).
    Linear {
        /// By how much the context is longer.
        factor: f64,
    },
    /// YaRN (Peng et al. 2023): dimensions that turn less than `beta_slow` times over the original context are
    /// interpolated, those that turn more than `beta_fast` times are left, with a ramp between the two.
    Yarn {
        /// By how much the context is longer.
        factor: f64,
        /// Positions of the original context; absent, the configuration's `max_position_embeddings`.
        original_max_position_embeddings: Option<usize>,
        /// Factor of cosines and sines; absent, `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
        /// Turns from which on a dimension is left alone; absent, 32.
        beta_fast: Option<f64>,
        /// Turns below which a dimension is interpolated; absent, 1.
        beta_slow: Option<f64>,
    },
    /// Llama 3.1: by wavelength `2 pi / f` against the original context.
    Llama3 {
        /// By how much the context is longer.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are interpolated.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are left.
        high_freq_factor: f64,
        /// Positions of the original context.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// Why these numbers cannot be used, naming the field; `None` where they can.
    pub fn fault(&self) -> Option<String> {
        let numbers: Vec<(&str, f64, f64)> = match *self {
            Self::Default {} => vec![],
            Self::Linear { factor } => vec![("factor", factor, 1.0)],
            Self::Yarn {
                factor,
                original_max_position_embeddings: original,
                attention_factor,
                beta_fast,
                beta_slow,
            } => vec![
                ("factor", factor, 1.0),
                ("original_max_position_embeddings", original.unwrap_or(1) as f64, 1.0),
                ("attention_factor", attention_factor.unwrap_or(1.0), f64::MIN_POSITIVE),
                ("beta_slow", beta_slow.unwrap_or(1.0), f64::MIN_POSITIVE),
                ("beta_fast", beta_fast.unwrap_or(32.0), beta_slow.unwrap_or(1.0)),
            ],
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => vec![
                ("factor", factor, 1.0),
                ("low_freq_factor", low, f64::MIN_POSITIVE),
                ("high_freq_factor", high, low + f64::MIN_POSITIVE.max(low * f64::EPSILON)),
                ("original_max_position_embeddings", original as f64, 1.0),
            ],
        };
        let (name, value, least) =
            numbers.into_iter().find(|(_, v, least)| !(v.is_finite() && v >= least))?;
        Some(format!("`{name}` is {value}, expected a number of at least {least}"))
    }
}

impl Rope {
    /// Positions the model is made for, where `max_position_embeddings` is what its configuration says: YaRN is
    /// switched on by adding `rope_scaling` to a configuration that keeps its original length.
    pub fn context_length(&self, max_position_embeddings: usize) -> usize {
        match self.scaling {
            RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
                let original = original_max_position_embeddings.unwrap_or(max_position_embeddings);
                max_position_embeddings.max((original as f64 * factor) as usize)
            }
            _ => max_position_embeddings,
        }
    }
}

/// The frequencies of a model's rotary embedding.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// `f_i` for `i < d/2`.
    frequencies: Vec<f32>,
    /// Factor of cosines and sines.
    amplitude: f64,
}

/// Cosines and sines for a run of positions.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    cos: Tensor,
    sin: Tensor,
}

/// Cosines and sines `[head_dim / 2]` for a single position.
#[derive(Debug, Default)]
pub struct RotaryRow {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

impl Rotary {
    /// Frequencies for an even `head_dim`, in a model whose configuration says `max_position_embeddings`.
    pub fn new(head_dim: usize, rope: &Rope, max_position_embeddings: usize) -> Self {
        let exponent = |i: usize| (2 * i) as f32 / head_dim as f32;
        let plain = |i| 1.0 / (rope.theta as f32).powf(exponent(i));
        let indices = 0..head_dim / 2;
        let (frequencies, amplitude) = match rope.scaling {
            RopeScaling::Default {} => (indices.map(plain).collect(), 1.0),
            RopeScaling::Linear { factor } => (indices.map(|i| plain(i) / factor as f32).collect(), 1.0),
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
            } => {
                let original = original_max_position_embeddings.unwrap_or(max_position_embeddings) as f64;
                // The dimension pair that turns so many times over the original context:
                // original * theta^(-2i/d) = 2 pi turns.
                let pair =
                    |turns: f64| head_dim as f64 * (original / (turns * TAU)).ln() / (2.0 * rope.theta.ln());
                let low = pair(beta_fast.unwrap_or(32.0)).floor().max(0.0);
                let high = pair(beta_slow.unwrap_or(1.0)).ceil().min(head_dim as f64 - 1.0);
                let width = if high == low { 0.001 } else { high - low };
                let scaled = |i: usize| {
                    // 0 where the frequency is left, 1 where it is interpolated.
                    let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    (f64::from(plain(i)) * (1.0 - ramp + ramp / factor)) as f32
                };
                let amplitude = attention_factor.unwrap_or(0.1 * factor.ln() + 1.0);
                (indices.map(scaled).collect(), amplitude)
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => {
                let scaled = |i| {
                    let f = f64::from(plain(i));
                    // How often the dimension turns over the original context; the ramp is linear in it.
                    let turns = original as f64 * f / TAU;
                    let left = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (f * (left + (1.0 - left) / factor)) as f32
                };
                (indices.map(scaled).collect(), 1.0)
            }
        };
        Self { frequencies, amplitude }
    }

    /// The table for positions `start..start + n`.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn table(&self, start: usize, n: usize, device: &Device) -> Result<RotaryTable> {
        let values = |f| (start..start + n).flat_map(|position| self.values(position, f)).collect();
        let table = |f| Tensor::from_vec(values(f), (n, self.frequencies.len()), device);
        Ok(RotaryTable { cos: table(f32::cos)?, sin: table(f32::sin)? })
    }

    /// The table for one position, in the place of what was held.
    pub fn row(&self, position: usize, held: &mut RotaryRow) {
        held.cos.clear();
        held.sin.clear();
        held.cos.extend(self.values(position, f32::cos));
        held.sin.extend(self.values(position, f32::sin));
    }

    /// Cosines or sines of a position.
    fn values(&self, position: usize, f: fn(f32) -> f32) -> impl Iterator<Item = f32> {
        let amplitude = self.amplitude as f32;
        self.frequencies.iter().map(move |frequency| f(position as f32 * frequency) * amplitude)
    }
}

impl RotaryTable {
    /// Cosines `[positions, head_dim / 2]`.
    pub fn cos(&self) -> &Tensor {
        &self.cos
    }

    /// Sines `[positions, head_dim / 2]`.
    pub fn sin(&self) -> &Tensor {
        &self.sin
    }
}

#[cfg(test)]
mod tests;
