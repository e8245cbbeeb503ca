//! A whole repository.

use super::{Hub, RemoteFile, cache};
use crate::{Error, Result};
use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// Who watches a download.
pub trait Transfer: Sync {
    /// So many bytes are to come in all, or are here already.
    fn expect(&self, _total: u64) {}

    /// So many bytes of a file are here, of so many where that is known.
    fn at(&self, _file: &str, _done: u64, _total: Option<u64>) {}

    /// Something to tell whoever started it, who may go on.
    fn warn(&self, _text: &str) {}

    /// Whether to end.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Transfer for Silent {}

/// A repository in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The directory of its files.
    pub dir: PathBuf,
    /// The commit.
    pub commit: String,
    /// Files that were left where they are, because their names stand for pickled data.
    pub skipped: Vec<String>,
}

/// Passes on to the watcher, and ends all downloads once one has failed.
struct Group<'a> {
    inner: &'a dyn Transfer,
    failed: AtomicBool,
}

impl Transfer for Group<'_> {
    fn expect(&self, total: u64) {
        self.inner.expect(total);
    }

    fn at(&self, file: &str, done: u64, total: Option<u64>) {
        self.inner.at(file, done, total);
    }

    fn warn(&self, text: &str) {
        self.inner.warn(text);
    }

    fn cancelled(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.inner.cancelled()
    }
}

impl Hub {
    /// Brings a revision into the cache. Each file is checked against the hub's digest and looked at by the scanner before
    /// it gets its name; the revision counts as there only when all of its files are. What was interrupted goes on.
    ///
    /// # Errors
    /// Those of [`listing`](Self::listing); [`Error::DiskFull`], [`Error::Checksum`], [`Error::Unsafe`],
    /// [`Error::Cancelled`], [`Error::Io`].
    pub fn pull(&self, repository: &str, revision: &str, transfer: &dyn Transfer) -> Result<Pulled> {
        // It may come from a file of the model, and becomes part of paths.
        crate::name::check_revision(revision)?;
        if self.offline {
            let Some(dir) = self.cached(repository, revision) else {
                return Err(Error::Offline { url: format!("{}/{repository}", self.endpoint) });
            };
            let commit = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Ok(Pulled { dir, commit, skipped: Vec::new() });
        }
        let listing = self.listing(repository, revision)?;
        listing.unlisted.iter().for_each(|text| transfer.warn(text));
        let dir = self.repository_dir(repository);
        std::fs::create_dir_all(&dir).map_err(|source| Error::Io { path: dir.clone(), source })?;
        self.check_disk(&dir, &listing.fetched)?;
        self.download_all(&dir, repository, &listing.commit, &listing.fetched, transfer)?;
        cache::link_all(&dir, &format!("snapshots/{}", listing.commit), &listing.fetched)?;
        if revision != listing.commit {
            cache::write_ref(&dir, revision, &listing.commit)?;
        }
        let snapshot = dir.join("snapshots").join(&listing.commit);
        Ok(Pulled { dir: snapshot, commit: listing.commit, skipped: listing.pickled })
    }

    /// Brings files into the blobs of a repository's directory, some at a time.
    pub(super) fn download_all(
        &self,
        dir: &Path,
        repository: &str,
        commit: &str,
        files: &[RemoteFile],
        transfer: &dyn Transfer,
    ) -> Result<()> {
        transfer.expect(files.iter().filter_map(|file| file.size).sum());
        let (agent, next) = (self.agent(), AtomicUsize::new(0));
        let group = Group { inner: transfer, failed: AtomicBool::new(false) };
        let first_error = Mutex::new(None);
        let work = || {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let url = self.file_url(repository, commit, file);
                if let Err(error) = self.download(&agent, dir, &url, file, &group) {
                    // The others end by being cancelled, after the first error is in its place.
                    first_error.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                    group.failed.store(true, Ordering::Relaxed);
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.parallel.clamp(1, 16).min(files.len()) {
                scope.spawn(work);
            }
        });
        first_error.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }

    pub(super) fn file_url(&self, repository: &str, commit: &str, file: &RemoteFile) -> String {
        let mut name = String::new();
        for b in file.name.bytes() {
            if b.is_ascii_alphanumeric() || b"-_./~".contains(&b) {
                name.push(b as char);
            } else {
                name.push_str(&format!("%{b:02X}"));
            }
        }
        format!("{}/{repository}/resolve/{commit}/{name}", self.endpoint)
    }

    /// Whether the disk has room for what is not there yet.
    pub(super) fn check_disk(&self, dir: &Path, files: &[RemoteFile]) -> Result<()> {
        let needed = files.iter().map(|file| self.missing(dir, file)).fold(0, u64::saturating_add);
        let Ok(available) = fs4::available_space(dir) else { return Ok(()) };
        if needed > 0 && needed.saturating_add(self.reserve) > available {
            return Err(Error::DiskFull { path: dir.into(), needed, available });
        }
        Ok(())
    }
}
