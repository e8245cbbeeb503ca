//! A check of address spaces, which the runner erases and Apple's compiler does not.
//!
//! OpenCL's four address spaces are Metal's, so the source is parsed as C++ for OpenCL, with `runtime/address_spaces.clh` in
//! place of Metal's library, and without the generic address space: a pointer that names none points to a thread's own
//! memory, and nothing else fits.

use crate::{Error, library, signature};
use std::ffi::OsStr;

/// Whether every pointer of a source stays in its address space.
///
/// # Errors
/// [`Error::Refused`] with clang's message where one does not.
pub fn address_spaces(source: &str) -> Result<(), Error> {
    let dir = library::cache().join(format!("lint-{}-{:016x}", std::process::id(), library::hash(&source)));
    let preprocessed = library::preprocessed(source, &dir)?;
    let file = dir.join("shaders.cl");
    library::write(&file, &signature::without_attributes(&preprocessed))?;
    let prelude = library::runtime().join("address_spaces.clh");
    let without = concat!(
        "-cl-ext=-__opencl_c_generic_address_space,-__opencl_c_pipes,",
        "-__opencl_c_program_scope_global_variables,-__opencl_c_device_enqueue"
    );
    let mut arguments: Vec<&OsStr> = ["-x", "clcpp", "-cl-std=clc++2021", "--target=spir64", "-fsyntax-only"]
        .iter()
        .map(OsStr::new)
        .collect();
    arguments.extend(["-nostdinc", "-cl-no-stdinc", "-Xclang", without, "-include"].map(OsStr::new));
    arguments.extend([prelude.as_os_str(), file.as_os_str()]);
    let verdict = library::run(arguments);
    let _ = std::fs::remove_dir_all(&dir);
    verdict
}
