//! From `--model` to a directory.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// `model` if it is a directory, else the directory of that name among the bundled models or in
/// `$SQUISH_HOME/models`.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let home = std::env::var_os("SQUISH_HOME").filter(|home| !home.is_empty());
    let mut candidates = vec![PathBuf::from(model), bundled.join(model)];
    candidates.extend(home.iter().map(|home| Path::new(home).join("models").join(model)));

    if let Some(found) = candidates.iter().find(|dir| dir.is_dir()) {
        return Ok(found.clone());
    }
    let tried: Vec<_> = candidates.iter().map(|dir| dir.display().to_string()).collect();
    let hint = if home.is_none() { " (SQUISH_HOME is not set)" } else { "" };
    bail!("no model {model:?}: not a directory: {}{hint}", tried.join(", "))
}
