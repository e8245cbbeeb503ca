//! Fetching what is read next before it is needed.

use crate::arch::units::{BLOCK, UnitRow, UnitRows};
use std::arch::x86_64::*;

/// From the codes that are being used to those that are fetched: about what a core is given in the time that memory takes to answer.
const AHEAD: usize = 8192;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Has the lines of what lies [`AHEAD`] of `count` bytes of codes from `at` on brought into the first-level cache. They may lie behind
/// the slice, where the next rows usually are.
#[inline(always)]
pub(super) fn fetch_ahead(codes: &[u8], at: usize, count: usize) {
    for line in (0..count).step_by(LINE) {
        fetch(codes.as_ptr().wrapping_add(at + AHEAD + line));
    }
}

/// How many bytes of scales, and of minima, belong to the codes of a block, and to those that are fetched ahead.
#[derive(Debug, Clone, Copy)]
pub(super) struct SidePace {
    block: usize,
    ahead: usize,
}

impl SidePace {
    pub fn new(rows: &UnitRows) -> Self {
        let of_codes = |bytes: usize| bytes * rows.scales.len() / rows.codes.len().max(1);
        Self { block: of_codes(BLOCK * 8 * rows.bits), ahead: of_codes(AHEAD) }
    }
}

/// [`fetch_ahead`] of the block of a row from unit `start` on, and of the scales and minima of what is fetched: streams so slow
/// that no processor seen follows them by itself.
#[inline(always)]
pub(super) fn fetch_units_ahead(row: &UnitRow, pace: SidePace, bits: usize, start: usize) {
    fetch_ahead(row.codes, start * 8 * bits, BLOCK * 8 * bits);
    // A scale of two bytes is for half a unit at least: those of a block are a line or less.
    let at = start / BLOCK * pace.block + pace.ahead;
    fetch(row.scales.as_ptr().wrapping_byte_add(at).cast());
    if !row.minima.is_empty() {
        fetch(row.minima.as_ptr().wrapping_byte_add(at).cast());
    }
}

/// Has a cache line brought into the first-level cache.
#[inline(always)]
pub(in crate::arch) fn fetch(at: *const u8) {
    // SAFETY: to fetch has no effect that could be seen, whatever the address is, and SSE is in every such processor.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}
