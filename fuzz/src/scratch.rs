//! Where targets put what has to be a file.

use std::{path::Path, sync::LazyLock};
use tempfile::TempDir;

/// A directory, in memory where the system has such a place.
pub static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    dir.expect("a temporary directory")
});
