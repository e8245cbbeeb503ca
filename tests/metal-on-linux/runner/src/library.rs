//! Compiling a shader source, once for each version of it.

use crate::signature::{self, Kernel, Source};
use std::{
    ffi::OsStr,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

/// How a library is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Build {
    /// Optimised, for running models.
    Fast,
    /// Every access to memory is looked at, and undefined arithmetic traps.
    Traced,
    /// Under AddressSanitizer, whose runtime the process must have been started with: `../check` has how.
    Sanitized,
}

impl Build {
    /// What the runtime is compiled with.
    fn define(self) -> &'static str {
        match self {
            Self::Fast => "-DFAST",
            Self::Traced => "-DTRACED",
            Self::Sanitized => "-DSANITIZED",
        }
    }
}

/// Why a library could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source has a form that the runner does not know.
    #[error(transparent)]
    Malformed(#[from] signature::Malformed),
    /// clang could not be started.
    #[error(
        "{program} could not be started: {source} (it is a package of Debian's; SHADER_CLANG names another)"
    )]
    Clang {
        /// What was called.
        program: String,
        /// Why it did not start.
        source: std::io::Error,
    },
    /// clang refused the source.
    #[error("the shader does not compile:\n{0}")]
    Refused(String),
    /// A file could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The compiled library could not be loaded.
    #[error(transparent)]
    Load(#[from] libloading::Error),
}

/// Compiled shaders.
#[derive(Debug)]
pub struct Library {
    pub(crate) build: Build,
    pub(crate) object: libloading::Library,
    kernels: Vec<Kernel>,
}

/// What the runtime consists of; a change to any of it makes new libraries.
const RUNTIME: [&str; 5] = [
    include_str!("../runtime/fibers.h"),
    include_str!("../runtime/fibers.cpp"),
    include_str!("../runtime/metal.h"),
    include_str!("../runtime/trace.h"),
    include_str!("../runtime/trace.cpp"),
];

const FLAGS: [&str; 8] = [
    "-fPIC",
    "-march=x86-64-v3",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-pthread",
    "-Wall",
    "-Wno-unknown-pragmas",
];

/// Without wider vectors than the hooks know, so that each access is announced as the source has it.
const TRACED_FLAGS: [&str; 9] = [
    "-O1",
    // A load that is not aligned is reported, and then done.
    "-fmax-type-align=1",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-mno-avx",
    "-msse4.1",
    "-fsanitize-coverage=func,trace-loads,trace-stores",
    "-fsanitize=bounds,shift,integer-divide-by-zero,null,return",
    "-fsanitize-trap=all",
];

/// Faults are reported, not the end of the process.
const SANITIZED_FLAGS: [&str; 3] = ["-O1", "-fsanitize=address", "-fsanitize-recover=address"];

impl Library {
    /// Compiles a source, or takes what was compiled of the same source before.
    ///
    /// # Errors
    /// [`Error`], with clang's message where the source is at fault.
    pub fn compile(source: &str, build: Build) -> Result<Self, Error> {
        let key = (source, build, RUNTIME, FLAGS, TRACED_FLAGS, SANITIZED_FLAGS, clang());
        let dir = cache().join(format!("{:016x}", hash(&key)));
        let object = dir.join("library.so");
        let preprocessed = preprocessed(source, &dir)?;
        let kernels = signature::kernels(&preprocessed)?;
        if !object.exists() {
            let cpp = dir.join("shaders.cpp");
            write(&cpp, &translation(&preprocessed, &kernels))?;
            // A name of its own until it is complete: other processes may be at it too.
            let part = dir.join(format!("{}.so", std::process::id()));
            link(build, &cpp, &dir, &part)?;
            std::fs::rename(&part, &object).map_err(|source| Error::Io { path: object.clone(), source })?;
        }
        // SAFETY: the object was made by `link` of this runtime, whose initialisers only construct empty vectors.
        let object = unsafe { libloading::Library::new(&object) }?;
        Ok(Self { build, object, kernels })
    }

    /// The kernels that it has.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// How it was compiled.
    pub fn build(&self) -> Build {
        self.build
    }
}

/// The compiler.
pub fn clang() -> String {
    std::env::var("SHADER_CLANG").unwrap_or_else(|_| "clang++-19".into())
}

pub(crate) fn runtime() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime")
}

