//! The input of a matrix in eight bits, for integer dot products.
//!
//! ```text
//! x[c] ~ scales[c / 64] * values[c] ,   |values[c]| <= 127
//! ```
//!
//! A group's scale is its largest magnitude over 127. For a Gaussian that is 44 dB: its largest of 64 is near 2.4 sigma, and an error
//! of uniform distribution in a step of 2.4 sigma / 127 has a variance of step^2 / 12.

use crate::{arch::vectorized, disjoint::Disjoint, team};

/// Values that share a scale. Inputs are padded with zeros to whole groups.
pub const GROUP: usize = 64;

/// Values that are summed up: half a group, as finely as any scheme has scales.
pub const HALF: usize = GROUP / 2;

/// [`QuantizedInput::half_scales`] and [`half_sums`](QuantizedInput::half_sums) are padded with zeros to a multiple of so many groups.
pub const PADDED: usize = 16;

/// Groups that are worth a thread's while.
const TOGETHER: usize = 16;

/// The values of a group, in a cache line of their own.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Aligned([i8; GROUP]);

/// An input `[cols]` in eight bits.
#[derive(Debug, Clone, Default)]
pub struct QuantizedInput {
    values: Vec<Aligned>,
    scales: Vec<f32>,
    sums: Vec<[i32; 2]>,
    half_scales: Vec<[f32; 2]>,
    half_sums: Vec<[f32; 2]>,
}

impl QuantizedInput {
    /// The nearest such input. A group that holds what is no finite number has the scale NaN.
    pub fn new(x: &[f32]) -> Self {
        let mut found = Self::default();
        found.round_alone(x);
        found
    }

    /// [`QuantizedInput::new`] in the place of what was held.
    pub(crate) fn round_alone(&mut self, x: &[f32]) {
        self.fill(x, usize::MAX);
    }

    /// [`round_alone`](Self::round_alone) by several threads, where the input is long enough for that.
    pub(crate) fn round(&mut self, x: &[f32]) {
        let long = x.len() >= 2 * TOGETHER * GROUP;
        self.fill(x, if long { TOGETHER } else { usize::MAX });
    }

    /// Rounds so many groups at a time.
    fn fill(&mut self, x: &[f32], together: usize) {
        let groups = x.len().div_ceil(GROUP);
        let together = together.min(groups.max(1));
        self.resize(groups);
        let (values, scales) = (Disjoint::new(&mut self.values), Disjoint::new(&mut self.scales));
        let sums = Disjoint::new(&mut self.sums);
        team::for_each(groups.div_ceil(together), |i| {
            let first = i * together;
            let count = together.min(groups - first);
            // SAFETY: runs of groups do not overlap, and each index comes once.
            let mut parts = unsafe {
                Parts {
                    values: values.part(first, count),
                    scales: scales.part(first, count),
                    sums: sums.part(first, count),
                }
            };
            parts.round(&x[first * GROUP..x.len().min((first + count) * GROUP)]);
        });
        self.add_up();
    }

    fn resize(&mut self, groups: usize) {
        self.values.resize(groups, Aligned([0; GROUP]));
        self.scales.resize(groups, 0.0);
        self.sums.resize(groups, [0; 2]);
    }

    fn add_up(&mut self) {
        let padded = self.scales.len().next_multiple_of(PADDED);
        for halves in [&mut self.half_scales, &mut self.half_sums] {
            halves.clear();
            halves.resize(padded, [0.0; 2]);
        }
        let halves = self.half_scales.iter_mut().zip(&mut self.half_sums);
        for ((scales, sums), (&scale, &[low, high])) in halves.zip(self.scales.iter().zip(&self.sums)) {
            (*scales, *sums) = ([scale; 2], [scale * low as f32, scale * high as f32]);
        }
    }

    /// The values, a multiple of [`GROUP`].
    pub fn values(&self) -> &[i8] {
        // SAFETY: groups of exactly so many values, one after the other.
        unsafe { std::slice::from_raw_parts(self.values.as_ptr().cast(), GROUP * self.values.len()) }
    }

    /// What the values of each group are multiplied by.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The sums of the values of each group's halves.
    pub fn sums(&self) -> &[[i32; 2]] {
        &self.sums
    }

    /// The scale of each group's halves, which is the group's, and zeros after them: see [`PADDED`].
    pub fn half_scales(&self) -> &[[f32; 2]] {
        &self.half_scales
    }

    /// The sums of each group's halves times the group's scale: what the halves of the input add up to; and zeros after them.
    pub fn half_sums(&self) -> &[[f32; 2]] {
        &self.half_sums
    }
}

/// Some groups of an input that is being rounded.
struct Parts<'a> {
    values: &'a mut [Aligned],
    scales: &'a mut [f32],
    sums: &'a mut [[i32; 2]],
}

