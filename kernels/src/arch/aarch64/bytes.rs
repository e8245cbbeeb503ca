//! Products of bytes, summed up in 32 bits, and what else the standard library has no stable intrinsics for.
//!
//! `.arch_extension` lets the assembler take an instruction wherever it is inlined; whether the processor has it is the caller's
//! business.

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
    unsafe fn dot(sums: int32x4_t, levels: int8x16_t, values: int8x16_t) -> int32x4_t {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let low = vmull_s8(vget_low_s8(levels), vget_low_s8(values));
            let high = vmull_high_s8(levels, values);
            // A pair is at most 2 * 128 * 127, which 16 bits hold.
            vpadalq_s16(sums, vpaddq_s16(low, high))
        }
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

/// Four f16, as bits, as f32. NaN stays NaN.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn floats(bits: uint16x4_t) -> float32x4_t {
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
