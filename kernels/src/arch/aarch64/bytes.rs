//! What the standard library has no stable intrinsics for, or the compiler no good code: products of bytes summed up in 32 bits,
//! look-ups in two tables, conversions of f16.
//!
//! `.arch_extension` lets the assembler take an instruction wherever it is inlined; whether the processor has it is the caller's
//! business.

use super::registers::load_signed;
use crate::scheme::trellis::Codebook;
use std::arch::{aarch64::*, asm};

/// How an instruction set multiplies bytes.
pub(super) trait Dot {
    /// `sums[l] + sum over i in 0..4 of levels[4 l + i] * values[4 l + i]`, exactly, for values that are not -128.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn dot(sums: int32x4_t, levels: int8x16_t, values: int8x16_t) -> int32x4_t;
}

/// What every aarch64 processor has: products in 16 bits, added up in pairs.
pub(super) struct Widening;

impl Dot for Widening {
    #[inline(always)]
    unsafe fn dot(mut sums: int32x4_t, levels: int8x16_t, values: int8x16_t) -> int32x4_t {
        // A pair of products is at most 2 * 128 * 127, which 16 bits hold.
        // SAFETY: the caller vouches for the instruction set. Registers are all that is read and written.
        unsafe {
            asm!(
                "smull {low:v}.8h, {levels:v}.8b, {values:v}.8b",
                "smull2 {high:v}.8h, {levels:v}.16b, {values:v}.16b",
                "addp {low:v}.8h, {low:v}.8h, {high:v}.8h",
                "sadalp {sums:v}.4s, {low:v}.8h",
                sums = inout(vreg) sums, levels = in(vreg) levels, values = in(vreg) values,
                low = out(vreg) _, high = out(vreg) _,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }
}

/// The extension `dotprod`: one instruction.
pub(super) struct Sdot;

impl Dot for Sdot {
    #[inline(always)]
    unsafe fn dot(mut sums: int32x4_t, levels: int8x16_t, values: int8x16_t) -> int32x4_t {
        // SAFETY: the caller vouches for the instruction set. Registers are all that is read and written.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {levels:v}.16b, {values:v}.16b",
                sums = inout(vreg) sums, levels = in(vreg) levels, values = in(vreg) values,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }
}

impl Sdot {
    /// [`Dot::dot`] with the values of lane `LANE` for every lane.
    ///
    /// # Safety
    /// The processor has `dotprod`.
    #[inline(always)]
    pub unsafe fn dot_lane<const LANE: i32>(
        mut sums: int32x4_t,
        levels: int8x16_t,
        values: int8x16_t,
    ) -> int32x4_t {
        // SAFETY: the caller vouches for the instruction set. Registers are all that is read and written.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {levels:v}.16b, {values:v}.4b[{lane}]",
                sums = inout(vreg) sums, levels = in(vreg) levels, values = in(vreg) values, lane = const LANE,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }
}

/// The extension `i8mm`: `sums[2 r + i] + sum over c in 0..8 of levels[8 r + c] * values[8 i + c]`, for levels without a sign.
///
/// # Safety
/// The processor has `i8mm`.
#[inline(always)]
pub(super) unsafe fn usmmla(mut sums: int32x4_t, levels: uint8x16_t, values: int8x16_t) -> int32x4_t {
    // SAFETY: the caller vouches for the instruction set. Registers are all that is read and written.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "usmmla {sums:v}.4s, {levels:v}.16b, {values:v}.16b",
            sums = inout(vreg) sums, levels = in(vreg) levels, values = in(vreg) values,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// The two tables of a codebook.
#[derive(Clone, Copy)]
pub(super) struct Table {
    low: int8x16_t,
    high: int8x16_t,
}

impl Table {
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn new(codebook: &Codebook) -> Self {
        Self { low: load_signed(codebook.low()), high: load_signed(codebook.high()) }
    }

    /// The level of each window of a code of `K` bits a weight, from its lowest four bits and its highest: the lower four of these bytes.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn lookup<const K: usize>(&self, lowest: uint8x16_t, highest: uint8x16_t) -> int8x16_t {
        let nibble = |bytes| vandq_u8(bytes, vdupq_n_u8(15));
        let (low, high) = (vqtbl1q_s8(self.low, nibble(lowest)), vqtbl1q_s8(self.high, nibble(highest)));
        if K == 2 { veorq_s8(low, high) } else { vaddq_s8(low, high) }
    }
}

/// Four f16, as bits, as f32. NaN stays NaN.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::arch) fn floats(bits: uint16x4_t) -> float32x4_t {
    let found: float32x4_t;
    // SAFETY: `fcvtl` is part of NEON. Registers are all that is read and written.
    unsafe {
        asm!(
            "fcvtl {found:v}.4s, {bits:v}.4h",
            found = lateout(vreg) found, bits = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_f16_is_converted() {
        for first in (0..=u16::MAX).step_by(4) {
            let bits: [u16; 4] = std::array::from_fn(|i| first + i as u16);
            let mut found = [0f32; 4];
            // SAFETY: every processor of the test has NEON; the pointers are those of four values each.
            unsafe { vst1q_f32(found.as_mut_ptr(), floats(vld1_u16(bits.as_ptr()))) };
            for (found, bits) in found.into_iter().zip(bits) {
                let expected = f16::from_bits(bits).to_f32();
                assert!(
                    found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                    "{bits:#x}: {found}"
                );
            }
        }
    }
}