impl Parts<'_> {
    /// Rounds these values.
    fn round(&mut self, x: &[f32]) {
        vectorized(
            #[inline(always)]
            || self.round_inline(x),
        );
    }

    #[inline(always)]
    fn round_inline(&mut self, x: &[f32]) {
        /// Sums that are added up in the end: as many as the widest vectors have lanes.
        const LANES: usize = 16;
        let (whole, rest) = x.as_chunks::<GROUP>();
        let mut last = [0.0; GROUP];
        last[..rest.len()].copy_from_slice(rest);
        let groups = whole.iter().chain(std::iter::once(&last).filter(|_| !rest.is_empty()));
        let values = self.values.iter_mut();
        for (((x, values), scale), sums) in groups.zip(values).zip(&mut *self.scales).zip(&mut *self.sums) {
            // Magnitudes are ordered as their bits are, with what is not finite above all that is.
            let most = x.iter().fold(0, |most, v| most.max(v.to_bits() & !(1 << 31)));
            let (most, finite) = (f32::from_bits(most), most < f32::INFINITY.to_bits());
            *scale = if finite { most / 127.0 } else { f32::NAN };
            // Of numbers so small that this would be infinite, nothing is left.
            let inverse = Some(127.0 / most).filter(|inverse| finite && inverse.is_finite()).unwrap_or(0.0);
            // Loops and not `map`: what is called here has no vectors.
            let mut rounded = [0; GROUP];
            for (rounded, x) in rounded.iter_mut().zip(x) {
                *rounded = nearest(x * inverse) as i8;
            }
            values.0 = rounded;
            for (sum, half) in sums.iter_mut().zip(rounded.as_chunks::<HALF>().0) {
                let mut lanes = [0; LANES];
                for some in half.as_chunks::<LANES>().0 {
                    lanes.iter_mut().zip(some).for_each(|(lane, value)| *lane += i32::from(*value));
                }
                *sum = lanes.iter().sum();
            }
        }
    }
}

/// The nearest integer of a number of magnitude 127 or less (a little more, by rounding), in the lowest eight bits; of NaN, any.
#[inline(always)]
fn nearest(v: f32) -> i32 {
    // Adding 1.5 * 2^23 rounds to an integer, which the last bits of the sum then hold.
    const ROUND: f32 = 12_582_912.0;
    (v + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_the_nearest(x in prop::collection::vec(-3f32..3., 1..300), factor in prop::sample::select(vec![1e-30f32, 1.0, 1e30])) {
            let x: Vec<f32> = x.iter().map(|x| x * factor).collect();
            let q = QuantizedInput::new(&x);
            prop_assert_eq!(q.values().len(), x.len().next_multiple_of(GROUP));
            for (c, &value) in q.values().iter().enumerate() {
                let scale = q.scales()[c / GROUP];
                let x = x.get(c).copied().unwrap_or(0.0);
                prop_assert!((x - scale * f32::from(value)).abs() <= scale * 0.50001, "{x} {scale} {value}");
                prop_assert!(value >= -127);
            }
            for (values, sums) in q.values().chunks(GROUP).zip(q.sums()) {
                let sum = |half: &[i8]| half.iter().map(|&v| i32::from(v)).sum::<i32>();
                prop_assert_eq!(*sums, [sum(&values[..HALF]), sum(&values[HALF..])]);
            }
            let groups = q.scales().len();
            prop_assert_eq!(q.half_sums().len(), groups.next_multiple_of(PADDED));
            for (i, (scales, sums)) in q.half_scales().iter().zip(q.half_sums()).enumerate() {
                let scale = q.scales().get(i).copied().unwrap_or(0.0);
                let of = q.sums().get(i).copied().unwrap_or([0; 2]);
                prop_assert_eq!((*scales, *sums), ([scale; 2], of.map(|sum| scale * sum as f32)));
            }
        }
    }

    #[test]
    fn several_threads_round_as_one_does() {
        // One after the other in the same buffers: nothing of a longer input is left in a shorter one.
        let mut together = QuantizedInput::default();
        for cols in [9001, 1, 2047, 0, 2048, 2049, 8960, 65] {
            let x: Vec<f32> = (0..cols).map(|i| (i as f32).sin() * 3.0).collect();
            let alone = QuantizedInput::new(&x);
            together.round(&x);
            assert_eq!(alone.values(), together.values());
            assert_eq!((alone.scales(), alone.sums()), (together.scales(), together.sums()));
            assert_eq!(
                (alone.half_scales(), alone.half_sums()),
                (together.half_scales(), together.half_sums())
            );
        }
    }

    #[test]
    fn zeros_and_what_is_no_number() {
        let q = QuantizedInput::new(&[0.0; 70]);
        assert!(q.values().iter().all(|&v| v == 0) && q.scales() == [0.0, 0.0]);
        let tiny = QuantizedInput::new(&[1e-40; 64]);
        assert!(tiny.values().iter().all(|&v| v == 0) && tiny.scales()[0].is_finite());
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = [1.0; 128];
            x[65] = bad;
            let q = QuantizedInput::new(&x);
            assert!(q.scales()[0] > 0.0 && q.scales()[1].is_nan());
        }
    }
}
