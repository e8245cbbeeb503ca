//! What becomes of freed memory.

/// Makes this program keep the memory that it frees for what it needs next: for a program to call once, at its start.
///
/// A forward pass over a long prompt takes and frees gigabytes in tensors of some megabytes. glibc gives those back to the system
/// at once, and to get them again costs a page fault for every 4 KiB: a third of the time of a prefill. What is kept
/// is no more than what was in use at some time. Elsewhere than with glibc, nothing happens.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the function sets parameters of the allocator, under its own lock.
    unsafe {
        /// Larger blocks get memory of their own, which is given back with them.
        const OWN_MEMORY: libc::c_int = 1 << 30;
        // Setting either turns off glibc's own adjustments, so that the second is of use with the first only.
        if libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MEMORY) == 1 {
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        }
    }
}
