//! Running a kernel over a grid of threads.

use crate::{Build, Library};
use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// In which order threads take turns, and threadgroups follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// First to last.
    Forward,
    /// Last to first.
    Reverse,
    /// As a generator of random numbers has it, from this seed.
    Random(u64),
}

/// What is to be run.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The kernel's name.
    pub kernel: &'a str,
    /// Threadgroups of the grid.
    pub groups: [usize; 3],
    /// Threads of a threadgroup: a multiple of 32, at most 1024 in all.
    pub threads: [usize; 3],
    /// Bytes of each `[[threadgroup(i)]]` argument.
    pub shared: &'a [usize],
    /// Address and bytes of each `[[buffer(i)]]` argument.
    pub buffers: &'a [(*mut u8, usize)],
    /// The order of threads.
    pub order: Order,
    /// Threads of this machine that work on it; one where the library looks at accesses.
    pub workers: usize,
}

/// What a launch did to one buffer, in bytes. All zero unless the library is [`Build::Traced`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Loaded by all lanes together.
    pub loaded: u64,
    /// Each byte once a simdgroup, as if lanes and repetitions were served from a cache.
    pub fetched: u64,
    /// Each byte once.
    pub distinct: u64,
    /// Stored by all lanes together.
    pub stored: u64,
}

/// What came of a launch.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Of each buffer.
    pub traffic: Vec<Traffic>,
    /// Simd operations, of all simdgroups.
    pub simd_operations: u64,
    /// Barriers, of all threadgroups.
    pub barriers: u64,
}

/// A launch that has no defined meaning, or that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{kernel}: {what}")]
pub struct Fault {
    /// The kernel.
    pub kernel: String,
    /// What was wrong.
    pub what: String,
}

/// `RunnerLaunch` in `runtime/fibers.cpp`.
#[repr(C)]
struct Raw {
    kernel: *const c_char,
    groups: [u32; 3],
    threads: [u32; 3],
    buffers: *const *mut u8,
    buffer_bytes: *const usize,
    buffer_count: c_int,
    shared_bytes: *const usize,
    shared_count: c_int,
    order: c_int,
    seed: u64,
    workers: c_int,
    traffic: *mut Traffic,
    simd_operations: u64,
    barriers: u64,
    fault: [c_char; 256],
}

impl Library {
    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// [`Fault`] for a kernel that there is not, arguments that are missing, lanes that part ways at a simd operation or a
    /// barrier, and, where the library looks at accesses, those out of bounds, and of a traced one those unaligned or that race.
    ///
    /// # Safety
    /// Each buffer must be that many bytes of memory which nothing else writes meanwhile, nor reads where the kernel writes
    /// it. A kernel of a fast library must stay within them.
    pub unsafe fn run(&self, launch: &Launch) -> Result<Report, Fault> {
        let refuse = |what: &str| Err(Fault { kernel: launch.kernel.into(), what: what.into() });
        let Some(kernel) = self.kernels().iter().find(|k| k.name == launch.kernel) else {
            return refuse("there is no such kernel");
        };
        for parameter in &kernel.parameters {
            let (index, bound) = match parameter.source {
                crate::Source::Buffer(i) => (i, launch.buffers.len()),
                crate::Source::Shared(i) => (i, launch.shared.len()),
                crate::Source::Builtin(_) => continue,
            };
            if index >= bound {
                return refuse(&format!("`{}` is not bound", parameter.name));
            }
        }
        let Ok(name) = CString::new(launch.kernel) else { return refuse("a name with a zero in it") };
        let (pointers, bytes): (Vec<*mut u8>, Vec<usize>) = launch.buffers.iter().copied().unzip();
        let mut traffic = vec![Traffic::default(); pointers.len()];
        let (order, seed) = match launch.order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let mut raw = Raw {
            kernel: name.as_ptr(),
            groups: launch.groups.map(|n| n as u32),
            threads: launch.threads.map(|n| n as u32),
            buffers: pointers.as_ptr(),
            buffer_bytes: bytes.as_ptr(),
            buffer_count: pointers.len() as c_int,
            shared_bytes: launch.shared.as_ptr(),
            shared_count: launch.shared.len() as c_int,
            order,
            seed,
            workers: if self.build() == Build::Fast { launch.workers.max(1) as c_int } else { 1 },
            traffic: traffic.as_mut_ptr(),
            simd_operations: 0,
            barriers: 0,
            fault: [0; 256],
        };
        // SAFETY: the runtime's function of this name takes such a launch, whose pointers live until it returns; the caller
        // vouches for the buffers.
        let code = unsafe {
            match self.object.get::<unsafe extern "C" fn(*mut Raw) -> c_int>(b"runner_run\0") {
                Ok(run) => run(&mut raw),
                Err(e) => return refuse(&e.to_string()),
            }
        };
        // SAFETY: the runtime ends its message with a zero.
        let fault = unsafe { CStr::from_ptr(raw.fault.as_ptr()) };
        match code {
            0 if fault.is_empty() => {
                Ok(Report { traffic, simd_operations: raw.simd_operations, barriers: raw.barriers })
            }
            0 => refuse(&fault.to_string_lossy()),
            1 => refuse("there is no such kernel"),
            _ => refuse(&format!("{:?} threads a threadgroup", launch.threads)),
        }
    }
}

/// Memory for the buffers of a library that looks at accesses, with gaps between them, so that an access out of bounds is seen. Made for one
/// launch after another in one thread.
#[derive(Debug)]
pub struct Memory<'a> {
    library: &'a Library,
}

impl<'a> Memory<'a> {
    /// The library's memory, empty.
    ///
    /// # Safety
    /// There must be no other in use, of the same library.
    pub unsafe fn new(library: &'a Library) -> Self {
        assert_ne!(library.build(), Build::Fast, "fast libraries have no memory of their own");
        // SAFETY: the function takes nothing and forgets earlier buffers, which the caller says are not in use.
        unsafe {
            let reset = library.object.get::<unsafe extern "C" fn()>(b"runner_reset\0");
            reset.expect("the runtime has it")();
        }
        Self { library }
    }

    /// A buffer with these contents.
    pub fn hold(&self, contents: &[u8]) -> (*mut u8, usize) {
        // SAFETY: the function returns so many bytes of memory of its own, which is never given back.
        let memory = unsafe {
            let allocate =
                self.library.object.get::<unsafe extern "C" fn(usize) -> *mut c_void>(b"runner_allocate\0");
            let memory = allocate.expect("the runtime has it")(contents.len()).cast::<u8>();
            std::ptr::copy_nonoverlapping(contents.as_ptr(), memory, contents.len());
            memory
        };
        (memory, contents.len())
    }

    /// What a buffer holds now.
    pub fn read(&self, buffer: (*mut u8, usize)) -> Vec<u8> {
        // SAFETY: buffers come from `hold`, and are read between launches.
        unsafe { std::slice::from_raw_parts(buffer.0, buffer.1) }.to_vec()
    }
}
