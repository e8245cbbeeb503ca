//! From `--model` to a directory.

use std::path::{Path, PathBuf};

use squish_engine::hub::{Result, locate};

/// The bundled model of this name; else what the name stands for on this machine.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(model);
    if !Path::new(model).is_dir() && bundled.is_dir() { Ok(bundled) } else { locate(model) }
}
