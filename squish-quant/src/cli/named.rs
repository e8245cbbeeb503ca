//! A model on the command line: a directory, or a name that stands for one (docs/names.md).

use anyhow::Result;
use squish_hub::{Error, locate, locate_original};
use std::path::{Path, PathBuf};

/// The directory of a model.
///
/// # Errors
/// Those of [`locate`]; a checkpoint with a file that is not what its name says ends the command with exit code 2.
pub fn model(name: &Path) -> Result<PathBuf> {
    checked(locate(name))
}

/// The directory of an original.
///
/// # Errors
/// As [`model`].
pub fn original(name: &Path) -> Result<PathBuf> {
    checked(locate_original(name))
}

fn checked(found: squish_hub::Result<PathBuf>) -> Result<PathBuf> {
    match found {
        Err(e @ Error::Unsafe { .. }) => Err(super::scan::Refused(e.to_string()).into()),
        found => Ok(found?),
    }
}
