//! How one vector becomes codes and a scale.
//!
//! A packed vector has been rotated (`H D x`, see [`rotation`](crate::rotation)), so that its values are close to Gaussian
//! whatever the channels were: a constant bias on some of them is spread over all. Then
//!
//! ```text
//! x[i] ~ scale * level(code[i])
//! ```
//!
//! with one f16 scale for the vector. `int8` has the levels -127 .. 127, and the largest magnitude as its scale's
//! measure; `int4` and `int2` have Lloyd-Max levels for a Gaussian, those of the schemes `int4r` and `nf2`, and the scale of least squared error.

use crate::{
    arch::vectorized,
    scheme::{CodeUnit, INT4R, NF2, UNIT, Unit2, Unit4},
};
use half::f16;
use std::sync::LazyLock;

/// How numbers of keys or values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Codec {
    /// As they are computed.
    F32,
    /// Rounded to half precision.
    F16,
    /// 8 bits, evenly spaced levels.
    Int8,
    /// 4 bits, Gaussian levels.
    Int4,
    /// 2 bits, Gaussian levels.
    Int2,
}

/// Rounds of choosing codes for a scale, then the best scale for these codes.
pub(crate) const ROUNDS: usize = 3;

impl Codec {
    /// Every codec, from most bits to fewest.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Int8, Self::Int4, Self::Int2];

    /// Bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 => 16,
            Self::Int8 => 8,
            Self::Int4 => 4,
            Self::Int2 => 2,
        }
    }

    /// Bytes of 64 codes.
    pub const fn unit_bytes(self) -> usize {
        UNIT / 8 * self.bits()
    }

    /// Whether vectors are rotated and have a scale.
    pub const fn is_packed(self) -> bool {
        self.bits() <= 8
    }

    /// The level of each code, in units of the scale; two bits' four levels again and again. For codecs without a table, zeros.
    pub fn table(self) -> &'static [f32; 16] {
        static TABLES: LazyLock<[[f32; 16]; 3]> = LazyLock::new(|| {
            let repeated = |levels: Vec<f32>| std::array::from_fn(|code| levels[code % levels.len()]);
            [repeated(INT4R.levels()), repeated(NF2.levels()), [0.0; 16]]
        });
        match self {
            Self::Int4 => &TABLES[0],
            Self::Int2 => &TABLES[1],
            _ => &TABLES[2],
        }
    }

    /// The scale that a Gaussian of standard deviation 1 has with the levels of [`Codec::table`]; 0 for codecs without.
    pub fn gaussian_scale(self) -> f32 {
        match self {
            Self::Int4 => INT4R.gaussian_scale(),
            Self::Int2 => NF2.gaussian_scale(),
            _ => 0.0,
        }
    }

    /// The `i`-th number of 64, in units of the scale: the reference reading.
    ///
    /// # Panics
    /// When the unit is shorter than [`Codec::unit_bytes`].
    pub fn level(self, unit: &[u8], i: usize) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes(*unit[4 * i..].first_chunk().expect("a unit")),
            Self::F16 => f16::from_le_bytes(*unit[2 * i..].first_chunk().expect("a unit")).to_f32(),
            Self::Int8 => f32::from(unit[i] as i8),
            Self::Int4 => self.table()[usize::from(Unit4::code(unit, i))],
            Self::Int2 => self.table()[usize::from(Unit2::code(unit, i))],
        }
    }

    /// Packs 64 codes into a unit of [`Codec::unit_bytes`].
    ///
    /// # Panics
    /// For `f32` and `f16`, which have no codes.
    pub(super) fn pack(self, codes: &[u8; UNIT], unit: &mut [u8]) {
        match self {
            Self::Int8 => unit.copy_from_slice(codes),
            Self::Int4 => Unit4::pack(codes, unit),
            Self::Int2 => Unit2::pack(codes, unit),
            Self::F32 | Self::F16 => unreachable!("numbers are written as they are"),
        }
    }

    /// Chooses the codes of a rotated vector, and its scale. A vector that is not finite has a scale that is none.
    ///
    /// # Panics
    /// For `f32` and `f16`, which have no codes, and for lengths that differ.
    pub fn encode(self, x: &[f32], codes: &mut [u8]) -> f16 {
        assert!(self.is_packed() && x.len() == codes.len());
        if !x.iter().all(|v| v.is_finite()) {
            codes.fill(0);
            return f16::NAN;
        }
        match self {
            Self::Int8 => {
                let most = x.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                let scale = f16::from_f32(most / 127.0);
                let inverse = inverse(scale);
                for (code, v) in codes.iter_mut().zip(x) {
                    *code = (v * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
                }
                scale
            }
            Self::Int4 => gaussian::<16>(x, self.table(), self.gaussian_scale(), codes),
            _ => gaussian::<4>(x, self.table(), self.gaussian_scale(), codes),
        }
    }
}

/// 1 over it, or 0 where that is no number.
fn inverse(scale: f16) -> f32 {
    if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 }
}

/// Codes of `N` levels, by alternating between the nearest codes of a scale and the best scale of the codes: for codes with
/// levels `l`, `|x - s l|^2` is least at `s = x . l / l . l`.
fn gaussian<const N: usize>(x: &[f32], levels: &[f32; 16], unit_scale: f32, codes: &mut [u8]) -> f16 {
    let energy: f32 = x.iter().map(|v| v * v).sum();
    let mut scale = unit_scale * (energy / x.len() as f32).sqrt();
    for _ in 0..ROUNDS {
        if scale <= 0.0 {
            break;
        }
        nearest::<N>(x, levels, 1.0 / scale, codes);
        let pairs = || x.iter().zip(codes.iter()).map(|(x, &code)| (x, levels[usize::from(code)]));
        let (product, square) =
            (pairs().map(|(x, l)| x * l).sum::<f32>(), pairs().map(|(_, l)| l * l).sum::<f32>());
        scale = product / square;
    }
    let scale = f16::from_f32(scale);
    nearest::<N>(x, levels, inverse(scale), codes);
    scale
}

