//! How long work tells of itself, and is stopped.

/// Told of the work's progress, and asked whether to go on.
pub trait Progress {
    /// `done` of `total` weights are encoded; `tensor` is being worked on.
    fn at(&self, done: usize, total: usize, tensor: &str);

    /// Whether to stop. Asked often.
    fn interrupted(&self) -> bool {
        false
    }
}

/// No progress is shown, nothing interrupts.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn at(&self, _done: usize, _total: usize, _tensor: &str) {}
}

/// The largest resident set of this process so far, in bytes, where the system says.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
