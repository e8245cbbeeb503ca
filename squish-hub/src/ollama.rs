//! Ollama's local store, read only.

use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

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

/// Why a model of the store cannot be run from here. Its files are GGUF, or single tensors; this engine reads safetensors
/// checkpoints, and squishing what has been rounded already loses twice.
pub fn explain(store: &Path, name: &str) -> Error {
    let refuse = |reason: &str| Error::Ollama { name: crate::scan::printable(name), reason: reason.into() };
    let (model, tag) = name.split_once(':').unwrap_or((name, "latest"));
    if !crate::name::is_relative_file(model) || !crate::name::is_relative_file(tag) {
        return refuse("not a name of that store");
    }
    let path = store.join("manifests/registry.ollama.ai/library").join(model).join(tag);
    match kinds(&path) {
        Err(_) => refuse("no such model in its store"),
        Ok(kinds) if kinds.iter().any(|kind| kind == "application/vnd.ollama.image.tensor") => refuse(
            "it is stored as single tensors without a checkpoint's configuration, which squish does not read",
        ),
        Ok(_) => refuse("it is a GGUF file, which squish does not read; the catalog has the original models"),
    }
}

/// The media types of a manifest's layers.
fn kinds(path: &Path) -> Result<Vec<String>> {
    let io = |source| Error::Io { path: path.into(), source };
    let manifest: Value = serde_json::from_slice(&std::fs::read(path).map_err(io)?)
        .map_err(|e| io(std::io::Error::other(format!("not JSON: {e}"))))?;
    let layers = manifest["layers"].as_array().into_iter().flatten();
    Ok(layers.filter_map(|layer| layer["mediaType"].as_str()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store() {
        let store = tempfile::tempdir().unwrap();
        let library = store.path().join("manifests/registry.ollama.ai/library/tiny");
        std::fs::create_dir_all(&library).unwrap();
        let manifest =
            r#"{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:0"}]}"#;
        std::fs::write(library.join("latest"), manifest).unwrap();
        assert_eq!(list(store.path()), ["tiny:latest"]);
        assert!(explain(store.path(), "tiny").to_string().contains("GGUF"));
        assert!(explain(store.path(), "other:1b").to_string().contains("no such model"));
        assert!(explain(store.path(), "../../x").to_string().contains("not a name"));
    }
}
