//! What becomes of heads before attention, by definition.

use crate::{Random, bytes};
use squish_kernels::metal::HeadsShape;

/// Queries, keys and values as projections leave them, and what makes them ready.
pub struct RawHeads {
    /// `[positions, heads, head_dim]` of queries, keys and values.
    pub qkv: [Vec<f32>; 3],
    /// A bias of each.
    pub biases: [Vec<f32>; 3],
    /// The factors of the queries' norm, and of the keys'.
    pub factors: [Vec<f32>; 2],
    /// Cosines and sines, `[positions, head_dim / 2]`.
    pub table: [Vec<f32>; 2],
}

impl RawHeads {
    /// Random ones of this shape.
    pub fn new(s: &HeadsShape, random: &mut Random) -> Self {
        let heads = [s.heads, s.kv_heads, s.kv_heads].map(|heads| heads * s.head_dim);
        Self {
            qkv: heads.map(|width| random.floats(s.positions * width)),
            biases: heads.map(|width| random.floats(width)),
            factors: [0; 2].map(|_| random.floats(s.head_dim)),
            table: [0; 2].map(|_| random.floats(s.positions * s.head_dim / 2)),
        }
    }

    /// Cosines and sines, as [`ready_heads`] takes them.
    pub fn table(&self) -> Option<[&[f32]; 2]> {
        Some(self.table.each_ref().map(Vec::as_slice))
    }

    /// The inputs of a launch that makes them ready, with the buffers in which it keeps keys and values.
    pub fn inputs(&self, s: &HeadsShape, kept: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        let mut inputs: Vec<Vec<u8>> = self.qkv.iter().map(|values| bytes(values)).collect();
        inputs.extend(kept);
        inputs.extend(self.table.iter().map(|values| bytes(values)));
        if s.biased {
            inputs.extend(self.biases.iter().map(|values| bytes(values)));
        }
        if s.norm.is_some() {
            inputs.extend(self.factors.iter().map(|values| bytes(values)));
        }
        inputs
    }
}

/// Heads `[heads, n, head_dim]` of `x [n, heads, head_dim]` in f64: with a bias, normalised where there is a factor, turned where there is a
/// table of cosines and sines.
pub fn ready_heads(
    s: &HeadsShape,
    heads: usize,
    x: &[f32],
    bias: &[f32],
    factor: Option<&[f32]>,
    table: Option<[&[f32]; 2]>,
) -> Vec<f64> {
    let (dim, n) = (s.head_dim, s.positions);
    let mut y = Vec::new();
    for head in 0..heads {
        for position in 0..n {
            let at = (position * heads + head) * dim;
            let mut row: Vec<f64> = x[at..at + dim].iter().map(|&v| f64::from(v)).collect();
            if s.biased {
                row.iter_mut().zip(&bias[head * dim..]).for_each(|(v, &b)| *v += f64::from(b));
            }
            if let (Some(factor), Some(eps)) = (factor, s.norm) {
                let mean = row.iter().map(|v| v * v).sum::<f64>() / dim as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                row.iter_mut().zip(factor).for_each(|(v, &f)| *v *= scale * f64::from(f));
            }
            if let Some([cosines, sines]) = table {
                for i in 0..dim / 2 {
                    let (a, b) = (row[i], row[i + dim / 2]);
                    let [cos, sin] = [cosines, sines].map(|t| f64::from(t[position * dim / 2 + i]));
                    (row[i], row[i + dim / 2]) = (a * cos - b * sin, a * sin + b * cos);
                }
            }
            y.extend(row);
        }
    }
    y
}
