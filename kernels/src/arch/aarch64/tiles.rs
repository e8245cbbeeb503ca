//! Integer dot products of trellis codes: a tile in registers of 16 windows.
//!
//! Where some weights fill whole bytes, their windows need no permutation: with two bits a weight, window `4 j + p` begins at bit `2 p`
//! of byte `j`, so that for one `p` all are one shift of the tile's bytes, and of those one byte on. A register then holds every fourth
//! column of four rows, and the input is put into that order once for all 16 rows. With three bits, eight weights fill three bytes,
//! which a load parts; with four, two weights fill one. With five, each row is taken on its own.

use super::{
    bytes::{Dot, Table},
    neon::row_levels,
    registers::{load, load_signed, store_floats},
};
use crate::{arch::integer::TileRun, quantized_input::GROUP, scheme::TILE};
use std::arch::aarch64::*;

/// # Safety
/// The processor has `D`'s instruction set.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn tiles_dot<D: Dot>(run: TileRun) -> [f32; TILE] {
    run.check();
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match run.bits {
            2 => strip::<D, 2, 4>(run),
            3 => strip::<D, 3, 4>(run),
            4 => strip::<D, 4, 8>(run),
            _ => strip::<D, 5, 16>(run),
        }
    }
}

/// With `N` registers of sums for the 16 rows.
///
/// # Safety
/// The processor has `D`'s instruction set.
#[target_feature(enable = "neon")]
unsafe fn strip<D: Dot, const K: usize, const N: usize>(run: TileRun) -> [f32; TILE] {
    let table = Table::new(run.codebook);
    let mut sums = [vdupq_n_f32(0.0); N];
    let groups = run.codes.chunks(GROUP / TILE * 32 * K).zip(run.x.values().as_chunks::<GROUP>().0);
    for ((tiles, values), &scale) in groups.zip(run.x.scales()) {
        let mut products = [vdupq_n_s32(0); N];
        for (tile, values) in tiles.chunks_exact(32 * K).zip(values.as_chunks::<TILE>().0) {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { add_tile::<D, K, N>(tile, &table, inputs::<K>(values), &mut products) };
        }
        for (sum, product) in sums.iter_mut().zip(products) {
            *sum = vfmaq_n_f32(*sum, vcvtq_f32_s32(product), scale);
        }
    }
    let mut rows = [0.0; TILE];
    for (n, sum) in sums.into_iter().enumerate() {
        let mut lanes = [0.0; 4];
        store_floats(&mut lanes, sum);
        for (lane, value) in lanes.into_iter().enumerate() {
            rows[row_of::<K>(n, lane)] += value;
        }
    }
    rows
}

/// The row whose products fall into a lane of a register of sums.
const fn row_of<const K: usize>(register: usize, lane: usize) -> usize {
    match K {
        2 => 4 * register + lane,
        3 => register / 2 * 8 + 2 * lane + register % 2,
        4 => 2 * register + lane / 2,
        _ => register,
    }
}

/// The input of a tile in the orders in which registers of levels have the columns.
#[inline]
#[target_feature(enable = "neon")]
fn inputs<const K: usize>(values: &[i8; TILE]) -> [int8x16_t; 4] {
    let values = load_signed(values);
    let order = match K {
        2 => std::array::from_fn(|i| (i % 4 * 4 + i / 4) as u8),
        3 => std::array::from_fn(|i| (i / 4 * 2 + i % 4 / 2 + i % 2 * 8) as u8),
        4 => std::array::from_fn(|i| (i % 8 * 2 + i / 8) as u8),
        _ => return [values; 4],
    };
    let ordered = vqtbl1q_s8(values, load(&order));
    if K == 4 {
        let pairs = vreinterpretq_s64_s8(ordered);
        let (even, odd) = (vdupq_laneq_s64::<0>(pairs), vdupq_laneq_s64::<1>(pairs));
        let (even, odd) = (vreinterpretq_s8_s64(even), vreinterpretq_s8_s64(odd));
        return [even, odd, even, odd];
    }
    let fours = vreinterpretq_s32_s8(ordered);
    [
        vreinterpretq_s8_s32(vdupq_laneq_s32::<0>(fours)),
        vreinterpretq_s8_s32(vdupq_laneq_s32::<1>(fours)),
        vreinterpretq_s8_s32(vdupq_laneq_s32::<2>(fours)),
        vreinterpretq_s8_s32(vdupq_laneq_s32::<3>(fours)),
    ]
}

