//! Rotary position embedding (Su et al. 2021), in the half-split form of Hugging Face's models.
//!
//! Dimensions `i` and `i + d/2` of a head are a pair, turned at position `p` by the angle
//! `p * theta^(-2i/d)`.

use candle_core::{Device, Result, Tensor};

/// The frequencies of a model's rotary embedding.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// `theta^(-2i/d)` for `i < d/2`.
    frequencies: Vec<f32>,
}

/// Cosines and sines for a run of positions.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Frequencies for an even `head_dim` with the base `theta`.
    pub fn new(head_dim: usize, theta: f64) -> Self {
        let exponent = |i: usize| (2 * i) as f32 / head_dim as f32;
        Self { frequencies: (0..head_dim / 2).map(|i| 1.0 / (theta as f32).powf(exponent(i))).collect() }
    }

    /// The table for positions `start..start + n`.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn table(&self, start: usize, n: usize, device: &Device) -> Result<RotaryTable> {
        let angles: Vec<f32> =
            (start..start + n).flat_map(|p| self.frequencies.iter().map(move |f| p as f32 * f)).collect();
        let angles = Tensor::from_vec(angles, (n, self.frequencies.len()), device)?;
        Ok(RotaryTable { cos: angles.cos()?, sin: angles.sin()? })
    }
}

impl RotaryTable {
    /// Turns `x [heads, positions, head_dim]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::rotary_emb::rope(&x.unsqueeze(0)?.contiguous()?, &self.cos, &self.sin)?.squeeze(0)
    }
}
