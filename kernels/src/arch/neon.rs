//! NEON: four lanes. Every aarch64 processor that Rust's standard targets name has it.

use super::{
    Kernels,
    generic::{self, Panel},
    integer, page,
    tiles::{Tiles, Windows, row_bits},
    units,
    vector::Vector,
};
use crate::scheme::UNIT;
use std::arch::aarch64::*;

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    std::arch::is_aarch64_feature_detected!("neon").then_some(Kernels {
        isa: "neon",
        panel_dot,
        lookup,
        tiles: decode_tiles,
        units_dot: units::units_dot,
        tiles_dot: integer::tiles_dot,
        panels: None,
        pages: page::aarch64::neon().unwrap_or(page::SCALAR),
    })
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

/// Sixteen levels, times a step.
#[inline]
#[target_feature(enable = "neon")]
fn store_levels(levels: int8x16_t, step: f32, out: &mut [f32; 16]) {
    let eights = [vmovl_s8(vget_low_s8(levels)), vmovl_high_s8(levels)];
    for (eight, out) in eights.into_iter().zip(out.as_chunks_mut::<8>().0) {
        let low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(eight)));
        let high = vcvtq_f32_s32(vmovl_high_s16(eight));
        // SAFETY: the pointers are those of four f32 each.
        unsafe {
            vst1q_f32(out.as_mut_ptr(), vmulq_n_f32(low, step));
            vst1q_f32(out.as_mut_ptr().add(4), vmulq_n_f32(high, step));
        }
    }
}

/// Sixteen codes a step: the table is one register of bytes, which `tbl` indexes with the codes.
fn lookup(codes: &[u8; UNIT], table: &[i8; 16], step: f32, out: &mut [f32; UNIT]) {
    #[target_feature(enable = "neon")]
    fn instance(codes: &[u8; UNIT], table: &[i8; 16], step: f32, out: &mut [f32; UNIT]) {
        for (codes, out) in codes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            // SAFETY: the pointers are those of arrays of 16 bytes.
            let (table, codes) = unsafe { (vld1q_s8(table.as_ptr()), vld1q_u8(codes.as_ptr())) };
            store_levels(vqtbl1q_s8(table, codes), step, out);
        }
    }
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { instance(codes, table, step, out) }
}

/// A row of a tile a step: sixteen windows.
fn decode_tiles(tiles: Tiles, out: &mut [f32]) {
    #[target_feature(enable = "neon")]
    fn instance<const K: usize>(tiles: Tiles, out: &mut [f32]) {
        let Tiles { first, steps, stride, .. } = tiles;
        // SAFETY: each load takes 64 of the table's 256 bytes.
        let table: [int8x16x4_t; 4] =
            std::array::from_fn(|i| unsafe { vld1q_s8_x4(tiles.table[64 * i..][..64].as_ptr()) });
        for (t, tile) in tiles.codes.chunks_exact(32 * K).enumerate() {
            for (r, &step) in steps.iter().enumerate() {
                let windows = windows::<K>(row_bytes::<K>(tile, first + r));
                // An index of 64 or more yields 0 from `tbl`, and keeps what is there in `tbx`.
                let mut levels = vqtbl4q_s8(table[0], windows);
                levels = vqtbx4q_s8(levels, table[1], vsubq_u8(windows, vdupq_n_u8(64)));
                levels = vqtbx4q_s8(levels, table[2], vsubq_u8(windows, vdupq_n_u8(128)));
                levels = vqtbx4q_s8(levels, table[3], vsubq_u8(windows, vdupq_n_u8(192)));
                // SAFETY: `check` made sure of 16 values for every row and tile.
                store_levels(levels, step, unsafe { &mut *out.as_mut_ptr().add(r * stride + 16 * t).cast() });
            }
        }
    }
    tiles.check(out);
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe {
        match tiles.bits {
            2 => instance::<2>(tiles, out),
            3 => instance::<3>(tiles, out),
            4 => instance::<4>(tiles, out),
            _ => instance::<5>(tiles, out),
        }
    }
}

/// [`row_bits`] in a register.
#[inline]
#[target_feature(enable = "neon")]
fn row_bytes<const K: usize>(tile: &[u8], row: usize) -> uint8x16_t {
    let load = |bytes: &[u8; 16]| {
        // SAFETY: the pointer is that of sixteen bytes.
        unsafe { vld1q_u8(bytes.as_ptr()) }
    };
    match tile[2 * K * row..].first_chunk() {
        Some(bytes) => load(bytes),
        None => load(&row_bits::<K>(tile, row).to_le_bytes()),
    }
}

/// The sixteen windows of a row, from its bits.
#[inline]
#[target_feature(enable = "neon")]
fn windows<const K: usize>(bits: uint8x16_t) -> uint8x16_t {
    let take = |bytes: [u8; 16], shifts: [i16; 8]| {
        // SAFETY: the pointers are those of sixteen bytes and of eight 16-bit numbers.
        let (bytes, shifts) = unsafe { (vld1q_u8(bytes.as_ptr()), vld1q_s16(shifts.as_ptr())) };
        let pairs = vreinterpretq_u16_u8(vqtbl1q_u8(bits, bytes));
        // A negative shift is one to the right.
        vreinterpretq_u8_u16(vshlq_u16(pairs, vnegq_s16(shifts)))
    };
    let even = take(Windows::<K, 0>::BYTES, Windows::<K, 0>::SHIFTS);
    let odd = take(Windows::<K, 1>::BYTES, Windows::<K, 1>::SHIFTS);
    // The low bytes of both, by turns.
    vtrn1q_u8(even, odd)
}
