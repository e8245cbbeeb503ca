//! Ctrl-C ends the answer, not the program.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use squish_engine::CancelToken;

/// An answer that has not ended this long after it was cancelled hangs: the next interrupt ends the
/// program. Sooner ones are a nervous finger.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Default)]
struct State {
    answering: bool,
    token: Option<CancelToken>,
    cancelled: Option<Instant>,
}

static STATE: Mutex<State> = Mutex::new(State { answering: false, token: None, cancelled: None });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on an interrupt cancels the answer; while there is none (a termination, as the editor
/// takes Ctrl-C for itself) it ends the program.
pub fn install() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        let mut state = state();
        let hangs = state.cancelled.is_some_and(|since| since.elapsed() > PATIENCE);
        if !state.answering || hangs {
            std::process::exit(130);
        }
        state.cancelled.get_or_insert_with(Instant::now);
        if let Some(token) = &state.token {
            token.cancel();
        }
    })
}

/// From here to the end of `Answering` an interrupt is meant for the answer.
pub struct Answering(());

impl Answering {
    pub fn new() -> Self {
        *state() = State { answering: true, ..State::default() };
        Answering(())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        *state() = State::default();
    }
}

/// The token of the answer; an interrupt that came before it counts.
pub fn attach(token: CancelToken) {
    let mut state = state();
    if state.cancelled.is_some() {
        token.cancel();
    }
    state.token = Some(token);
}
