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
pub fn is_checkpoint(dir: &Path) -> bool {
    dir.join("config.json").is_file()
}

/// The directories of the squished models below a home, sorted.
pub fn directories(home: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(home.join("models")).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(|dir| is_checkpoint(dir)).collect();
    found.sort();
    found
}

/// The squished models below a home, by name, with the bytes of their files; sorted.
pub fn list(home: &Path) -> Vec<(String, u64)> {
    let name = |dir: &Path| dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    directories(home).iter().map(|dir| (name(dir), bytes(dir))).collect()
}

/// Bytes of all files below a directory; links count as nothing.
fn bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |file: std::fs::DirEntry| match file.metadata() {
        Ok(found) if found.is_dir() => bytes(&file.path()),
        Ok(found) if found.is_file() => found.len(),
        _ => 0,
    };
    files.map(of).sum()
}

/// Where a model of the catalog lies, or will.
pub fn directory(home: &Path, model: &crate::Model, variant: Variant) -> PathBuf {
    home.join("models").join(format!("{}-{variant}", model.name))
}

/// Where what a recipe makes of a model lies, or will.
///
/// # Errors
/// [`Error::Recipe`] where the recipe's name cannot be part of a directory's name.
pub fn directory_of(home: &Path, model: &str, recipe: &str) -> Result<PathBuf> {
    let name = format!("{model}-{recipe}");
    if !crate::name::is_relative_file(&name) || name.contains('/') {
        return Err(Error::Recipe { name: crate::scan::printable(recipe) });
    }
    Ok(home.join("models").join(name))
}

/// A hidden path beside a model's directory, for what belongs to it and is no model.
pub fn beside(dir: &Path, what: &str) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    dir.with_file_name(format!(".{name}.{what}"))
}

/// Waits until no other process makes this directory, and keeps others waiting until the file is dropped.
///
/// # Errors
/// [`Error::Io`].
pub fn lock(dir: &Path) -> Result<std::fs::File> {
    let path = beside(dir, "lock");
    let lock = || {
        std::fs::create_dir_all(path.parent().unwrap_or(dir))?;
        let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path)?;
        file.lock().map(|()| file)
    };
    lock().map_err(|source| Error::Io { path: path.clone(), source })
}

/// Gives a model a second name: its files are the same ones, so that either may be removed.
///
/// # Errors
/// [`Error::Io`].
pub fn share(from: &Path, to: &Path) -> Result<()> {
    let work = beside(to, "shared");
    let share = || -> std::io::Result<()> {
        if work.exists() {
            std::fs::remove_dir_all(&work)?;
        }
        std::fs::create_dir_all(&work)?;
        for file in std::fs::read_dir(from)? {
            place(&file?.path(), &work)?;
        }
        std::fs::rename(&work, to)
    };
    share().map_err(|source| Error::Io { path: to.into(), source })
}

/// A second name for a file in a directory, or a copy where that cannot be.
fn place(file: &Path, dir: &Path) -> std::io::Result<()> {
    let to = dir.join(file.file_name().unwrap_or_default());
    std::fs::hard_link(file, &to).or_else(|_| std::fs::copy(file, &to).map(|_| ()))
}

