//! Fetching what is read next before it is needed.

use crate::arch::units::UnitRow;
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

/// [`fetch_ahead`] of `count` units of a row from unit `start` on, and of the scales and minima of what is fetched: streams so slow
/// that no processor seen follows them by itself.
#[inline(always)]
pub(super) fn fetch_units_ahead(row: &UnitRow, bits: usize, start: usize, count: usize) {
    let bytes = 8 * bits;
    fetch_ahead(row.codes, start * bytes, count * bytes);
    for side in [row.scales, row.minima] {
        // A scale or minimum of two bytes is for at least half a unit, so that the sides of a block are a line or less.
        let at = (start * bytes + AHEAD) * side.len() / row.codes.len();
        fetch(side.as_ptr().wrapping_add(at).cast());
    }
}

/// Has a cache line brought into the first-level cache.
#[inline(always)]
pub(in crate::arch) fn fetch(at: *const u8) {
    // SAFETY: to fetch has no effect that could be seen, whatever the address is, and SSE is in every such processor.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}
