//! NEON: four lanes. Every aarch64 processor that Rust's standard targets name has it.

use super::{
    bytes::{Table, Widening},
    registers::{load, load_signed},
};
use crate::{
    arch::{
        Kernels,
        generic::{self, Panel},
        integer::TileRun,
        page,
        tiles::{Tiles, Windows, row_bits},
        units::UnitRows,
        vector::Vector,
    },
    scheme::{TILE, UNIT},
};
use std::arch::aarch64::*;

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    std::arch::is_aarch64_feature_detected!("neon").then_some(Kernels {
        isa: "neon",
        panel_dot,
        lookup,
        tiles: decode_tiles,
        units_dot,
        tiles_dot,
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
            store_levels(vqtbl1q_s8(load_signed(table), load(codes)), step, out);
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
        let table = Table::new(tiles.codebook);
        for (t, tile) in tiles.codes.chunks_exact(32 * K).enumerate() {
            for (r, &step) in steps.iter().enumerate() {
                let levels = row_levels::<K>(tile, first + r, &table);
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

/// The levels of a tile's row.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn row_levels<const K: usize>(tile: &[u8], row: usize, table: &Table) -> int8x16_t {
    let bits = match tile[2 * K * row..].first_chunk() {
        Some(bytes) => load(bytes),
        None => load(&row_bits::<K>(tile, row).to_le_bytes()),
    };
    // The highest four bits of a window begin a byte after the lowest.
    table.lookup::<K>(eights::<K>(bits), eights::<K>(vextq_u8::<1>(bits, bits)))
}

/// Eight bits from the start of each window of a row.
#[inline]
#[target_feature(enable = "neon")]
fn eights<const K: usize>(bits: uint8x16_t) -> uint8x16_t {
    let take = |bytes: [u8; 16], shifts: [i16; 8]| {
        let pairs = vreinterpretq_u16_u8(vqtbl1q_u8(bits, load(&bytes)));
        // SAFETY: the pointer is that of eight 16-bit numbers.
        let shifts = unsafe { vld1q_s16(shifts.as_ptr()) };
        // A negative shift is one to the right.
        vreinterpretq_u8_u16(vshlq_u16(pairs, vnegq_s16(shifts)))
    };
    let even = take(Windows::<K, 0>::BYTES, Windows::<K, 0>::SHIFTS);
    let odd = take(Windows::<K, 1>::BYTES, Windows::<K, 1>::SHIFTS);
    // The low bytes of both, by turns.
    vtrn1q_u8(even, odd)
}

fn units_dot(rows: UnitRows, out: &mut [f32]) {
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { super::units::units_dot::<Widening>(rows, out) }
}

fn tiles_dot(run: TileRun) -> [f32; TILE] {
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { super::tiles::tiles_dot::<Widening>(run) }
}
