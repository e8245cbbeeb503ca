//! What tests may ask of the stand-in.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

static DISPATCHES: AtomicU64 = AtomicU64::new(0);
static WAITS: AtomicU64 = AtomicU64::new(0);
static COPIED: AtomicU64 = AtomicU64::new(0);
static KERNELS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What has happened in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Kernels that were dispatched, and copies on the device.
    pub dispatches: u64,
    /// Times that somebody waited for the device.
    pub waits: u64,
    /// Bytes that were copied into new buffers.
    pub copied: u64,
}

/// The counts so far.
pub fn counts() -> Counts {
    Counts { dispatches: DISPATCHES.load(Relaxed), waits: WAITS.load(Relaxed), copied: COPIED.load(Relaxed) }
}

/// The names of the kernels that were dispatched since the last call, in order.
pub fn take_kernels() -> Vec<String> {
    std::mem::take(&mut *KERNELS.lock().unwrap_or_else(PoisonError::into_inner))
}

pub(crate) fn dispatched(kernel: &str) {
    DISPATCHES.fetch_add(1, Relaxed);
    KERNELS.lock().unwrap_or_else(PoisonError::into_inner).push(kernel.into());
}

pub(crate) fn waited() {
    WAITS.fetch_add(1, Relaxed);
}

pub(crate) fn copied(bytes: usize) {
    COPIED.fetch_add(bytes as u64, Relaxed);
}
