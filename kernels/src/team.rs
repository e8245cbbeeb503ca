//! Threads for the parallel regions of decoding.
//!
//! A step of decoding has some hundred regions of 5 to 100 us, with a few us between two. A thread that sleeps in between wakes up
//! when a region is half over; so these threads look for the next region for [`PATIENCE`] before they sleep. Each takes a run of neighbouring
//! indices, since reading on from where one has read is what memory is fast at, and when that is done the rest of
//! others' runs: a thread that the system takes away holds nobody up but for the few indices it has taken.
//!
//! Larger work, as a prefill has it, is rayon's.

use crate::disjoint::Disjoint;
use rayon::prelude::*;
use std::{
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// How long a thread without work looks for some before it sleeps: longer than what lies between two steps of decoding.
const PATIENCE: Duration = Duration::from_micros(300);

/// Indices that a thread takes at a time at most, and a quarter of what is left of a run: to take some waits until all that was
/// read before is there, in the middle of what could be read ahead. Towards the end it is one at a time, so that all threads
/// are done at once.
const TOGETHER: usize = 8;

/// Calls `work` once for each index below `count`, on as many threads as rayon would have here.
///
/// While another region runs, rayon's threads do it.
///
/// # Panics
/// When `work` panics, after all other threads are done. Indices that were taken together with the failing one may be left out.
pub fn for_each(count: usize, work: impl Fn(usize) + Sync) {
    static TEAM: OnceLock<Team> = OnceLock::new();
    let threads = rayon::current_num_threads();
    if count <= 1 || threads == 1 {
        return (0..count).for_each(work);
    }
    let team = TEAM.get_or_init(|| Team::new(threads));
    if team.helpers.len() + 1 != threads || !team.run(count, &work) {
        (0..count).into_par_iter().for_each(&work);
    }
}

/// Calls `work(i, chunk)` for chunk `i` of `len` values each.
///
/// # Panics
/// As [`for_each`].
pub fn for_each_chunk<T: Send>(values: &mut [T], len: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let (all, count) = (values.len(), values.len().div_ceil(len));
    let values = Disjoint::new(values);
    for_each(count, |i| {
        // SAFETY: chunks do not overlap, and each index comes once.
        work(i, unsafe { values.part(i * len, len.min(all - i * len)) });
    });
}

/// The region that is under way, if one is.
struct Region {
    /// Its number in the upper half, [`OPEN`] while it may be joined, and below that how many helpers are in it.
    state: AtomicU64,
    /// What is to be done.
    work: UnsafeCell<Option<Work>>,
    /// The next index of each thread's run.
    next: Vec<Cursor>,
    panicked: AtomicBool,
}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const NUMBER: u64 = 1 << 32;

/// On a cache line of its own.
#[repr(align(128))]
struct Cursor(AtomicUsize);

#[derive(Clone, Copy)]
struct Work {
    count: usize,
    call: *const (dyn Fn(usize) + Sync + 'static),
}

// SAFETY: `work` is written while no helper is in the region, and read by those in it.
unsafe impl Sync for Region {}
// SAFETY: the call is `Sync`, and outlives the region.
unsafe impl Send for Region {}

struct Team {
    region: &'static Region,
    helpers: Vec<Helper>,
    in_use: AtomicBool,
}

struct Helper {
    thread: Thread,
    asleep: &'static AtomicBool,
}

impl Team {
    /// A team of so many threads, one of which is whoever calls [`Team::run`]. Where the system gives fewer, it is smaller.
    fn new(threads: usize) -> Self {
        // Helpers live as long as the program.
        let region: &'static Region = Box::leak(Box::new(Region {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            next: (0..threads).map(|_| Cursor(AtomicUsize::new(0))).collect(),
            panicked: AtomicBool::new(false),
        }));
        let helper = |index| {
            let asleep: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
            let name = format!("squish-{index}");
            let spawned = thread::Builder::new().name(name).spawn(move || region.help(index, asleep)).ok()?;
            Some(Helper { thread: spawned.thread().clone(), asleep })
        };
        Self { region, helpers: (1..threads).map_while(helper).collect(), in_use: AtomicBool::new(false) }
    }

    /// Runs a region; false, with nothing done, while another one runs.
    fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) -> bool {
        if self.in_use.swap(true, Ordering::Acquire) {
            return false;
        }
        let region = self.region;
        let call: *const (dyn Fn(usize) + Sync + '_) = work;
        // SAFETY: the type differs in the lifetime only. Nobody calls it after `close`, and until then `work` is borrowed.
        let call = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                call,
            )
        };
        // SAFETY: no region is open and nobody is in one, so that nobody else looks at it.
        unsafe { *region.work.get() = Some(Work { count, call }) };
        for (thread, next) in region.next.iter().enumerate() {
            next.0.store(region.start(thread, count), Ordering::Relaxed);
        }
        let number = region.state.load(Ordering::Relaxed) / NUMBER;
        // In one order with `asleep`: a helper either sees the region before it sleeps, or is seen asleep here.
        region.state.store((number + 1) % NUMBER * NUMBER + OPEN, Ordering::SeqCst);
        for helper in self.helpers.iter().filter(|helper| helper.asleep.load(Ordering::SeqCst)) {
            helper.thread.unpark();
        }
        let mine = catch_unwind(AssertUnwindSafe(|| region.take_turns(0, count, work)));
        region.close();
        let panicked = region.panicked.swap(false, Ordering::Relaxed);
        self.in_use.store(false, Ordering::Release);
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        assert!(!panicked, "a thread of a parallel region panicked");
        true
    }
}

