//! Sums of units of 64 numbers of a KV page, times one number each: the two products of attention.

use super::vector::Vector;
use crate::{
    kv::Codec,
    scheme::{CodeUnit, UNIT, Unit2, Unit4},
};

/// Units that are decoded before they are used: 4 KiB of f32, which stays in the first-level cache.
const DECODED: usize = 16;

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
    /// Registers that hold the sums of a row at once: with four rows of them, no more than there are.
    const WIDTH: usize;

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

    /// `table[code]` for codes below 16.
    ///
    /// # Safety
    /// The processor has the instruction set, and `codes` is valid for reading [`Vector::LANES`] bytes.
    unsafe fn look_up(table: &[f32; 16], codes: *const u8) -> Self;
}

/// Decodes units: see [`PageKernels::decode`].
///
/// # Safety
/// The processor has `V`'s instruction set.
///
/// # Panics
/// When a slice is too short.
#[inline(always)]
unsafe fn decode<V: PageVector>(codec: Codec, units: &[u8], out: &mut [f32], stride: usize) {
    let bytes = codec.unit_bytes();
    let count = units.len() / bytes;
    assert!(units.len() == count * bytes && stride >= UNIT);
    assert!(count == 0 || (count - 1) * stride + UNIT <= out.len());
    let table = codec.table();
    for u in 0..count {
        let unit = &units[u * bytes..][..bytes];
        let mut codes = [0; UNIT];
        match codec {
            Codec::Int4 => Unit4::unpack(unit, &mut codes),
            Codec::Int2 => Unit2::unpack(unit, &mut codes),
            _ => {}
        }
        for i in (0..UNIT).step_by(V::LANES) {
            // SAFETY: a unit has 64 numbers of the codec's bytes, `codes` 64, and `out` was asserted to have room for 64 from here.
            unsafe {
                let from = unit.as_ptr();
                let values = match codec {
                    Codec::F32 => V::load(from.add(4 * i).cast()),
                    Codec::F16 => V::f16(from.add(2 * i)),
                    Codec::Int8 => V::i8(from.add(i)),
                    Codec::Int4 | Codec::Int2 => V::look_up(&table, codes.as_ptr().add(i)),
                };
                values.store(out.as_mut_ptr().add(u * stride + i));
            }
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
unsafe fn mix<V: PageVector>(run: Mix, out: &mut [f32]) {
    let Mix { codec, units, weights, stride, rows, out_stride } = run;
    let bytes = codec.unit_bytes();
    let count = units.len() / bytes;
    if count == 0 || rows == 0 {
        return;
    }
    assert!(units.len() == count * bytes && stride >= count && out_stride >= UNIT);
    assert!((rows - 1) * stride + count <= weights.len() && (rows - 1) * out_stride + UNIT <= out.len());
    let mut decoded = [0.0; DECODED * UNIT];
    for (c, units) in units.chunks(DECODED * bytes).enumerate() {
        let n = units.len() / bytes;
        // SAFETY: the caller vouches for the instruction set; the asserts above cover all rows, units and lanes.
        unsafe {
            decode::<V>(codec, units, &mut decoded, UNIT);
            let mut row = 0;
            while row < rows {
                let weights = weights.as_ptr().add(row * stride + c * DECODED);
                let out = out.as_mut_ptr().add(row * out_stride);
                row += match rows - row {
                    4.. => add::<V, 4>(&decoded, n, weights, stride, out, out_stride),
                    2..4 => add::<V, 2>(&decoded, n, weights, stride, out, out_stride),
                    _ => add::<V, 1>(&decoded, n, weights, stride, out, out_stride),
                };
            }
        }
    }
}

/// Adds `n` units to `R` rows, and returns `R`.
///
/// # Safety
/// The processor has `V`'s instruction set, `weights` is valid for reading `R` rows of `n`, and `out` for reading and writing
/// `R` rows of 64.
#[inline(always)]
unsafe fn add<V: PageVector, const R: usize>(
    decoded: &[f32; DECODED * UNIT],
    n: usize,
    weights: *const f32,
    stride: usize,
    out: *mut f32,
    out_stride: usize,
) -> usize {
    debug_assert!(n <= DECODED);
    // SAFETY: the caller vouches for the pointers; `decoded` has `n` units of 64.
    unsafe {
        match V::WIDTH {
            4 => strip::<V, R, 4>(decoded.as_ptr(), n, weights, stride, out, out_stride),
            _ => strip::<V, R, 2>(decoded.as_ptr(), n, weights, stride, out, out_stride),
        }
    }
    R
}

/// Adds `n` units to `R` rows, `W` registers of each at a time.
///
/// # Safety
/// As [`add`], and `decoded` is valid for reading `n` units.
#[inline(always)]
unsafe fn strip<V: PageVector, const R: usize, const W: usize>(
    decoded: *const f32,
    n: usize,
    weights: *const f32,
    stride: usize,
    out: *mut f32,
    out_stride: usize,
) {
    for first in (0..UNIT).step_by(W * V::LANES) {
        // SAFETY: the caller vouches for the instruction set and the pointers.
        unsafe {
            let at = |r: usize, w: usize| out.add(r * out_stride + first + w * V::LANES);
            let mut sums: [[V; W]; R] =
                std::array::from_fn(|r| std::array::from_fn(|w| V::load(at(r, w).cast_const())));
            for u in 0..n {
                let values: [V; W] =
                    std::array::from_fn(|w| V::load(decoded.add(u * UNIT + first + w * V::LANES)));
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
}

/// The portable instances.
pub const SCALAR: PageKernels = {
    fn decode_all(codec: Codec, units: &[u8], out: &mut [f32], stride: usize) {
        // SAFETY: arrays need no instruction set.
        unsafe { decode::<[f32; 8]>(codec, units, out, stride) }
    }
    fn mix_all(run: Mix, out: &mut [f32]) {
        // SAFETY: arrays need no instruction set.
        unsafe { mix::<[f32; 8]>(run, out) }
    }
    PageKernels { decode: decode_all, mix: mix_all }
};

impl PageVector for [f32; 8] {
    const WIDTH: usize = 2;

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
    unsafe fn look_up(table: &[f32; 16], codes: *const u8) -> Self {
        // SAFETY: the caller vouches for eight bytes.
        unsafe { codes.cast::<[u8; 8]>().read_unaligned() }.map(|code| table[usize::from(code & 15)])
    }
}

/// Instances for a register type, behind functions with the instruction set.
#[allow(unused_macros)]
macro_rules! instances {
    ($vector:ty, $features:literal) => {{
        fn decode_all(codec: Codec, units: &[u8], out: &mut [f32], stride: usize) {
            #[target_feature(enable = $features)]
            fn instance(codec: Codec, units: &[u8], out: &mut [f32], stride: usize) {
                // SAFETY: this function has the instruction set.
                unsafe { decode::<$vector>(codec, units, out, stride) }
            }
            // SAFETY: handed out only where the processor has the instruction set.
            unsafe { instance(codec, units, out, stride) }
        }
        fn mix_all(run: Mix, out: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn instance(run: Mix, out: &mut [f32]) {
                // SAFETY: this function has the instruction set.
                unsafe { mix::<$vector>(run, out) }
            }
            // SAFETY: handed out only where the processor has the instruction set.
            unsafe { instance(run, out) }
        }
        PageKernels { decode: decode_all, mix: mix_all }
    }};
}

/// Instances for AVX2 and AVX-512.
#[cfg(target_arch = "x86_64")]
pub mod x86_64 {
    use super::*;
    use std::arch::x86_64::*;

    /// AVX2's instances, where the processor has them.
    pub fn avx2() -> Option<PageKernels> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(instances!(__m256, "avx2,fma,f16c"))
    }

    /// AVX-512's instances, where the processor has them.
    pub fn avx512() -> Option<PageKernels> {
        (is_x86_feature_detected!("avx512f") && avx2().is_some())
            .then_some(instances!(__m512, "avx512f,avx2,fma,f16c"))
    }

    impl PageVector for __m256 {
        const WIDTH: usize = 2;

        #[inline(always)]
        unsafe fn splat(v: f32) -> Self {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { _mm256_set1_ps(v) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller vouches for the instruction set and the memory.
            unsafe { _mm256_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn f16(from: *const u8) -> Self {
            // SAFETY: the caller vouches for the instruction set and the memory.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }

        #[inline(always)]
        unsafe fn i8(from: *const u8) -> Self {
            // SAFETY: the caller vouches for the instruction set and the memory.
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
        }

        #[inline(always)]
        unsafe fn look_up(table: &[f32; 16], codes: *const u8) -> Self {
            // SAFETY: the caller vouches for the instruction set and the memory.
            unsafe {
                let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.cast()));
                let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), codes);
                let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(8)), codes);
                // `blendv` looks at the highest bit: bit 3 of the code shifted there.
                _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)))
            }
        }
    }

    impl PageVector for __m512 {
        const WIDTH: usize = 4;

        #[inline(always)]
        unsafe fn splat(v: f32) -> Self {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { _mm512_set1_ps(v) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller vouches for the instruction set and the memory.
            unsafe { _mm512_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn f16(from: *const u8) -> Self {
            // SAFETY: the caller vouches for the instruction set and the memory.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }

        #[inline(always)]
        unsafe fn i8(from: *const u8) -> Self {
            // SAFETY: the caller vouches for the instruction set and the memory.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
        }

        #[inline(always)]
        unsafe fn look_up(table: &[f32; 16], codes: *const u8) -> Self {
            // SAFETY: the caller vouches for the instruction set and the memory.
            unsafe {
                let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast()));
                _mm512_permutexvar_ps(codes, _mm512_loadu_ps(table.as_ptr()))
            }
        }
    }
}

/// Instances for NEON.
#[cfg(target_arch = "aarch64")]
pub mod aarch64 {
    use super::*;
    use std::arch::aarch64::*;

    /// NEON's instances.
    pub fn neon() -> Option<PageKernels> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(instances!(float32x4_t, "neon"))
    }

    impl PageVector for float32x4_t {
        const WIDTH: usize = 4;

        #[inline(always)]
        unsafe fn splat(v: f32) -> Self {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { vdupq_n_f32(v) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller vouches for the instruction set and the memory.
            unsafe { vst1q_f32(to, self) }
        }

        #[inline(always)]
        unsafe fn f16(from: *const u8) -> Self {
            // SAFETY: the caller vouches for four numbers of two bytes.
            let bits = unsafe { from.cast::<[[u8; 2]; 4]>().read_unaligned() };
            let values = bits.map(|bits| half::f16::from_le_bytes(bits).to_f32());
            // SAFETY: the caller vouches for the instruction set; the pointer is that of four values.
            unsafe { vld1q_f32(values.as_ptr()) }
        }

        #[inline(always)]
        unsafe fn i8(from: *const u8) -> Self {
            // SAFETY: the caller vouches for four bytes and the instruction set.
            unsafe {
                let values = from.cast::<[i8; 4]>().read_unaligned().map(f32::from);
                vld1q_f32(values.as_ptr())
            }
        }

        #[inline(always)]
        unsafe fn look_up(table: &[f32; 16], codes: *const u8) -> Self {
            // SAFETY: the caller vouches for four bytes and the instruction set.
            unsafe {
                let codes = codes.cast::<[u8; 4]>().read_unaligned();
                let values = codes.map(|code| table[usize::from(code & 15)]);
                vld1q_f32(values.as_ptr())
            }
        }
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
