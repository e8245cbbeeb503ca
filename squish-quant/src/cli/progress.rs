//! Progress where a person watches, and Ctrl-C.

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use squish_hub::hub::Transfer;
use squish_quant::Progress;
use std::{
    collections::HashMap,
    sync::{
        Mutex, Once,
        atomic::{AtomicBool, Ordering},
    },
};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether Ctrl-C has been pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Ctrl-C interrupts the work from now on, which then cleans up after itself; a second one ends the program at once.
fn listen() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        });
    });
    Ok(result?)
}

/// A bar on standard error; invisible where that is no terminal.
pub struct Bar(ProgressBar);

impl Bar {
    pub fn new(visible: bool) -> Result<Self> {
        listen()?;
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Ok(Self(ProgressBar::with_draw_target(None, target).with_style(work_style()?)))
    }
}

fn work_style() -> Result<ProgressStyle> {
    Ok(ProgressStyle::with_template("{bar:32} {percent:>3}%  {eta} left  {msg}")?)
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn at(&self, done: usize, total: usize, tensor: &str) {
        self.0.set_length(total as u64);
        self.0.set_position(done as u64);
        self.0.set_message(tensor.to_owned());
    }

    fn interrupted(&self) -> bool {
        interrupted()
    }
}

/// Bars for files under way, one for all of their bytes, and one for the work on what has come.
pub struct Bars {
    all: MultiProgress,
    style: ProgressStyle,
    state: Mutex<State>,
    work: ProgressBar,
}

struct State {
    files: HashMap<String, ProgressBar>,
    /// Bytes that are there, by file.
    done: HashMap<String, u64>,
    total: ProgressBar,
}

impl Bars {
    pub fn new(visible: bool) -> Result<Self> {
        listen()?;
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let style = ProgressStyle::with_template(
            "{bar:24} {bytes:>11} of {total_bytes:11} {bytes_per_sec:>13}  {msg}",
        )?;
        let total = ProgressBar::new(0).with_style(style.clone()).with_message("in total");
        let work = ProgressBar::new(0).with_style(work_style()?);
        let state = State { files: HashMap::new(), done: HashMap::new(), total: all.add(total) };
        Ok(Self { work: all.add(work), all, style, state: Mutex::new(state) })
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let _ = self.all.clear();
    }
}

impl Transfer for Bars {
    fn expect(&self, total: u64) {
        let state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        state.total.inc_length(total);
    }

    fn at(&self, file: &str, done: u64, total: Option<u64>) {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        let State { files, done: known, total: sum } = &mut *state;
        // A file that has to be fetched again goes back.
        let before = known.insert(file.to_owned(), done).unwrap_or(0);
        sum.set_position((sum.position() + done).saturating_sub(before));
        let bar = files.entry(file.to_owned()).or_insert_with(|| {
            let bar = ProgressBar::new(total.unwrap_or(0)).with_style(self.style.clone());
            let bar = self.all.insert_before(sum, bar);
            bar.set_message(file.replace(char::is_control, "\u{fffd}"));
            bar
        });
        bar.set_position(done);
        if total.is_some_and(|total| done >= total) {
            bar.finish_and_clear();
        }
    }

    fn warn(&self, text: &str) {
        let line = format!("warning: {}", text.replace(char::is_control, "\u{fffd}"));
        self.all.suspend(|| eprintln!("{line}"));
    }

    fn cancelled(&self) -> bool {
        interrupted()
    }
}

impl Progress for Bars {
    fn at(&self, done: usize, total: usize, tensor: &str) {
        self.work.set_length(total as u64);
        self.work.set_position(done as u64);
        self.work.set_message(tensor.to_owned());
    }

    fn interrupted(&self) -> bool {
        interrupted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_the_sum_of_what_is_there() {
        let bars = Bars::new(false).unwrap();
        bars.expect(100);
        bars.expect(50);
        for (file, done, sum) in [("a", 10, 10), ("b", 30, 40), ("a", 60, 90), ("b", 5, 65), ("b", 50, 110)] {
            Transfer::at(&bars, file, done, Some(100));
            let state = bars.state.lock().unwrap();
            assert_eq!((state.total.position(), state.total.length()), (sum, Some(150)), "{file} {done}");
        }
    }
}
