//! From `--model` to a directory.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use squish_engine::hub::{
    Hub,
    store::{self, Resolution},
};

/// `model` if it is a directory, else the bundled model of that name, else what its name stands for on this machine.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(model);
    if !Path::new(model).is_dir() && bundled.is_dir() {
        return Ok(bundled);
    }
    match store::resolve(model, &store::home(), &Hub::from_env())? {
        Resolution::Ready(dir) => Ok(dir),
        Resolution::Absent(plan) => bail!(plan),
    }
}