/// Four bits from bit `RIGHT` of each byte on, and others above them; where they cross into `next`, `LEFT` is `8 - RIGHT`.
macro_rules! bits {
    ($byte:expr, $right:literal) => {
        vshrq_n_u8::<$right>($byte)
    };
    ($byte:expr, $next:expr, $right:literal, $left:literal) => {
        vsliq_n_u8::<$left>(vshrq_n_u8::<$right>($byte), $next)
    };
}

/// Adds the products of a tile.
///
/// # Safety
/// The processor has `D`'s instruction set.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_tile<D: Dot, const K: usize, const N: usize>(
    tile: &[u8],
    table: &Table,
    x: [int8x16_t; 4],
    sums: &mut [int32x4_t; N],
) {
    let add = |sum: &mut int32x4_t, levels, p: usize| {
        // SAFETY: the caller vouches for the instruction set.
        *sum = unsafe { D::dot(*sum, levels, x[p]) };
    };
    let bytes = tile.as_chunks::<16>().0;
    match K {
        2 | 4 => {
            let bytes: &[[u8; 16]; N] = bytes.first_chunk().expect("a register of sums for each 16 bytes");
            let mut following = load(&bytes[0]);
            for (c, sum) in sums.iter_mut().enumerate() {
                // The code wraps around: after its last byte comes its first.
                let byte = following;
                following = load(&bytes[(c + 1) % N]);
                let next = vextq_u8::<1>(byte, following);
                add(sum, table.lookup::<K>(byte, next), 0);
                if K == 2 {
                    let after = vextq_u8::<2>(byte, following);
                    add(sum, table.lookup::<K>(bits!(byte, 2), bits!(next, 2)), 1);
                    add(sum, table.lookup::<K>(bits!(byte, 4), bits!(next, 4)), 2);
                    add(sum, table.lookup::<K>(bits!(byte, next, 6, 2), bits!(next, after, 6, 2)), 3);
                } else {
                    add(sum, table.lookup::<K>(bits!(byte, 4), bits!(next, 4)), 1);
                }
            }
        }
        3 => {
            let halves = tile.as_chunks::<48>().0;
            for (h, sums) in sums.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                // In three bytes eight windows begin; the last ones end in the next three.
                // SAFETY: the pointer is that of 48 bytes.
                let uint8x16x3_t(a, b, c) = unsafe { vld3q_u8(halves[h].as_ptr()) };
                // SAFETY: as above.
                let uint8x16x3_t(next_a, next_b, _) = unsafe { vld3q_u8(halves[1 - h].as_ptr()) };
                let (d, e) = (vextq_u8::<1>(a, next_a), vextq_u8::<1>(b, next_b));
                // A register of windows has columns p and 8 + p of eight rows; two of them, those of every other row.
                let mut pair = |p: usize, first, second| {
                    let (first, second) = (vreinterpretq_s16_s8(first), vreinterpretq_s16_s8(second));
                    add(&mut sums[0], vreinterpretq_s8_s16(vtrn1q_s16(first, second)), p);
                    add(&mut sums[1], vreinterpretq_s8_s16(vtrn2q_s16(first, second)), p);
                };
                let level = |lowest, highest| table.lookup::<K>(lowest, highest);
                pair(0, level(a, b), level(bits!(a, 3), bits!(b, 3)));
                pair(1, level(bits!(a, b, 6, 2), bits!(b, c, 6, 2)), level(bits!(b, 1), bits!(c, 1)));
                pair(2, level(bits!(b, 4), bits!(c, 4)), level(bits!(b, c, 7, 1), bits!(c, d, 7, 1)));
                pair(3, level(bits!(c, 2), bits!(d, 2)), level(bits!(c, d, 5, 3), bits!(d, e, 5, 3)));
            }
        }
        _ => {
            for (row, sum) in sums.iter_mut().enumerate() {
                add(sum, row_levels::<K>(tile, row, table), 0);
            }
        }
    }
}
