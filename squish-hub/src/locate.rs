//! From what a person types for a model to a directory whose files may be opened: the one way for every command.

use crate::{
    Catalog, Error, Hub, Result,
    catalog::Variant,
    scan::glance,
    store::{self, Resolution, resolve},
};
use std::path::{Path, PathBuf};

/// The directory of a model on this machine: a directory itself, or what a name stands for (docs/names.md), as the environment
/// says. The files that a loader would open have been glanced at. Nothing is fetched.
///
/// # Errors
/// [`Error::Absent`], whose text is what to do in three lines, where the model is known and not here;
/// [`Error::UnknownName`], [`Error::Repository`], [`Error::Ollama`]; [`Error::Unsafe`] where a file is not what its name says.
pub fn locate(name: impl AsRef<Path>) -> Result<PathBuf> {
    locate_in(name.as_ref(), &store::home(), &Hub::from_env())
}

/// As [`locate`], for a command that wants an original: a name of the catalog without a variant stands for it.
///
/// # Errors
/// As [`locate`].
pub fn locate_original(name: impl AsRef<Path>) -> Result<PathBuf> {
    let name = name.as_ref();
    let original = || {
        let name = name.to_str().filter(|_| !name.is_dir())?;
        Some(format!("{}-{}", Catalog::built_in().named(name)?.name, Variant::Bf16))
    };
    locate(original().map_or(name.to_path_buf(), PathBuf::from))
}

/// As [`locate`], with another home and hub than the environment's.
///
/// # Errors
/// As [`locate`].
pub fn locate_in(name: &Path, home: &Path, hub: &Hub) -> Result<PathBuf> {
    let dir = if name.is_dir() {
        name.to_path_buf()
    } else {
        let text = name.to_str().ok_or_else(|| Error::UnknownName { name: name.display().to_string() })?;
        match resolve(text, home, hub)? {
            Resolution::Ready(dir) => dir,
            Resolution::Absent(plan) => return Err(Error::Absent(Box::new(plan))),
        }
    };
    glance(&dir)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_paths_and_what_is_not_here() {
        let home = tempfile::tempdir().unwrap();
        let hub = Hub { offline: true, ..Hub::new("http://127.0.0.1:9", home.path().join("hub")) };
        let find = |name: &str| locate_in(Path::new(name), home.path(), &hub);
        let model = home.path().join("models/qwen3-0.6b-int4");
        std::fs::create_dir_all(&model).unwrap();
        std::fs::write(model.join("config.json"), "{}").unwrap();
        for name in ["qwen3-0.6b-int4", "qwen3:0.6b-int4", "Qwen3-0.6B-int4", model.to_str().unwrap()] {
            assert_eq!(find(name).unwrap(), model, "{name}");
        }
        for name in ["qwen3-0.6b", "qwen3:0.6b-bf16", "hf:a/b", "hf:a/b@v1"] {
            let error = find(name).unwrap_err();
            assert!(
                matches!(error, Error::Absent(_)) && error.to_string().lines().count() == 3,
                "{name}: {error}"
            );
        }
        assert!(matches!(find("nonesuch"), Err(Error::UnknownName { .. })));
        assert!(matches!(find("hf:a"), Err(Error::Repository { .. })));
        std::fs::write(model.join("tokenizer.json"), b"\x80\x04cposix\nsystem\n.").unwrap();
        let error = find("qwen3-0.6b-int4").unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains("posix.system"), "{error}");
    }
}
