//! AVX2 with fused multiply-add: eight lanes.

use crate::arch::{
    Kernels,
    generic::{self, Panel},
    vector::Vector,
};
use crate::scheme::UNIT;
use std::arch::x86_64::*;

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Kernels {
        isa: "avx2",
        panel_dot,
        lookup,
    })
}

impl Vector for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for the instruction set and the memory.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self), _mm256_extractf128_ps(self, 1));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)))
        }
    }
}

fn panel_dot(panel: Panel, y: &mut [f32]) {
    #[target_feature(enable = "avx2,fma")]
    fn instance(panel: Panel, y: &mut [f32]) {
        // SAFETY: this function has the instruction set.
        unsafe { generic::panel_dot::<__m256, 2>(panel, y) }
    }
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { instance(panel, y) }
}

/// Sixteen codes a step: the table is one register of bytes, which `pshufb` indexes with the codes.
fn lookup(codes: &[u8; UNIT], table: &[i8; 16], step: f32, out: &mut [f32; UNIT]) {
    #[target_feature(enable = "avx2")]
    fn instance(codes: &[u8; UNIT], table: &[i8; 16], step: f32, out: &mut [f32; UNIT]) {
        let step = _mm256_set1_ps(step);
        for (codes, out) in codes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            // SAFETY: the pointers are those of arrays of 16 elements, and this function has the instruction set.
            unsafe {
                let table = _mm_loadu_si128(table.as_ptr().cast());
                let levels = _mm_shuffle_epi8(table, _mm_loadu_si128(codes.as_ptr().cast()));
                let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(levels));
                let high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(levels, levels)));
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(low, step));
                _mm256_storeu_ps(out.as_mut_ptr().add(8), _mm256_mul_ps(high, step));
            }
        }
    }
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { instance(codes, table, step, out) }
}
