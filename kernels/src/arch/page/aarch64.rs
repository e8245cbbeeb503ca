//! Instances for NEON.

use super::{Codec, Mix, Numbers, PageKernels, PageVector, decode, mix};
use crate::arch::aarch64::bytes::floats;
use std::arch::aarch64::*;

/// NEON's instances.
pub fn neon() -> Option<PageKernels> {
    std::arch::is_aarch64_feature_detected!("neon").then_some(super::instances!(float32x4_t, "neon"))
}

impl PageVector for float32x4_t {
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
        // SAFETY: the caller vouches for the instruction set and four numbers of two bytes.
        unsafe { floats(vreinterpret_u16_u8(vld1_u8(from))) }
    }

    #[inline(always)]
    unsafe fn i8(from: *const u8) -> Self {
        // SAFETY: the caller vouches for four bytes and the instruction set.
        unsafe {
            let bytes = vcreate_s8(u64::from(from.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }

    #[inline(always)]
    unsafe fn look_up(table: &[f32; 16], from: *const u8, shift: usize) -> Self {
        // SAFETY: the caller vouches for four bytes and the instruction set.
        unsafe {
            let bytes = vcreate_u8(u64::from(from.cast::<u32>().read_unaligned()));
            let bytes = vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
            let codes = vandq_u32(vshlq_u32(bytes, vdupq_n_s32(-(shift as i32))), vdupq_n_u32(15));
            // The four bytes of entry `c` of the table are its bytes 4 c to 4 c + 3.
            let places = vmlaq_u32(vdupq_n_u32(0x0302_0100), codes, vdupq_n_u32(0x0404_0404));
            let table = vld1q_u8_x4(table.as_ptr().cast());
            vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(places)))
        }
    }
}
