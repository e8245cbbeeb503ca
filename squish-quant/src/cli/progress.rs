//! A progress bar where a person watches, and Ctrl-C.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use squish_quant::Progress;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A bar on standard error; invisible where that is no terminal. Ctrl-C interrupts the work, which then
/// cleans up after itself; a second one ends the program at once.
pub struct Bar {
    bar: ProgressBar,
    interrupted: Arc<AtomicBool>,
}

impl Bar {
    pub fn new(visible: bool) -> Result<Self> {
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{bar:32} {percent:>3}%  {eta} left  {msg}")?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = interrupted.clone();
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        })?;
        Ok(Self { bar: ProgressBar::with_draw_target(None, target).with_style(style), interrupted })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn at(&self, done: usize, total: usize, tensor: &str) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        self.bar.set_message(tensor.to_owned());
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
