//! Where squished models lie: `$SQUISH_HOME/models/NAME`.

use crate::{Error, Name, Result, catalog::Variant, hub::Hub};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// The directory of everything that belongs to this program: `$SQUISH_HOME`, or `squish` in `$XDG_CACHE_HOME` or `~/.cache`.
pub fn home() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("SQUISH_HOME")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("squish")))
        .or_else(|| Some(set("HOME")?.join(".cache/squish")))
        .unwrap_or_else(|| ".squish".into())
}

/// Whether a directory is a checkpoint as far as its files' names say.
fn is_checkpoint(dir: &Path) -> bool {
    dir.join("config.json").is_file()
}

/// The squished models below a home, by name, with the bytes of their files; sorted.
pub fn list(home: &Path) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir(home.join("models")).into_iter().flatten().flatten();
    let models = entries.filter(|entry| is_checkpoint(&entry.path()));
    let mut found: Vec<_> =
        models.map(|e| (e.file_name().to_string_lossy().into_owned(), bytes(&e.path()))).collect();
    found.sort();
    found
}

fn bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .filter_map(|file| std::fs::metadata(file.path()).ok())
        .filter(|m| m.is_file())
        .map(|m| m.len())
        .sum()
}

/// Where a model of the catalog lies, or will.
pub fn directory(home: &Path, model: &crate::Model, variant: Variant) -> PathBuf {
    home.join("models").join(format!("{}-{variant}", model.name))
}

/// Removes a squished model; returns the bytes that were freed.
///
/// # Errors
/// [`Error::UnknownName`] where there is none of this name, [`Error::Io`].
pub fn remove(home: &Path, name: &str) -> Result<u64> {
    let plain = Path::new(name).file_name().is_some_and(|file| file == name);
    let mut dir = home.join("models").join(name);
    if !plain || !is_checkpoint(&dir) {
        dir = match crate::Catalog::built_in().find(name) {
            Some((model, variant)) => directory(home, model, variant),
            None => return Err(Error::UnknownName { name: name.into() }),
        };
    }
    if !is_checkpoint(&dir) {
        return Err(Error::UnknownName { name: name.into() });
    }
    let freed = bytes(&dir);
    std::fs::remove_dir_all(&dir).map_err(|source| Error::Io { path: dir, source })?;
    Ok(freed)
}

/// What became of a name.
#[derive(Debug, Clone, PartialEq)]
pub enum Resolution {
    /// A directory to load.
    Ready(PathBuf),
    /// Known, but not on this machine.
    Absent(Plan),
}

/// What it would take to run a model that is not on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    name: String,
    /// Repository, variant, and the predicted sizes.
    model: Option<(Box<crate::Model>, Variant)>,
    repository: String,
}

/// Bytes as a person reads them.
pub fn gigabytes(bytes: u64) -> String {
    if bytes < 100_000_000 {
        format!("{:.1} MB", bytes as f64 / 1e6)
    } else {
        format!("{:.2} GB", bytes as f64 / 1e9)
    }
}

impl std::error::Error for Plan {}

/// Three lines: what would be done, what it needs, how to go on.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.model {
            Some((model, variant)) => {
                let download = gigabytes(model.bytes(Variant::Bf16));
                write!(
                    f,
                    "{} is not on this machine: {} would be downloaded ({download})",
                    self.name, self.repository
                )?;
                match variant.recipe() {
                    Some(recipe) => writeln!(f, " and squished by the recipe {recipe}.")?,
                    None => writeln!(f, ".")?,
                }
                let token =
                    if model.gated { ", the licence accepted on the hub and HF_TOKEN set" } else { "" };
                writeln!(
                    f,
                    "It needs {} of disk for the result and {} of memory to run with {} positions (predicted){token}; licence: {}.",
                    gigabytes(model.bytes(*variant)),
                    gigabytes(model.memory(*variant)),
                    crate::catalog::CONTEXT,
                    model.licence,
                )?;
            }
            None => {
                writeln!(
                    f,
                    "{} is not on this machine: {} would be downloaded.",
                    self.name, self.repository
                )?;
                writeln!(f, "It needs the network; how much disk and memory only the hub knows.")?;
            }
        }
        write!(f, "With a network: squish-quant pull {0}; then start again with --model {0}.", self.name)
    }
}

/// Looks for a name on this machine: a directory, `home/models/NAME`, the catalog's squished models, the hub's cache, Ollama's
/// store. Nothing is fetched.
///
/// # Errors
/// Those of [`Name::parse`]; [`Error::Ollama`].
pub fn resolve(name: &str, home: &Path, hub: &Hub) -> Result<Resolution> {
    let plain = Path::new(name).file_name().is_some_and(|file| file == name);
    let local = home.join("models").join(name);
    if plain && !Path::new(name).is_dir() && is_checkpoint(&local) {
        return Ok(Resolution::Ready(local));
    }
    let (repository, revision, model) = match Name::parse(name)? {
        Name::Directory(dir) => return Ok(Resolution::Ready(dir)),
        Name::Ollama(ollama) => {
            let store = crate::ollama::store().unwrap_or_default();
            return crate::ollama::import(&store, &ollama, home).map(Resolution::Ready);
        }
        Name::Hub { repository, revision } => (repository, revision, None),
        Name::Catalog(model, variant) => {
            let dir = directory(home, &model, variant);
            if is_checkpoint(&dir) {
                return Ok(Resolution::Ready(dir));
            }
            (model.repository.clone(), model.revision.clone(), Some((model, variant)))
        }
    };
    // The original is what was asked for only where no variant, or bf16, was.
    let original = model.as_ref().is_none_or(|(_, variant)| *variant == Variant::Bf16);
    match hub.cached(&repository, &revision).filter(|_| original) {
        Some(dir) => Ok(Resolution::Ready(dir)),
        None => Ok(Resolution::Absent(Plan { name: name.into(), model, repository })),
    }
}
