//! Ollama's local store, read only.
//!
//! ```text
//! manifests/registry.ollama.ai/library/NAME/TAG   layers: media type, digest, name
//! blobs/sha256-DIGEST
//! ```
//!
//! Most models of that store are one GGUF file, which has been rounded once already and is not read. Some are stored as a
//! checkpoint's files, a blob for each tensor: these are imported.

mod import;

pub use import::import;

use crate::{Error, Result};
use serde::Deserialize;
use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// Bytes of a manifest; one with a layer for each of a thousand tensors has some hundred thousand.
const MOST_MANIFEST: u64 = 16 << 20;
/// Layers of a manifest.
const MOST_LAYERS: usize = 50_000;
/// The media type of a GGUF file.
const GGUF: &str = "application/vnd.ollama.image.model";
/// The media type of a tensor.
const TENSOR: &str = "application/vnd.ollama.image.tensor";
/// The media type of a JSON file.
const JSON: &str = "application/vnd.ollama.image.json";

/// The store: `$OLLAMA_MODELS`, or `~/.ollama/models`.
pub fn store() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("OLLAMA_MODELS").or_else(|| Some(set("HOME")?.join(".ollama/models")))
}

/// The models of a store, `NAME:TAG`, sorted.
pub fn list(store: &Path) -> Vec<String> {
    let library = store.join("manifests/registry.ollama.ai/library");
    let names = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let mut found: Vec<String> = names(&library)
        .into_iter()
        .flat_map(|name| names(&library.join(&name)).into_iter().map(move |tag| format!("{name}:{tag}")))
        .collect();
    found.sort();
    found
}

/// Why a model of a store cannot be imported, or `None` where it can.
pub fn refusal(store: &Path, name: &str) -> Option<String> {
    import::Parts::read(store, name).err().map(|e| match e {
        Error::Ollama { reason, .. } => reason,
        other => other.to_string(),
    })
}

#[derive(Debug, Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

/// A file of a model.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    #[serde(default)]
    name: String,
}

impl Layer {
    /// Its blob; `None` where the digest is none.
    fn blob(&self, store: &Path) -> Option<PathBuf> {
        let digest = self.digest.strip_prefix("sha256:")?;
        let hash = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        hash.then(|| store.join("blobs").join(format!("sha256-{digest}")))
    }
}

/// An error about a model of the store.
fn refuse(name: &str, reason: impl Into<String>) -> Error {
    Error::Ollama { name: crate::scan::printable(name), reason: reason.into() }
}

/// Model and tag of a name, `latest` where none is given.
fn parts(name: &str) -> Result<(&str, &str)> {
    let (model, tag) = name.split_once(':').unwrap_or((name, "latest"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let fine = |part: &str| crate::name::is_relative_file(part) && part.chars().all(plain);
    match fine(model) && fine(tag) && !tag.contains('/') {
        true => Ok((model, tag)),
        false => Err(refuse(name, "not a name of that store")),
    }
}

/// The layers of a model.
fn layers(store: &Path, name: &str) -> Result<Vec<Layer>> {
    let (model, tag) = parts(name)?;
    let path = store.join("manifests/registry.ollama.ai/library").join(model).join(tag);
    let file = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MOST_MANIFEST);
    let Some(file) = file.then(|| std::fs::File::open(&path).ok()).flatten() else {
        return Err(refuse(name, "no such model in its store"));
    };
    let manifest: Manifest = serde_json::from_reader(std::io::BufReader::new(file.take(MOST_MANIFEST)))
        .map_err(|e| refuse(name, format!("its manifest is not what it should be: {e}")))?;
    if manifest.layers.len() > MOST_LAYERS {
        let count = manifest.layers.len();
        return Err(refuse(name, format!("{count} layers, at most {MOST_LAYERS} are read")));
    }
    Ok(manifest.layers)
}