pub(crate) fn cache() -> PathBuf {
    std::env::var_os("SHADER_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/shaders"), PathBuf::from)
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(|source| Error::Io { path: path.into(), source })
}

/// The source with includes and macros replaced; what it declares of itself is left as it is.
pub(crate) fn preprocessed(source: &str, dir: &Path) -> Result<String, Error> {
    std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.into(), source })?;
    // Names of its own, as another process may be at the same source.
    let name =
        |kind: &str| dir.join(format!("{}-{:?}.{kind}", std::process::id(), std::thread::current().id()));
    let (metal, to) = (name("metal"), name("preprocessed"));
    write(&metal, source)?;
    let include = runtime().join("include");
    let mut arguments: Vec<&OsStr> =
        ["-E", "-x", "c++", "-nostdinc", "-D__METAL_VERSION__=310", "-I"].map(OsStr::new).into();
    arguments.extend([include.as_os_str(), metal.as_os_str(), "-o".as_ref(), to.as_os_str()]);
    run(arguments)?;
    let text = std::fs::read_to_string(&to).map_err(|source| Error::Io { path: to.clone(), source });
    for file in [metal, to] {
        let _ = std::fs::remove_file(file);
    }
    text
}

/// A number for what something is.
pub(crate) fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// The source as C++, with a table of its kernels behind.
fn translation(preprocessed: &str, kernels: &[Kernel]) -> String {
    let mut cpp = String::from("#include \"metal.h\"\n");
    cpp.push_str(&signature::without_attributes(preprocessed));
    for (i, kernel) in kernels.iter().enumerate() {
        let arguments: Vec<String> = kernel.parameters.iter().map(|p| argument(p.source)).collect();
        cpp.push_str(&format!(
            "\nstatic const runner::Argument arguments_{i}[] = {{{}}};",
            arguments.join(", ")
        ));
    }
    cpp.push_str("\nextern const runner::Entry runner_entries[] = {");
    for (i, Kernel { name, function, .. }) in kernels.iter().enumerate() {
        cpp.push_str(&format!("\n  {{\"{name}\", &runner::Call<&{function}>::run, arguments_{i}}},"));
    }
    cpp.push_str(&format!("\n}};\nextern const int runner_entry_count = {};\n", kernels.len()));
    cpp
}

fn argument(source: Source) -> String {
    /// Where the built-in ones begin in `runtime/fibers.h`.
    const FIRST: usize = 2;
    let (kind, index) = match source {
        Source::Buffer(i) => (0, i),
        Source::Shared(i) => (1, i),
        Source::Builtin(i) => (FIRST + i, 0),
    };
    format!("{{runner::Source({kind}), {index}}}")
}

fn link(build: Build, cpp: &Path, dir: &Path, to: &Path) -> Result<(), Error> {
    let shader_flags: &[&str] = match build {
        Build::Fast => &["-O2"],
        Build::Traced => &TRACED_FLAGS,
        Build::Sanitized => &SANITIZED_FLAGS,
    };
    let shaders = dir.join(format!("{}.o", std::process::id()));
    let include = runtime();
    let mut compile: Vec<&OsStr> = FLAGS.iter().map(OsStr::new).collect();
    compile.extend(shader_flags.iter().map(OsStr::new));
    compile.extend(["-std=c++17", "-nostdinc", "-g1", "-c", "-I"].map(OsStr::new));
    compile.extend([include.as_os_str(), cpp.as_os_str(), "-o".as_ref(), shaders.as_os_str()]);
    run(compile)?;
    let (fibers, trace) = (include.join("fibers.cpp"), include.join("trace.cpp"));
    let mut all: Vec<&OsStr> = FLAGS.iter().map(OsStr::new).collect();
    all.extend(["-O2", "-std=c++17", build.define(), "-shared"].map(OsStr::new));
    all.extend([fibers.as_os_str(), shaders.as_os_str(), "-o".as_ref(), to.as_os_str()]);
    if build == Build::Traced {
        all.push(trace.as_os_str());
    }
    run(all)
}

pub(crate) fn run<'a>(arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<(), Error> {
    let program = clang();
    // What this process may have been started with is not meant for the compiler.
    let output = Command::new(&program).args(arguments).env_remove("LD_PRELOAD").output();
    let output = output.map_err(|source| Error::Clang { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Refused(String::from_utf8_lossy(&output.stderr).into_owned()))
}
