//! What files are by their bytes, without loading any of them. `docs/security.md` says what is refused and why.
//!
//! Only safetensors, JSON and text are ever parsed for loading. Everything else is either harmless and ignored, or a
//! [`Finding`]: something that runs code in whoever opens it with the usual tools, or is not what its name says.

mod content;
mod glance;
mod path;
pub mod pickle;
pub mod zip;

pub use content::{Contents, scan_bytes};
pub use glance::{OPENED, glance};
pub(crate) use path::check_file;
pub use path::{Report, scan_file, scan_path};

use serde::Serialize;

/// What a file is for the loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Weights.
    Safetensors,
    /// Configuration.
    Json,
    /// Text, templates among it.
    Text,
    /// Neither loaded nor dangerous: pictures, other formats.
    Ignored,
}

/// Why a file is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Danger {
    /// A pickle stream: opening it can run anything.
    Pickle,
    /// An array of Python objects, which are pickled.
    ObjectArray,
    /// A Keras model with a Lambda layer, which is code.
    Lambda,
    /// A program for the processor.
    Executable,
    /// Compressed or encrypted so that it cannot be looked into.
    Opaque,
    /// Not what the name says.
    Mismatch,
    /// Too long, too deep or otherwise beyond what a real file has.
    Bounds,
}

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file, with the members that lead into it: `model.pt!archive/data.pkl`.
    pub file: String,
    /// What it is.
    pub danger: Danger,
    /// One line for a person.
    pub detail: String,
    /// What a pickle would import.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub globals: Vec<String>,
}

/// The extensions of formats that hold pickles; such files are never fetched.
const PICKLED: &[&str] = &[
    "bin", "pt", "pth", "pkl", "pickle", "ckpt", "joblib", "dill", "npy", "npz", "h5", "hdf5", "keras",
    "mar", "nemo",
];

/// Whether a file of this name is never fetched, whatever it holds.
pub fn is_never_fetched(name: &str) -> bool {
    PICKLED.contains(&extension(name).as_str())
}

/// The lower-case extension of a file's name; empty without one.
fn extension(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    file.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase()).unwrap_or_default()
}

/// Text from a file, without what would steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}
