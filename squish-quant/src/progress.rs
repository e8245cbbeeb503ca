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
