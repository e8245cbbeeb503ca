//! Products of bytes in registers of 256 bits: what the instances of that width differ in.

use std::arch::{asm, x86_64::*};

/// How an instruction set multiplies bytes and adds them up in fours.
pub(super) trait Dot {
    /// Added to levels for [`Dot::add`]: 128 where they have to be unsigned, else 0.
    const OFFSET: i32;

    /// `sum[l] + sum over i in 0..4 of levels[4 l + i] * x[4 l + i]`, for levels with [`Dot::OFFSET`] added.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn add(sum: __m256i, levels: __m256i, x: Input) -> __m256i;

    /// The same for levels as they are, and values that are not -128.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn add_signed(sum: __m256i, levels: __m256i, values: __m256i) -> __m256i;
}

/// Values, none -128, and their sizes.
#[derive(Clone, Copy)]
pub(super) struct Input {
    pub values: __m256i,
    pub sizes: __m256i,
}

/// What every processor with AVX2 has: products in 16 bits, added up in pairs, and those.
///
/// `vpmaddubsw` wants one factor unsigned: its sign goes to the other one, which must not be -128 then. Two products are at most
/// `2 * 128 * 127`, which 16 bits hold.
pub(super) struct InPairs;

impl Dot for InPairs {
    const OFFSET: i32 = 0;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(sum: __m256i, levels: __m256i, x: Input) -> __m256i {
        // No level of a codebook is -128.
        let pairs = _mm256_maddubs_epi16(x.sizes, _mm256_sign_epi8(levels, x.values));
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_signed(sum: __m256i, levels: __m256i, values: __m256i) -> __m256i {
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(levels), _mm256_sign_epi8(values, levels));
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// The extension AVX-VNNI: one instruction, of unsigned levels with signed values.
pub(super) struct InFours;

impl Dot for InFours {
    const OFFSET: i32 = 128;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(mut sum: __m256i, levels: __m256i, x: Input) -> __m256i {
        // Not by its intrinsic, which becomes a call where a function is compiled for AVX2 alone.
        // SAFETY: the caller vouches for the instruction set. Registers are all that is read and written.
        unsafe {
            asm!(
                "{{vex}} vpdpbusd {sum}, {levels}, {values}",
                sum = inout(ymm_reg) sum, levels = in(ymm_reg) levels, values = in(ymm_reg) x.values,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_signed(sum: __m256i, levels: __m256i, values: __m256i) -> __m256i {
        let (sizes, values) = (_mm256_abs_epi8(levels), _mm256_sign_epi8(values, levels));
        // SAFETY: the caller vouches for the instruction set.
        unsafe { Self::add(sum, sizes, Input { values, sizes }) }
    }
}
