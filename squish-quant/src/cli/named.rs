//! A model on the command line: a directory, or a name that stands for one (docs/names.md).

use super::scan::refused;
use anyhow::Result;
use squish_hub::{locate, locate_original};
use std::path::{Path, PathBuf};

/// The directory of a model.
///
/// # Errors
/// Those of [`locate`]; a checkpoint with a file that is not what its name says ends the command with exit code 2.
pub fn model(name: &Path) -> Result<PathBuf> {
    locate(name).map_err(refused)
}

/// The directory of an original.
///
/// # Errors
/// As [`model`].
pub fn original(name: &Path) -> Result<PathBuf> {
    locate_original(name).map_err(refused)
}
