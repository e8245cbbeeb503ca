//! Rounding one weight after the other, with error feedback inside a block.
//!
//! The cost of a block's error `e` is `|e V|^2 = sum_c (sum_{j <= c} e_j V_jc)^2`. With the errors of earlier
//! columns known, the term of column `c` vanishes where the code is that of
//!
//! ```text
//! target_c + sum_{j < c} e_j V_jc / V_cc
//! ```
//!
//! so that is what is rounded (GPTQ, Frantar et al. 2022; LDLQ, Chee et al. 2023).

use super::Metric;

/// Rounds `values` by `round(column, value) -> decoded value` and returns the cost of the error.
pub fn round_block(
    values: &mut [f32],
    metric: Option<Metric>,
    mut round: impl FnMut(usize, f32) -> f32,
) -> f32 {
    let Some(metric) = metric else {
        return values.iter_mut().enumerate().fold(0.0, |cost, (c, v)| {
            let decoded = round(c, *v);
            let error = std::mem::replace(v, decoded) - decoded;
            cost + error * error
        });
    };
    let mut errors = Vec::with_capacity(values.len());
    let mut cost = 0.0;
    for (c, v) in values.iter_mut().enumerate() {
        let column = metric.column(c);
        let carried: f32 = dot(&errors, column);
        let decoded = round(c, *v + carried / column[c]);
        let error = *v - decoded;
        *v = decoded;
        cost += (carried + error * column[c]).powi(2);
        errors.push(error);
    }
    cost
}

/// `a . b` over the shorter of the two.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut sums = [0.0; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feedback_costs_less_than_rounding() {
        // Two inputs that always come together: the sum of the errors counts.
        let columns = [1.0, 0.0, 0.8, 0.6];
        let metric = Metric { columns: &columns, stride: 2 };
        let mut values = [0.4, 0.4];
        let cost = round_block(&mut values, Some(metric), |_, v| v.round());
        assert_eq!(values, [0.0, 1.0]);
        // The first is rounded down by 0.4, so the second is taken for 0.4 + 0.4 * 0.8 / 0.6, and rounded up.
        assert!((cost - (0.4f32.powi(2) + (0.4 * 0.8 - 0.6 * 0.6f32).powi(2))).abs() < 1e-6, "{cost}");
        let mut plain = [0.4, 0.4];
        assert!((round_block(&mut plain, None, |_, v| v.round()) - 0.32).abs() < 1e-6);
        assert_eq!(plain, [0.0, 0.0]);
    }
}
