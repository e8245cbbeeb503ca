//! Sums of units of 64 numbers of a KV page, times one number each: the two products of attention.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

use super::vector::Vector;
use crate::{kv::Codec, scheme::UNIT};

/// `out[r * out_stride + i] += sum over u of weights[r * stride + u] * units[u][i]`, for `i` below 64.
#[derive(Debug, Clone, Copy)]
pub struct Mix<'a> {
    /// How the units are stored; their scales are not applied.
    pub codec: Codec,
    /// The units, one after the other.
    pub units: &'a [u8],
    /// For each of `rows` rows, a number for every unit.
    pub weights: &'a [f32],
    /// Distance between two rows of weights.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// Distance between two rows of the output.
    pub out_stride: usize,
}

/// The instances of one instruction set.
#[derive(Debug, Clone, Copy)]
pub struct PageKernels {
    /// The units as f32, `stride` apart; scales are not applied.
    pub decode: fn(codec: Codec, units: &[u8], out: &mut [f32], stride: usize),
    /// See [`Mix`].
    pub mix: fn(run: Mix, out: &mut [f32]),
}

/// What a register needs besides [`Vector`] to read pages.
pub trait PageVector: Vector {
    /// All lanes `v`.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn splat(v: f32) -> Self;

    /// Writes the lanes.
    ///
    /// # Safety
    /// The processor has the instruction set, and `to` is valid for writing so many f32.
    unsafe fn store(self, to: *mut f32);

    /// Half-precision numbers.
    ///
    /// # Safety
    /// The processor has the instruction set, and `from` is valid for reading [`Vector::LANES`] numbers of two bytes.
    unsafe fn f16(from: *const u8) -> Self;

    /// Signed bytes.
    ///
    /// # Safety
    /// The processor has the instruction set, and `from` is valid for reading [`Vector::LANES`] bytes.
    unsafe fn i8(from: *const u8) -> Self;

    /// `table[byte >> shift & 15]`, for a shift of at most 7.
    ///
    /// # Safety
    /// The processor has the instruction set, and `from` is valid for reading [`Vector::LANES`] bytes.
    unsafe fn look_up(table: &[f32; 16], from: *const u8, shift: usize) -> Self;
}

/// How the numbers of a unit are read.
trait Numbers {
    /// Bytes of a unit.
    const BYTES: usize;

    /// The numbers from `i`, a multiple of the lanes, on.
    ///
    /// # Safety
    /// The processor has `V`'s instruction set, and `unit` is valid for reading a unit.
    unsafe fn lanes<V: PageVector>(table: &[f32; 16], unit: *const u8, i: usize) -> V;
}

/// Single precision.
struct F32;

impl Numbers for F32 {
    const BYTES: usize = Codec::F32.unit_bytes();

    #[inline(always)]
    unsafe fn lanes<V: PageVector>(_: &[f32; 16], unit: *const u8, i: usize) -> V {
        // SAFETY: the caller vouches for 64 numbers of four bytes.
        unsafe { V::load(unit.add(4 * i).cast()) }
    }
}

/// Half precision.
struct F16;

impl Numbers for F16 {
    const BYTES: usize = Codec::F16.unit_bytes();

    #[inline(always)]
    unsafe fn lanes<V: PageVector>(_: &[f32; 16], unit: *const u8, i: usize) -> V {
        // SAFETY: the caller vouches for 64 numbers of two bytes.
        unsafe { V::f16(unit.add(2 * i)) }
    }
}

/// Signed bytes.
struct Int8;

impl Numbers for Int8 {
    const BYTES: usize = Codec::Int8.unit_bytes();

    #[inline(always)]
    unsafe fn lanes<V: PageVector>(_: &[f32; 16], unit: *const u8, i: usize) -> V {
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { V::i8(unit.add(i)) }
    }
}

/// Codes of so many bits, of which code `i` lies in byte `i mod n` of the unit's `n`, from bit `BITS * (i div n)` on: the layout of
/// [`Unit4`](crate::scheme::Unit4) and [`Unit2`](crate::scheme::Unit2). Above a code of two bits lie others, to which the table,
/// four times the same levels, is blind.
struct Codes<const BITS: usize>;

impl<const BITS: usize> Numbers for Codes<BITS> {
    const BYTES: usize = BITS * UNIT / 8;

    #[inline(always)]
    unsafe fn lanes<V: PageVector>(table: &[f32; 16], unit: *const u8, i: usize) -> V {
        // SAFETY: the caller vouches for a unit; lanes do not reach over its last byte, since `n` is a multiple of them.
        unsafe { V::look_up(table, unit.add(i % Self::BYTES), BITS * (i / Self::BYTES)) }
    }
}

