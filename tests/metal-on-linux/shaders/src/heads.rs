//! What becomes of heads before attention, by definition.

use squish_kernels::metal::HeadsShape;

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
