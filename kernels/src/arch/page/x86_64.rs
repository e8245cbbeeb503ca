//! Instances for AVX2 and AVX-512.

use super::{Codec, Mix, Numbers, PageKernels, PageVector, decode, mix};
use std::arch::x86_64::*;

/// AVX2's instances, where the processor has them.
pub fn avx2() -> Option<PageKernels> {
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
        .then_some(super::instances!(__m256, "avx2,fma,f16c"))
}

/// AVX-512's instances, where the processor has them.
pub fn avx512() -> Option<PageKernels> {
    (is_x86_feature_detected!("avx512f") && avx2().is_some())
        .then_some(super::instances!(__m512, "avx512f,avx2,fma,f16c"))
}

impl PageVector for __m256 {
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
    unsafe fn look_up(table: &[f32; 16], from: *const u8, shift: usize) -> Self {
        // SAFETY: the caller vouches for the instruction set and the memory.
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            let codes = _mm256_srl_epi32(bytes, _mm_cvtsi64_si128(shift as i64));
            // `permutevar8x32` looks at the lowest three bits.
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), codes);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(8)), codes);
            // `blendv` looks at the highest bit: bit 3 of the code shifted there.
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)))
        }
    }
}

impl PageVector for __m512 {
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
    unsafe fn look_up(table: &[f32; 16], from: *const u8, shift: usize) -> Self {
        // SAFETY: the caller vouches for the instruction set and the memory.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            let codes = _mm512_srl_epi32(bytes, _mm_cvtsi64_si128(shift as i64));
            // `permutexvar` looks at the lowest four bits.
            _mm512_permutexvar_ps(codes, _mm512_loadu_ps(table.as_ptr()))
        }
    }
}