/// Calls a function over the [`Numbers`] of a codec.
macro_rules! over_numbers {
    ($codec:expr, $function:ident($($argument:expr),*)) => {
        match $codec {
            Codec::F32 => $function::<$crate::arch::page::F32>($($argument),*),
            Codec::F16 => $function::<$crate::arch::page::F16>($($argument),*),
            Codec::Int8 => $function::<$crate::arch::page::Int8>($($argument),*),
            Codec::Int4 => $function::<$crate::arch::page::Codes<4>>($($argument),*),
            Codec::Int2 => $function::<$crate::arch::page::Codes<2>>($($argument),*),
        }
    };
}
#[allow(unused_imports)]
use over_numbers;

/// Decodes units: see [`PageKernels::decode`].
///
/// # Safety
/// The processor has `V`'s instruction set.
///
/// # Panics
/// When a slice is too short.
#[inline(always)]
unsafe fn decode<V: PageVector, N: Numbers>(codec: Codec, units: &[u8], out: &mut [f32], stride: usize) {
    let count = units.len() / N::BYTES;
    assert!(units.len() == count * N::BYTES && stride >= UNIT);
    assert!(count == 0 || (count - 1) * stride + UNIT <= out.len());
    let table = codec.table();
    for (u, unit) in units.chunks_exact(N::BYTES).enumerate() {
        for i in (0..UNIT).step_by(V::LANES) {
            // SAFETY: the caller vouches for the instruction set; `out` was asserted to have room for 64 numbers from here on.
            unsafe { N::lanes::<V>(table, unit.as_ptr(), i).store(out.as_mut_ptr().add(u * stride + i)) };
        }
    }
}

/// See [`Mix`]. A row's result does not depend on how many others there are.
///
/// # Safety
/// The processor has `V`'s instruction set.
///
/// # Panics
/// When a slice is too short.
#[inline(always)]
unsafe fn mix<V: PageVector, N: Numbers>(run: Mix, out: &mut [f32]) {
    let Mix { codec, units, weights, stride, rows, out_stride } = run;
    let count = units.len() / N::BYTES;
    if count == 0 || rows == 0 {
        return;
    }
    assert!(units.len() == count * N::BYTES && stride >= count && out_stride >= UNIT);
    assert!((rows - 1) * stride + count <= weights.len() && (rows - 1) * out_stride + UNIT <= out.len());
    let table = codec.table();
    let mut row = 0;
    while row < rows {
        // SAFETY: the caller vouches for the instruction set; the asserts above cover all rows, units and lanes.
        row += unsafe {
            let weights = weights.as_ptr().add(row * stride);
            let out = out.as_mut_ptr().add(row * out_stride);
            match rows - row {
                1 => add::<V, N, 1>(table, units, weights, stride, out, out_stride),
                2 => add::<V, N, 2>(table, units, weights, stride, out, out_stride),
                3 => add::<V, N, 3>(table, units, weights, stride, out, out_stride),
                4 => add::<V, N, 4>(table, units, weights, stride, out, out_stride),
                5 => add::<V, N, 5>(table, units, weights, stride, out, out_stride),
                6 => add::<V, N, 6>(table, units, weights, stride, out, out_stride),
                7 => add::<V, N, 7>(table, units, weights, stride, out, out_stride),
                _ => add::<V, N, 8>(table, units, weights, stride, out, out_stride),
            }
        };
    }
}

/// Registers that hold sums of a row at a time: with eight rows of them, what AVX-512 and NEON have is not used up.
const WIDTH: usize = 2;

/// Adds all units to `R` rows, and returns `R`.
///
/// # Safety
/// The processor has `V`'s instruction set, `weights` is valid for reading `R` rows of as many as there are units, and `out` for reading
/// and writing `R` rows of 64.
#[inline(always)]
unsafe fn add<V: PageVector, N: Numbers, const R: usize>(
    table: &[f32; 16],
    units: &[u8],
    weights: *const f32,
    stride: usize,
    out: *mut f32,
    out_stride: usize,
) -> usize {
    for first in (0..UNIT).step_by(WIDTH * V::LANES) {
        // SAFETY: the caller vouches for the instruction set and the pointers.
        unsafe {
            let at = |r: usize, w: usize| out.add(r * out_stride + first + w * V::LANES);
            let mut sums: [[V; WIDTH]; R] =
                std::array::from_fn(|r| std::array::from_fn(|w| V::load(at(r, w).cast_const())));
            for (u, unit) in units.chunks_exact(N::BYTES).enumerate() {
                let values: [V; WIDTH] =
                    std::array::from_fn(|w| N::lanes(table, unit.as_ptr(), first + w * V::LANES));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let weight = V::splat(*weights.add(r * stride + u));
                    for (sum, values) in sums.iter_mut().zip(values) {
                        *sum = sum.mul_add(weight, values);
                    }
                }
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (w, sum) in sums.into_iter().enumerate() {
                    sum.store(at(r, w));
                }
            }
        }
    }
    R
}