impl Region {
    /// The first index of a thread's run.
    fn start(&self, thread: usize, count: usize) -> usize {
        count * thread / self.next.len()
    }

    /// Works off the run of this thread, then what is left of others'.
    fn take_turns(&self, thread: usize, count: usize, work: &(dyn Fn(usize) + Sync)) {
        let threads = self.next.len();
        for of in (thread..threads).chain(0..thread) {
            let (end, next) = (self.start(of + 1, count), &self.next[of].0);
            loop {
                let left = end.saturating_sub(next.load(Ordering::Relaxed));
                let together = (left / 4).clamp(1, TOGETHER);
                let first = next.fetch_add(together, Ordering::Relaxed);
                if first >= end {
                    break;
                }
                (first..end.min(first + together)).for_each(work);
            }
        }
    }

    /// Lets no helper in any more, and waits for those inside.
    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::Relaxed);
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            std::hint::spin_loop();
        }
    }

    /// What a helper does all its life.
    fn help(&self, thread: usize, asleep: &AtomicBool) {
        let mut last = 0;
        loop {
            let number = self.wait(last, asleep);
            last = number;
            if !self.join(number) {
                continue;
            }
            // SAFETY: in the region, so that it was written before, and is not written until this helper leaves.
            let work = unsafe { *self.work.get() }.expect("an open region has work");
            // SAFETY: whoever opened the region keeps the call alive until all helpers have left.
            let call = unsafe { &*work.call };
            if catch_unwind(AssertUnwindSafe(|| self.take_turns(thread, work.count, call))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open region with another number.
    fn wait(&self, last: u64, asleep: &AtomicBool) -> u64 {
        let found = |order| {
            let state = self.state.load(order);
            (state & OPEN != 0 && state / NUMBER != last).then_some(state / NUMBER)
        };
        loop {
            let start = Instant::now();
            loop {
                for _ in 0..64 {
                    if let Some(number) = found(Ordering::Relaxed) {
                        return number;
                    }
                    std::hint::spin_loop();
                }
                if start.elapsed() > PATIENCE {
                    break;
                }
            }
            asleep.store(true, Ordering::SeqCst);
            if found(Ordering::SeqCst).is_none() {
                thread::park();
            }
            asleep.store(false, Ordering::Relaxed);
        }
    }

    /// Enters the region of this number, if it is still open.
    fn join(&self, number: u64) -> bool {
        let enter = |state: u64| (state & OPEN != 0 && state / NUMBER == number).then_some(state + 1);
        self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn check(count: usize) {
        let calls: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
        for_each(count, |i| {
            calls[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1), "{count}");
    }

    #[test]
    fn every_index_is_worked_on_once() {
        for round in 0..2000 {
            check(round % 67);
        }
        // Long enough for helpers to fall asleep.
        thread::sleep(3 * PATIENCE);
        check(1000);
    }

    #[test]
    fn regions_of_several_threads_and_within_each_other() {
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..300).for_each(check));
            }
        });
        for_each(8, |i| check(i + 2));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_team_usable() {
        for bad in [0, 7, 15] {
            let result = catch_unwind(|| for_each(16, |i| assert!(i != bad)));
            assert!(result.is_err());
            check(100);
        }
    }
}