/// Removes a squished model, and what an interrupted pull has left of it; returns the bytes that were freed.
///
/// # Errors
/// [`Error::UnknownName`] where there is neither, [`Error::Io`].
pub fn remove(home: &Path, name: &str) -> Result<u64> {
    let plain = Path::new(name).file_name().is_some_and(|file| file == name);
    let parts = |dir: &Path| {
        let left = ["partial", "resume", "shared", "lock"].map(|what| beside(dir, what));
        std::iter::once(dir.to_path_buf()).filter(|dir| is_checkpoint(dir)).chain(left).collect::<Vec<_>>()
    };
    let is_there = |dir: &Path| parts(dir).iter().any(|part| part.is_dir());
    let mut dir = home.join("models").join(name);
    if !plain || !is_there(&dir) {
        dir = match crate::Catalog::built_in().find(name) {
            Some((model, variant)) => directory(home, model, variant),
            None => return Err(Error::UnknownName { name: name.into() }),
        };
    }
    if !is_there(&dir) {
        return Err(Error::UnknownName { name: name.into() });
    }
    let mut freed = 0;
    for part in parts(&dir) {
        freed += bytes(&part);
        let removed =
            if part.is_dir() { std::fs::remove_dir_all(&part) } else { std::fs::remove_file(&part) };
        match removed {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::Io { path: part, source });
            }
            _ => {}
        }
    }
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
        let Self { name, model, repository } = self;
        match model {
            Some((model, variant)) => {
                let published = model.published.get(variant.name());
                let (from, fetched) = match published {
                    Some(published) => (published, *variant),
                    None => (repository, Variant::Bf16),
                };
                let download = gigabytes(model.bytes(fetched));
                write!(f, "{name} is not on this machine: {from} would be downloaded ({download})")?;
                match variant.recipe().filter(|_| published.is_none()) {
                    Some(recipe) if variant.calibrates() => {
                        writeln!(f, ", squished by the recipe {recipe}, and removed.")?;
                    }
                    Some(recipe) => writeln!(f, " and squished by the recipe {recipe} as it arrives.")?,
                    None => writeln!(f, ".")?,
                }
                let token =
                    if model.gated { ", the licence accepted on the hub and HF_TOKEN set" } else { "" };
                let on_the_way = match published {
                    Some(_) => model.bytes(*variant),
                    None => model.disk(*variant),
                };
                writeln!(
                    f,
                    "It needs up to {} of disk on the way and {} to stay, and {} of memory to run with {} positions (predicted){token}; licence: {}.",
                    gigabytes(on_the_way),
                    gigabytes(model.bytes(*variant)),
                    gigabytes(model.memory(*variant)),
                    crate::catalog::CONTEXT,
                    model.licence,
                )?;
            }
            None => {
                writeln!(f, "{name} is not on this machine: {repository} would be downloaded.")?;
                writeln!(f, "It needs the network; how much disk and memory only the hub knows.")?;
            }
        }
        write!(f, "With a network: squish-quant pull {name}; then start again with --model {name}.")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalog;

    #[test]
    fn plans_are_three_true_lines() {
        let mut catalog = Catalog::built_in();
        let plan = |model: &crate::Model, variant| Plan {
            name: format!("{}-{variant}", model.name),
            model: Some((Box::new(model.clone()), variant)),
            repository: model.repository.clone(),
        };
        let model = catalog.models.iter_mut().find(|model| model.name == "qwen2.5-7b").unwrap();
        let lines = |plan: Plan| plan.to_string().lines().map(str::to_owned).collect::<Vec<_>>();
        let calibrated = lines(plan(model, Variant::Sqint2));
        assert_eq!(calibrated.len(), 3);
        assert!(
            calibrated[0].contains("(15.23 GB), squished by the recipe sqint2, and removed"),
            "{calibrated:?}"
        );
        // The original, the matrices that are done, and the result that they go into.
        assert!(
            calibrated[1].contains("up to 19.99 GB of disk on the way and 2.38 GB to stay"),
            "{calibrated:?}"
        );
        let rounded = lines(plan(model, Variant::Int4));
        assert!(rounded[0].contains("as it arrives"), "{rounded:?}");
        assert!(rounded[1].contains("up to 10.19 GB of disk on the way and 5.19 GB to stay"), "{rounded:?}");
        model.published.insert("sqint2".into(), "someone/squished".into());
        let published = lines(plan(model, Variant::Sqint2));
        assert!(published[0].ends_with("someone/squished would be downloaded (2.38 GB)."), "{published:?}");
        assert!(published[2].contains("squish-quant pull qwen2.5-7b-sqint2"), "{published:?}");
    }

    #[test]
    fn models_are_shared_and_removed_with_what_belongs_to_them() {
        let home = tempfile::tempdir().unwrap();
        let one = directory_of(home.path(), "one", "int4").unwrap();
        std::fs::create_dir_all(&one).unwrap();
        std::fs::write(one.join("config.json"), "{}").unwrap();
        let other = directory_of(home.path(), "other", "int4").unwrap();
        share(&one, &other).unwrap();
        let _lock = lock(&one).unwrap();
        std::fs::create_dir_all(beside(&one, "partial").join("a")).unwrap();
        std::fs::write(beside(&one, "partial").join("a/b"), [0; 100]).unwrap();
        assert_eq!(list(home.path()), [("one-int4".to_string(), 2), ("other-int4".to_string(), 2)]);
        assert_eq!(remove(home.path(), "one-int4").unwrap(), 102);
        assert_eq!(directories(home.path()), [other.clone()]);
        assert_eq!(std::fs::read_dir(home.path().join("models")).unwrap().count(), 1);
        assert!(
            remove(home.path(), "one-int4").is_err() && remove(home.path(), "../models/other-int4").is_err()
        );
        // An interrupted pull has left something, and no model.
        std::fs::create_dir_all(beside(&one, "partial")).unwrap();
        assert_eq!(remove(home.path(), "one-int4").unwrap(), 0);
        for recipe in ["../x", "a/b", ""] {
            let dir = directory_of(home.path(), "one", recipe);
            assert!(dir.is_err() || recipe.is_empty(), "{recipe}");
        }
    }
}
