//! The parts of a softmax, for one row of scores.

use crate::arch::vectorized;

/// Partial results, which are joined in the end: as many as the widest vectors have lanes.
const LANES: usize = 16;

/// The largest of `scores`; minus infinity for none.
pub fn largest(scores: &[f32]) -> f32 {
    vectorized(
        #[inline(always)]
        || {
            let (chunks, rest) = scores.as_chunks::<LANES>();
            let mut most = [f32::NEG_INFINITY; LANES];
            for chunk in chunks {
                most.iter_mut().zip(chunk).for_each(|(m, &s)| *m = if s > *m { s } else { *m });
            }
            most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
        },
    )
}

/// Replaces each score by `exp(score - most)` and returns their sum. No score is above `most`.
pub fn exp_below(scores: &mut [f32], most: f32) -> f32 {
    vectorized(
        #[inline(always)]
        || {
            let (chunks, rest) = scores.as_chunks_mut::<LANES>();
            let mut sums = [0.0; LANES];
            for chunk in chunks {
                chunk.iter_mut().zip(&mut sums).for_each(|(s, sum)| {
                    *s = exp(*s - most);
                    *sum += *s;
                });
            }
            rest.iter_mut().zip(&mut sums).for_each(|(s, sum)| {
                *s = exp(*s - most);
                *sum += *s;
            });
            sums.iter().sum()
        },
    )
}

/// `e^x` for `x <= 0`, to 2 units in the last place; below -87 that of -87.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer, which the last bits then hold.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first of few enough bits that n times it is exact.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // What is no number stays none.
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2[0] - n * LN2[1];
    // Taylor's series to r^6 / 720: what is missing is below 2^-22 of it.
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let power = series.iter().fold(0.0, |sum: f32, term| sum * r + term);
    power * f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_library() {
        for i in 0..200_000 {
            let x = -(i as f32) * 4.35e-4;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 2.5e-7, "{x}: {found} {expected}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn rows_of_any_length() {
        for n in 1..50 {
            let scores: Vec<f32> = (0..n).map(|i| (i * 7 % 13) as f32 - 5.0).collect();
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(largest(&scores), most);
            let mut shares = scores.clone();
            let sum = exp_below(&mut shares, most);
            let expected: f64 = scores.iter().map(|&s| f64::from(s - most).exp()).sum();
            assert!((f64::from(sum) - expected).abs() < 1e-5 * expected);
            for (share, score) in shares.iter().zip(scores) {
                assert!((share - (score - most).exp()).abs() < 1e-6);
            }
        }
        assert_eq!(largest(&[]), f32::NEG_INFINITY);
    }
}
