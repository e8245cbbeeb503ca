//! Running the launches of `squish_kernels::metal` with the shader runner, and measuring what comes out.

mod heads;
mod pages;
mod random;

pub use heads::{RawHeads, ready_heads};
pub use pages::{Asked, Pages, queries, rotate};
pub use random::{Matrix, Random, snr};

use shader_runner::{Build, Kernel, Launch as Run, Library, Memory, Order, Report, Source};
use squish_kernels::metal::{self, Argument, Launch};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Every order that a launch is tested in.
pub const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Random(7)];

/// The shaders, traced, or under AddressSanitizer where `SHADER_BUILD` is `sanitized`. Only one test at a time uses the library's memory.
pub struct Shaders {
    library: &'static Library,
    _alone: MutexGuard<'static, ()>,
}

/// What came of an op.
#[derive(Debug)]
pub struct Outcome {
    /// The output's bytes.
    pub output: Vec<u8>,
    /// The inputs' bytes afterwards.
    pub inputs: Vec<Vec<u8>>,
    /// Of each launch.
    pub reports: Vec<Report>,
}

impl Outcome {
    /// The output as f32.
    pub fn floats(&self) -> Vec<f32> {
        self.output.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

/// Whether shaders are compiled to be traced: whether races, alignment and traffic are seen.
pub fn traced() -> bool {
    build() == Build::Traced
}

fn build() -> Build {
    match std::env::var("SHADER_BUILD").as_deref() {
        Ok("sanitized") => Build::Sanitized,
        Ok(other) => panic!("SHADER_BUILD is {other}, expected `sanitized` or nothing"),
        Err(_) => Build::Traced,
    }
}

/// f32 values as bytes.
pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

impl Shaders {
    /// The project's shaders.
    pub fn new() -> Self {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let library = LIBRARY.get_or_init(|| Library::compile(metal::SOURCE, build()).expect("shaders"));
        Self { library, _alone: alone }
    }

    /// Other shaders, such as the project's with a fault.
    ///
    /// # Errors
    /// When they do not compile.
    pub fn of(source: &str) -> Result<Self, shader_runner::Error> {
        static ALONE: Mutex<()> = Mutex::new(());
        let library = Box::leak(Box::new(Library::compile(source, build())?));
        Ok(Self { library, _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner) })
    }

    /// Their kernels.
    pub fn kernels(&self) -> &[Kernel] {
        self.library.kernels()
    }

    /// Runs launches one after the other over `parts`, `inputs` and an output of `output` bytes, which begins as no numbers.
    ///
    /// # Panics
    /// When a launch is at fault, or its arguments are not those of the shader.
    pub fn run(
        &self,
        launches: &[Launch],
        parts: &[&[u8]],
        inputs: &[&[u8]],
        output: usize,
        order: Order,
    ) -> Outcome {
        self.try_run(launches, parts, inputs, output, order).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// The same, with what is wrong as an error.
    pub fn try_run(
        &self,
        launches: &[Launch],
        parts: &[&[u8]],
        inputs: &[&[u8]],
        output: usize,
        order: Order,
    ) -> Result<Outcome, String> {
        // SAFETY: `self` holds the lock under which alone the library's memory is used.
        let memory = unsafe { Memory::new(self.library) };
        let parts: Vec<_> = parts.iter().map(|part| memory.hold(part)).collect();
        let inputs: Vec<_> = inputs.iter().map(|input| memory.hold(input)).collect();
        let output = memory.hold(&vec![0xff; output]);
        let mut reports = Vec::new();
        for launch in launches {
            self.check_arguments(launch)?;
            let buffers: Vec<_> = launch
                .arguments
                .iter()
                .map(|(_, argument)| match argument {
                    Argument::Part(i) => parts[*i],
                    Argument::Input(i) | Argument::Written(i) => inputs[*i],
                    Argument::Output => output,
                    Argument::Bytes(bytes) => memory.hold(bytes),
                })
                .collect();
            let run = Run {
                kernel: &launch.kernel,
                groups: launch.groups,
                threads: [launch.threads, 1, 1],
                shared: &launch.shared,
                buffers: &buffers,
                order,
                workers: 1,
            };
            // SAFETY: the buffers are the library's own memory, in use by this launch alone.
            reports.push(unsafe { self.library.run(&run) }.map_err(|fault| fault.to_string())?);
        }
        let inputs = inputs.into_iter().map(|input| memory.read(input)).collect();
        Ok(Outcome { output: memory.read(output), inputs, reports })
    }

    /// Whether a launch names the arguments that its kernel declares, at the same indices, writes only where it may, and
    /// keeps to Metal's limits.
    pub fn check_arguments(&self, launch: &Launch) -> Result<(), String> {
        let name = &launch.kernel;
        let kernel = self.kernels().iter().find(|k| &k.name == name).ok_or(format!("no kernel {name}"))?;
        let (mut buffers, mut shared) = (0, 0);
        for parameter in &kernel.parameters {
            match parameter.source {
                Source::Buffer(i) => {
                    buffers += 1;
                    let (bound, argument) =
                        launch.arguments.get(i).ok_or(format!("{name}: no buffer {i}"))?;
                    if *bound != parameter.name {
                        return Err(format!(
                            "{name}: buffer {i} is `{}`, bound is `{bound}`",
                            parameter.name
                        ));
                    }
                    if parameter.writable != (*argument == Argument::Output) && *bound == "y" {
                        return Err(format!("{name}: `{bound}` is not bound to the output"));
                    }
                    if *bound != "y" && parameter.writable != matches!(argument, Argument::Written(_)) {
                        return Err(format!("{name}: `{bound}` is writable, or bound as if it were"));
                    }
                }
                Source::Shared(_) => shared += 1,
                Source::Builtin(_) => {}
            }
        }
        let bytes: usize = launch.shared.iter().sum();
        let within = launch.threads <= 1024
            && launch.threads.is_multiple_of(32)
            && bytes <= 32 << 10
            && launch.shared.iter().all(|bytes| bytes.is_multiple_of(16))
            && launch.arguments.len() <= 31;
        match (buffers == launch.arguments.len(), shared == launch.shared.len(), within) {
            (true, true, true) => Ok(()),
            _ => Err(format!("{name}: {buffers} buffers, {shared} pieces of memory: {launch:?}")),
        }
    }
}

impl Default for Shaders {
    fn default() -> Self {
        Self::new()
    }
}
