//! The cache on disk, in Hugging Face's layout:
//!
//! ```text
//! models--ORGANISATION--NAME/blobs/ETAG
//!                            refs/REVISION             a commit
//!                            snapshots/COMMIT/FILE     a link to a blob
//! ```

use super::{Hub, RemoteFile, digest};
use crate::{Error, Result, name, scan};
use std::path::{Path, PathBuf};

impl Hub {
    /// The directory of a repository.
    pub(super) fn repository_dir(&self, repository: &str) -> PathBuf {
        self.cache.join(format!("models--{}", repository.replace('/', "--")))
    }

    /// The repositories of models in the cache, complete or not, with the bytes of their files; sorted.
    pub fn repositories(&self) -> Vec<(String, u64)> {
        let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
        let bytes = |dir: PathBuf| -> u64 {
            entries(&dir.join("blobs")).filter_map(|blob| blob.metadata().ok()).map(|m| m.len()).sum()
        };
        let repository = |entry: std::fs::DirEntry| {
            let name = entry.file_name().to_str()?.strip_prefix("models--")?.replacen("--", "/", 1);
            crate::name::check_repository(&name).ok()?;
            Some((name, bytes(entry.path())))
        };
        let mut found: Vec<_> = entries(&self.cache).filter_map(repository).collect();
        found.sort();
        found
    }

    /// The directory of a revision that is completely in the cache: the configuration and all weights files that the index
    /// names. Links are made only when every file has been checked.
    pub fn cached(&self, repository: &str, revision: &str) -> Option<PathBuf> {
        name::check_repository(repository).and(name::check_revision(revision)).ok()?;
        let dir = self.repository_dir(repository);
        let commit = std::fs::read_to_string(dir.join("refs").join(revision)).ok();
        let commit = commit.as_deref().map_or(revision, str::trim);
        // A commit becomes part of a path, so it must be one.
        if !name::is_relative_file(commit) {
            return None;
        }
        let snapshot = dir.join("snapshots").join(commit);
        is_complete(&snapshot).then_some(snapshot)
    }

    /// The blob of a file in the cache beside this one, where it is there in its full length.
    fn lent(&self, dir: &Path, file: &RemoteFile) -> Option<PathBuf> {
        let beside = self.beside.as_ref()?.join(dir.file_name()?);
        let blob = beside.join("blobs").join(&file.etag).canonicalize().ok()?;
        let found = std::fs::metadata(&blob).ok().filter(std::fs::Metadata::is_file)?;
        file.size.is_none_or(|size| size == found.len()).then_some(blob)
    }

    /// Links a blob into the directory of a repository from the cache beside this one, where it is there. Others write into that
    /// cache, so it is looked at as if it had just come; `false` where it is not what the hub says.
    ///
    /// # Errors
    /// [`Error::Unsafe`], [`Error::Io`].
    pub(super) fn borrow(&self, dir: &Path, file: &RemoteFile) -> Result<bool> {
        let Some(blob) = self.lent(dir, file) else { return Ok(false) };
        if digest::of_file(&blob, &file.etag)?.as_ref() != Some(&file.etag) {
            return Ok(false);
        }
        scan::check_file(&file.name, &blob)?;
        Ok(symlink(&blob, &dir.join("blobs").join(&file.etag)).is_ok())
    }

    /// Bytes of a file that are neither in the directory of its repository nor lent by the cache beside.
    pub(super) fn missing(&self, dir: &Path, file: &RemoteFile) -> u64 {
        let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |found| found.len());
        let blob = |name: &str| size(dir.join("blobs").join(name));
        let here = blob(&file.etag).max(blob(&format!("{}.incomplete", file.etag)));
        match self.lent(dir, file) {
            Some(_) => 0,
            None => file.size.unwrap_or(0).saturating_sub(here),
        }
    }
}

/// Whether a directory has a configuration and all of its weights.
fn is_complete(dir: &Path) -> bool {
    if !dir.join("config.json").is_file() {
        return false;
    }
    let Ok(index) = std::fs::read(dir.join("model.safetensors.index.json")) else {
        return dir.join("model.safetensors").is_file();
    };
    let Ok(index) = serde_json::from_slice::<serde_json::Value>(&index) else { return false };
    let Some(map) = index["weight_map"].as_object().filter(|map| !map.is_empty()) else { return false };
    let there = |file: &str| name::is_relative_file(file) && dir.join(file).is_file();
    map.values().all(|file| file.as_str().is_some_and(there))
}

/// Gives a blob its name in a folder of the repository's directory (`snapshots/COMMIT`): by a relative link, or by a copy where
/// links cannot be made.
pub(super) fn link(dir: &Path, folder: &str, name: &str, etag: &str) -> Result<()> {
    let path = dir.join(folder).join(name);
    let io = |source| Error::Io { path: path.clone(), source };
    if path.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(path.parent().unwrap_or(dir)).map_err(io)?;
    let up = "../".repeat(1 + folder.matches('/').count() + name.matches('/').count());
    let linked = symlink(Path::new(&format!("{up}blobs/{etag}")), &path);
    match linked {
        // Another process did the same.
        Err(_) if path.exists() => Ok(()),
        Err(_) => {
            // A dangling link from before, or a system without links.
            let _ = std::fs::remove_file(&path);
            std::fs::copy(dir.join("blobs").join(etag), &path).map(|_| ()).map_err(io)
        }
        Ok(()) => Ok(()),
    }
}

/// Gives all of these blobs their names; the configuration last, since without it a directory is no checkpoint.
pub(super) fn link_all(dir: &Path, folder: &str, files: &[RemoteFile]) -> Result<()> {
    let (config, others): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.name == "config.json");
    others.into_iter().chain(config).try_for_each(|file| link(dir, folder, &file.name, &file.etag))
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Writes which commit a revision is; a reader sees the old one or the new one.
pub(super) fn write_ref(dir: &Path, revision: &str, commit: &str) -> Result<()> {
    let path = dir.join("refs").join(revision);
    let io = |source| Error::Io { path: path.clone(), source };
    let parent = path.parent().unwrap_or(dir);
    std::fs::create_dir_all(parent).map_err(io)?;
    let file = tempfile::NamedTempFile::new_in(parent).map_err(io)?;
    std::fs::write(file.path(), commit).map_err(io)?;
    file.persist(&path).map(|_| ()).map_err(|e| io(e.error))
}