/// The codes of the nearest levels: how many midpoints between levels lie below.
fn nearest<const N: usize>(x: &[f32], levels: &[f32; 16], inverse: f32, codes: &mut [u8]) {
    vectorized(
        #[inline(always)]
        || {
            for (code, x) in codes.iter_mut().zip(x) {
                let x = x * inverse;
                let below = |i: usize| u8::from(x > 0.5 * (levels[i] + levels[i + 1]));
                *code = (0..N - 1).map(below).sum();
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rotation;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use rand_distr::StandardNormal;

    const PACKED: [Codec; 3] = [Codec::Int8, Codec::Int4, Codec::Int2];

    /// What comes back of a vector of a multiple of 64 values.
    fn restored(codec: Codec, x: &[f32]) -> Vec<f32> {
        let mut codes = vec![0; x.len()];
        let scale = codec.encode(x, &mut codes).to_f32();
        let mut unit = vec![0; codec.unit_bytes()];
        let units = codes.as_chunks::<UNIT>().0.iter().flat_map(|codes| {
            codec.pack(codes, &mut unit);
            (0..UNIT).map(|i| scale * codec.level(&unit, i)).collect::<Vec<_>>()
        });
        units.collect()
    }

    /// Signal over error of many vectors, in decibels, with or without the rotation.
    fn snr(codec: Codec, rotation: Option<&Rotation>, mut vector: impl FnMut() -> Vec<f32>) -> f64 {
        let (mut signal, mut error) = (0.0, 0.0);
        for _ in 0..2000 {
            let x = vector();
            let mut rotated = x.clone();
            rotation.iter().for_each(|rotation| rotation.apply(&mut rotated));
            let mut y = restored(codec, &rotated);
            rotation.iter().for_each(|rotation| rotation.invert(&mut y));
            for (x, y) in x.iter().zip(y) {
                signal += f64::from(*x).powi(2);
                error += f64::from(x - y).powi(2);
            }
        }
        10.0 * (signal / error).log10()
    }

    #[test]
    fn gaussian_vectors_keep_their_signal() {
        let mut rng = StdRng::seed_from_u64(1);
        for (codec, bar) in [(Codec::Int8, 43.0), (Codec::Int4, 19.0), (Codec::Int2, 9.0)] {
            for head_dim in [64, 128, 256] {
                let rotation = Rotation::new(head_dim, head_dim, 0).unwrap();
                let mut vector = || (0..head_dim).map(|_| rng.sample(StandardNormal)).collect();
                let plain = snr(codec, None, &mut vector);
                let rotated = snr(codec, Some(&rotation), &mut vector);
                println!("{codec:?} {head_dim}: {plain:.2} dB, rotated {rotated:.2} dB");
                assert!(plain.min(rotated) >= bar, "{codec:?} {head_dim}: {plain} {rotated}");
            }
        }
    }

    /// Channels with a constant bias of two standard deviations, in random directions.
    #[test]
    fn a_bias_costs_a_rotated_vector_little() {
        let mut rng = StdRng::seed_from_u64(2);
        for codec in PACKED {
            for share in [0.1, 0.5, 1.0] {
                let bias: Vec<f32> =
                    (0..128).map(|_| if rng.random::<f64>() < share { 2.0 } else { 0.0 }).collect();
                let rotation = Rotation::new(128, 128, 0).unwrap();
                let mut vector = || bias.iter().map(|b| b + rng.sample::<f32, _>(StandardNormal)).collect();
                let plain = snr(codec, None, &mut vector);
                let rotated = snr(codec, Some(&rotation), &mut vector);
                println!("{codec:?}, {share} of the channels biased: {plain:.2} dB, rotated {rotated:.2} dB");
                assert!(rotated >= plain - 4.0, "{codec:?} {share}: {plain} {rotated}");
            }
        }
    }

    proptest! {
        #[test]
        fn codes_are_the_nearest(x in prop::collection::vec(-3f32..3., 64), factor in prop::sample::select(vec![1e-3f32, 1.0, 1e3])) {
            let x: Vec<f32> = x.iter().map(|x| x * factor).collect();
            for codec in PACKED {
                let mut codes = vec![0; 64];
                let scale = codec.encode(&x, &mut codes).to_f32();
                let mut levels: Vec<f32> = match codec {
                    Codec::Int8 => (-127..=127).map(|level| level as f32).collect(),
                    Codec::Int4 => codec.table().to_vec(),
                    _ => codec.table()[..4].to_vec(),
                };
                levels.iter_mut().for_each(|level| *level *= scale);
                for (x, y) in x.iter().zip(restored(codec, &x)) {
                    let best = levels.iter().map(|level| (x - level).abs()).fold(f32::INFINITY, f32::min);
                    prop_assert!((x - y).abs() <= best + 1e-5 * scale, "{codec:?}: {x} {y}");
                }
            }
        }
    }

    #[test]
    fn zeros_and_what_is_no_number() {
        for codec in PACKED {
            assert!(restored(codec, &[0.0; 64]).iter().all(|&y| y == 0.0));
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = [1.0; 64];
                x[5] = bad;
                assert!(codec.encode(&x, &mut [0; 64]).is_nan());
            }
        }
    }
}
