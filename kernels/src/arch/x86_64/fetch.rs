//! Fetching what is read next before it is needed.

use std::arch::x86_64::*;

/// From what is being used to what is fetched: about what a core is given in the time that memory takes to answer.
const AHEAD: usize = 2048;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Has the lines of what lies [`AHEAD`] of `count` bytes from `at` on brought into the first-level cache. They may lie behind
/// the slice, where the next rows usually are.
#[inline(always)]
pub(super) fn fetch_ahead(bytes: &[u8], at: usize, count: usize) {
    for line in (0..count).step_by(LINE) {
        // SAFETY: to fetch has no effect that could be seen, whatever the address is, and SSE is in every such processor.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(at + AHEAD + line).cast()) };
    }
}
