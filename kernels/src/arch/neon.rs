//! NEON: four lanes. Every aarch64 processor that Rust's standard targets name has it.

use super::{
    Kernels,
    generic::{self, Panel},
    vector::Vector,
};
use std::arch::aarch64::*;

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    std::arch::is_aarch64_feature_detected!("neon").then_some(Kernels { isa: "neon", panel_dot })
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
