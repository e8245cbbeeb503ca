//! Registers from memory and back.

use std::arch::aarch64::*;

/// Sixteen unsigned bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load(from: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the pointer is that of sixteen bytes.
    unsafe { vld1q_u8(from.as_ptr()) }
}

/// Sixteen signed bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_signed(from: &[i8; 16]) -> int8x16_t {
    // SAFETY: the pointer is that of sixteen bytes.
    unsafe { vld1q_s8(from.as_ptr()) }
}

/// Four f32.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_floats(from: &[f32; 4]) -> float32x4_t {
    // SAFETY: the pointer is that of four values.
    unsafe { vld1q_f32(from.as_ptr()) }
}

/// Four f32 to memory.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_floats(to: &mut [f32; 4], values: float32x4_t) {
    // SAFETY: the pointer is that of four values.
    unsafe { vst1q_f32(to.as_mut_ptr(), values) }
}
