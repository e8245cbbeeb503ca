//! AVX-512: sixteen lanes. Where wider registers gain nothing, or their extensions are missing, the narrower instance.

use crate::arch::{
    Kernels,
    generic::{self, Panel},
    page,
    vector::Vector,
};
use std::arch::x86_64::*;

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    let narrower = super::avxvnni::kernels().or_else(super::avx2::kernels)?;
    let tiles = super::vbmi::tiles().unwrap_or(narrower.tiles);
    let pages = page::x86_64::avx512().unwrap_or(narrower.pages);
    let kernels = Kernels { isa: "avx512", panel_dot, tiles, pages, ..narrower };
    let kernels = match super::vnni::products() {
        Some((units_dot, tiles_dot, panels)) => {
            Kernels { units_dot, tiles_dot, panels: Some(panels), ..kernels }
        }
        None => kernels,
    };
    is_x86_feature_detected!("avx512f").then_some(kernels)
}

impl Vector for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for the instruction set and the memory.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_reduce_add_ps(self) }
    }
}

fn panel_dot(panel: Panel, y: &mut [f32]) {
    #[target_feature(enable = "avx512f")]
    fn instance(panel: Panel, y: &mut [f32]) {
        // SAFETY: this function has the instruction set.
        unsafe { generic::panel_dot::<__m512, 4>(panel, y) }
    }
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { instance(panel, y) }
}