/// Instances for a register type, behind functions with the instruction set.
macro_rules! instances {
    ($vector:ty, $features:literal) => {{
        fn decode_all(codec: Codec, units: &[u8], out: &mut [f32], stride: usize) {
            #[target_feature(enable = $features)]
            fn instance<N: Numbers>(codec: Codec, units: &[u8], out: &mut [f32], stride: usize) {
                // SAFETY: this function has the instruction set.
                unsafe { decode::<$vector, N>(codec, units, out, stride) }
            }
            // SAFETY: handed out only where the processor has the instruction set.
            unsafe { $crate::arch::page::over_numbers!(codec, instance(codec, units, out, stride)) }
        }
        fn mix_all(run: Mix, out: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn instance<N: Numbers>(run: Mix, out: &mut [f32]) {
                // SAFETY: this function has the instruction set.
                unsafe { mix::<$vector, N>(run, out) }
            }
            // SAFETY: handed out only where the processor has the instruction set.
            unsafe { $crate::arch::page::over_numbers!(run.codec, instance(run, out)) }
        }
        PageKernels { decode: decode_all, mix: mix_all }
    }};
}
#[allow(unused_imports)]
use instances;

/// The portable instances.
pub const SCALAR: PageKernels = {
    fn decode_all(codec: Codec, units: &[u8], out: &mut [f32], stride: usize) {
        fn instance<N: Numbers>(codec: Codec, units: &[u8], out: &mut [f32], stride: usize) {
            // SAFETY: arrays need no instruction set.
            unsafe { decode::<[f32; 8], N>(codec, units, out, stride) }
        }
        over_numbers!(codec, instance(codec, units, out, stride))
    }
    fn mix_all(run: Mix, out: &mut [f32]) {
        fn instance<N: Numbers>(run: Mix, out: &mut [f32]) {
            // SAFETY: arrays need no instruction set.
            unsafe { mix::<[f32; 8], N>(run, out) }
        }
        over_numbers!(run.codec, instance(run, out))
    }
    PageKernels { decode: decode_all, mix: mix_all }
};

impl PageVector for [f32; 8] {
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        [v; 8]
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for eight writable values; an array of f32 may lie at any f32's alignment.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn f16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for eight numbers of two bytes.
        let bits = unsafe { from.cast::<[[u8; 2]; 8]>().read_unaligned() };
        bits.map(|bits| half::f16::from_le_bytes(bits).to_f32())
    }

    #[inline(always)]
    unsafe fn i8(from: *const u8) -> Self {
        // SAFETY: the caller vouches for eight bytes.
        unsafe { from.cast::<[i8; 8]>().read_unaligned() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn look_up(table: &[f32; 16], from: *const u8, shift: usize) -> Self {
        // SAFETY: the caller vouches for eight bytes.
        let bytes = unsafe { from.cast::<[u8; 8]>().read_unaligned() };
        bytes.map(|byte| table[usize::from(byte >> shift & 15)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_instance_equals_the_definition(
            codec in prop::sample::select(Codec::ALL.to_vec()), count in 1..70usize, rows in 1..12usize,
            extra in 0..3usize, seed: u64,
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            };
            let units: Vec<u8> = match codec {
                Codec::F32 => (0..count * UNIT).flat_map(|_| next().to_le_bytes()).collect(),
                Codec::F16 => (0..count * UNIT).flat_map(|_| half::f16::from_f32(next()).to_le_bytes()).collect(),
                _ => (0..count * codec.unit_bytes()).map(|_| (next() * 127.0) as i8 as u8).collect(),
            };
            let (stride, out_stride) = (count + extra, UNIT + extra);
            let weights: Vec<f32> = (0..rows * stride).map(|_| next()).collect();
            let before: Vec<f32> = (0..rows * out_stride).map(|_| next()).collect();
            let level = |u: usize, i: usize| codec.level(&units[u * codec.unit_bytes()..][..codec.unit_bytes()], i);
            for kernels in arch::available() {
                let mut decoded = vec![f32::NAN; count * out_stride];
                (kernels.pages.decode)(codec, &units, &mut decoded, out_stride);
                let mut mixed = before.clone();
                (kernels.pages.mix)(Mix { codec, units: &units, weights: &weights, stride, rows, out_stride }, &mut mixed);
                for i in 0..UNIT {
                    for u in 0..count {
                        prop_assert_eq!(decoded[u * out_stride + i], level(u, i), "{} {}", kernels.isa, i);
                    }
                    for r in 0..rows {
                        let terms = || (0..count).map(|u| f64::from(weights[r * stride + u]) * f64::from(level(u, i)));
                        let expected = f64::from(before[r * out_stride + i]) + terms().sum::<f64>();
                        let size = 1.0 + terms().map(f64::abs).sum::<f64>();
                        let found = f64::from(mixed[r * out_stride + i]);
                        prop_assert!((found - expected).abs() < 1e-6 * size, "{}: {found} {expected}", kernels.isa);
                    }
                }
                for (i, (found, before)) in mixed.iter().zip(&before).enumerate() {
                    prop_assert!(i % out_stride < UNIT || found == before);
                }
            }
        }
    }
}
