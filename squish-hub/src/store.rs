//! Where squished models lie: `$SQUISH_HOME/models/NAME`.

use crate::{
    Error, Name, Result,
    catalog::Variant,
    hub::{Hub, Transfer},
};
use std::{
    fmt,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
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

/// Whether a name can be that of a model's directory: one component, and not hidden, as what is half-made is.
fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name) && !name.starts_with('.')
}

/// The directories of the squished models below a home, sorted.
pub fn directories(home: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(home.join("models")).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
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
/// [`Error::Cancelled`], [`Error::Io`].
pub fn lock(dir: &Path, transfer: &dyn Transfer) -> Result<File> {
    let mut told = false;
    acquire(dir, || {
        if !std::mem::replace(&mut told, true) {
            transfer.warn(&format!("another process is at work on {}; waiting for it", dir.display()));
        }
        std::thread::sleep(Duration::from_millis(50));
        if transfer.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    })
}

/// Locks a directory; `held` is called as often as another process holds it, and may end the attempts.
fn acquire(dir: &Path, mut held: impl FnMut() -> Result<()>) -> Result<File> {
    let path = beside(dir, "lock");
    let io = |source| Error::Io { path: path.clone(), source };
    std::fs::create_dir_all(path.parent().unwrap_or(dir)).map_err(io)?;
    loop {
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
        match file.try_lock() {
            // Whoever held it may have removed the file, and a third process made another.
            Ok(()) if is_at(&file, &path).map_err(io)? => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => held()?,
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
    }
}

/// Whether a path still leads to an open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let file = file.metadata()?;
    Ok(std::fs::metadata(path).is_ok_and(|at| (at.dev(), at.ino()) == (file.dev(), file.ino())))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> std::io::Result<bool> {
    Ok(path.exists())
}

/// Directories beside a model's that were to become it: a process that was killed leaves them.
fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let prefix = beside(dir, "partial-").file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_left = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let random = name.strip_prefix(&prefix);
        random.is_some_and(|random| random.chars().all(char::is_alphanumeric)) && path.is_dir()
    };
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(is_left).collect()
}

/// Removes what killed processes have left beside a directory, whose [`lock`] the caller holds.
///
/// # Errors
/// [`Error::Io`].
pub fn sweep(dir: &Path) -> Result<()> {
    leftovers(dir).iter().try_for_each(|part| discard(part))
}

/// Removes a directory or a file, if it is there.
///
/// # Errors
/// [`Error::Io`].
pub fn discard(part: &Path) -> Result<()> {
    clear_away(part).map_err(|source| Error::Io { path: part.into(), source })
}

/// As [`discard`], for callers that name another path in their errors.
pub(crate) fn clear_away(part: &Path) -> std::io::Result<()> {
    let removed = if part.is_dir() { std::fs::remove_dir_all(part) } else { std::fs::remove_file(part) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives a model a second name: its files are the same ones, so that either may be removed. The small file `own`, a name and
/// contents, is its own.
///
/// # Errors
/// [`Error::Io`].
pub fn share(from: &Path, to: &Path, own: (&str, &[u8])) -> Result<()> {
    let work = beside(to, "shared");
    let share = || -> std::io::Result<()> {
        clear_away(&work)?;
        std::fs::create_dir_all(&work)?;
        for file in std::fs::read_dir(from)? {
            let file = file?;
            if file.file_name() != own.0 {
                place(&file.path(), &work.join(file.file_name()))?;
            }
        }
        std::fs::write(work.join(own.0), own.1)?;
        std::fs::rename(&work, to)
    };
    share().map_err(|source| Error::Io { path: to.into(), source })
}

/// A second name for a file, or a copy where that cannot be, as on another disk.
pub(crate) fn place(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::hard_link(from, to).or_else(|_| std::fs::copy(from, to).map(|_| ()))
}

/// Removes a squished model, and what an interrupted pull has left of it; returns the bytes that were freed.
///
/// # Errors
/// [`Error::UnknownName`] where there is neither, [`Error::Busy`] while another process makes it, [`Error::Io`].
pub fn remove(home: &Path, name: &str) -> Result<u64> {
    let parts = |dir: &Path| {
        let left = ["partial", "resume", "shared"].map(|what| beside(dir, what));
        let made = std::iter::once(dir.to_path_buf()).filter(|dir| is_checkpoint(dir));
        // The lock at last: without it another process could begin before the rest is gone.
        made.chain(left).chain(leftovers(dir)).chain([beside(dir, "lock")]).collect::<Vec<_>>()
    };
    let is_there = |dir: &Path| parts(dir).iter().any(|part| part.is_dir());
    let mut dir = home.join("models").join(name);
    if !is_plain(name) || !is_there(&dir) {
        dir = match crate::Catalog::built_in().find(name) {
            Some((model, variant)) => directory(home, model, variant),
            None => return Err(Error::UnknownName { name: name.into() }),
        };
    }
    if !is_there(&dir) {
        return Err(Error::UnknownName { name: name.into() });
    }
    let _lock = acquire(&dir, || Err(Error::Busy { path: dir.clone() }))?;
    let mut freed = 0;
    for part in parts(&dir) {
        freed += bytes(&part);
        discard(&part)?;
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
    let local = home.join("models").join(name);
    if is_plain(name) && !Path::new(name).is_dir() && is_checkpoint(&local) {
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
    use crate::{Catalog, hub::Silent};

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

    /// A lock whose file was removed keeps nobody out any more.
    #[test]
    #[cfg(unix)]
    fn a_lock_is_that_of_the_path() {
        let home = tempfile::tempdir().unwrap();
        let (dir, path) = (home.path().join("model"), home.path().join(".model.lock"));
        let first = lock(&dir, &Silent).unwrap();
        assert!(is_at(&first, &path).unwrap());
        assert!(matches!(acquire(&dir, || Err(Error::Cancelled)), Err(Error::Cancelled)));
        std::fs::remove_file(&path).unwrap();
        let second = lock(&dir, &Silent).unwrap();
        assert!(!is_at(&first, &path).unwrap() && is_at(&second, &path).unwrap());
    }

    #[test]
    fn models_are_shared_and_removed_with_what_belongs_to_them() {
        let home = tempfile::tempdir().unwrap();
        let one = directory_of(home.path(), "one", "int4").unwrap();
        std::fs::create_dir_all(&one).unwrap();
        std::fs::write(one.join("config.json"), "{}").unwrap();
        let other = directory_of(home.path(), "other", "int4").unwrap();
        std::fs::write(one.join("own"), "1").unwrap();
        share(&one, &other, ("own", b"22")).unwrap();
        assert_eq!(std::fs::read(one.join("own")).unwrap(), b"1");
        std::fs::create_dir_all(beside(&one, "partial").join("a")).unwrap();
        std::fs::write(beside(&one, "partial").join("a/b"), [0; 100]).unwrap();
        // What a killed process has left is no model, and goes with the one it was to be.
        for what in ["partial-k1LLed", "shared"] {
            std::fs::create_dir_all(beside(&one, what)).unwrap();
            std::fs::write(beside(&one, what).join("config.json"), "{}").unwrap();
        }
        assert_eq!(list(home.path()), [("one-int4".to_string(), 3), ("other-int4".to_string(), 4)]);
        assert!(remove(home.path(), ".one-int4.shared").is_err());
        let locked = lock(&one, &Silent).unwrap();
        assert!(matches!(remove(home.path(), "one-int4"), Err(Error::Busy { .. })));
        drop(locked);
        assert_eq!(remove(home.path(), "one-int4").unwrap(), 107);
        assert_eq!(directories(home.path()), [other]);
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
