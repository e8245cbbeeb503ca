//! NEON: four lanes. Every aarch64 processor that Rust's standard targets name has it.

use super::{
    Kernels,
    generic::{self, Panel},
    vector::Vector,
};
use crate::scheme::UNIT;
use std::arch::aarch64::*;

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    std::arch::is_aarch64_feature_detected!("neon").then_some(Kernels { isa: "neon", panel_dot, lookup })
}

impl Vector for float32x4_t {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for the instruction set and the memory.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { vfmaq_f32(self, a, b) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { vaddvq_f32(self) }
    }
}

fn panel_dot(panel: Panel, y: &mut [f32]) {
    #[target_feature(enable = "neon")]
    fn instance(panel: Panel, y: &mut [f32]) {
        // SAFETY: this function has the instruction set.
        unsafe { generic::panel_dot::<float32x4_t, 4>(panel, y) }
    }
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { instance(panel, y) }
}

fn lookup(codes: &[u8; UNIT], table: &[i8; 16], step: f32, out: &mut [f32; UNIT]) {
    #[target_feature(enable = "neon")]
    fn instance(codes: &[u8; UNIT], table: &[i8; 16], step: f32, out: &mut [f32; UNIT]) {
        for (codes, out) in codes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            // SAFETY: the pointers are those of arrays of 16 elements, and this function has the instruction set.
            unsafe {
                let levels = vqtbl1q_s8(vld1q_s8(table.as_ptr()), vld1q_u8(codes.as_ptr()));
                for (half, out) in [vmovl_s8(vget_low_s8(levels)), vmovl_high_s8(levels)]
                    .into_iter()
                    .zip(out.as_chunks_mut::<8>().0)
                {
                    let low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(half)));
                    let high = vcvtq_f32_s32(vmovl_high_s16(half));
                    vst1q_f32(out.as_mut_ptr(), vmulq_n_f32(low, step));
                    vst1q_f32(out.as_mut_ptr().add(4), vmulq_n_f32(high, step));
                }
            }
        }
    }
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { instance(codes, table, step, out) }
}
