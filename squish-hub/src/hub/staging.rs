//! A repository on its way into a directory of its own: as a whole, or one weights file after the other.
//!
//! ```text
//! ROOT/models--ORGANISATION--NAME/blobs/ETAG            what has come, as in the cache
//!                                 whole/COMMIT/FILE     links to all files
//!                                 outline/COMMIT/FILE   small files, and weights files of which only the header is there
//!                                 arrived/COMMIT/FILE   links to single weights files
//! ```
//!
//! Nothing of it lies in the cache that other programs share, so all of it may be removed; what that cache has already is
//! used where it is.

use super::{Hub, Listing, RemoteFile, Transfer, cache, client::Attempt};
use crate::{Error, Result, store};
use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// Bytes that are asked for at first to find a header in: that of a model with 400 tensors takes 50 kB.
const FIRST_BYTES: u64 = 1 << 18;
/// The longest header of a safetensors file.
const LONGEST_HEADER: u64 = 100_000_000;

/// The index of a checkpoint in several files.
const INDEX: &str = "model.safetensors.index.json";

/// A repository at one commit, and the directory that it is brought into.
#[derive(Debug, Clone)]
pub struct Staging {
    hub: Hub,
    repository: String,
    listing: Listing,
    dir: PathBuf,
}

impl Hub {
    /// Asks for the files of a repository, to bring them into a directory below `root` that belongs to this work alone. What an
    /// earlier call has brought there is taken up.
    ///
    /// # Errors
    /// Those of [`listing`](Self::listing), [`Error::Io`].
    pub fn stage(&self, repository: &str, revision: &str, root: &Path) -> Result<Staging> {
        let listing = self.listing(repository, revision)?;
        let hub = Hub { cache: root.into(), beside: Some(self.cache.clone()), ..self.clone() };
        let dir = hub.repository_dir(repository);
        let blobs = dir.join("blobs");
        let io = |source| Error::Io { path: blobs.clone(), source };
        std::fs::create_dir_all(&blobs).map_err(io)?;
        // Of another commit, whose files may be as large.
        for entry in std::fs::read_dir(&blobs).map_err(io)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let etag = name.split('.').next().unwrap_or_default();
            if listing.fetched.iter().all(|file| file.etag != etag) {
                std::fs::remove_file(entry.path()).map_err(io)?;
            }
        }
        Ok(Staging { hub, repository: repository.into(), listing, dir })
    }
}

impl Staging {
    /// The commit.
    pub fn commit(&self) -> &str {
        &self.listing.commit
    }

    /// What its contents are known by: names and digests of all files that are fetched.
    pub fn contents(&self) -> Vec<(&str, &str)> {
        let mut files: Vec<_> =
            self.listing.fetched.iter().map(|file| (file.name.as_str(), file.etag.as_str())).collect();
        files.sort_unstable();
        files
    }

    /// A file by its name.
    pub fn file(&self, name: &str) -> Option<&RemoteFile> {
        self.listing.fetched.iter().find(|file| file.name == name)
    }

    /// Brings some small file, as a path.
    ///
    /// # Errors
    /// As [`whole`](Self::whole).
    pub fn small(&self, name: &str, transfer: &dyn Transfer) -> Result<Option<PathBuf>> {
        let Some(file) = self.file(name) else { return Ok(None) };
        self.hub.download(&self.hub.agent(), &self.dir, &self.url(file), file, transfer)?;
        Ok(Some(self.blob(file)))
    }

    /// Brings all files; the directory is named by the commit.
    ///
    /// # Errors
    /// As [`Hub::pull`].
    pub fn whole(&self, transfer: &dyn Transfer) -> Result<PathBuf> {
        self.listing.unlisted.iter().for_each(|text| transfer.warn(text));
        let files = &self.listing.fetched;
        self.hub.check_disk(&self.dir, files)?;
        self.hub.download_all(&self.dir, &self.repository, &self.listing.commit, files, transfer)?;
        let folder = format!("whole/{}", self.listing.commit);
        cache::link_all(&self.dir, &folder, files)?;
        Ok(self.dir.join(folder))
    }

    /// Makes a directory of its own of the files that [`whole`](Self::whole) brought, which appears at `out` as a whole.
    ///
    /// # Errors
    /// [`Error::Io`], also where `out` is there and not empty.
    pub fn settle(&self, whole: &Path, out: &Path) -> Result<()> {
        let settled = self.dir.join("settled");
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::Io { path, source }
        };
        store::discard(&settled)?;
        for file in &self.listing.fetched {
            let path = settled.join(&file.name);
            std::fs::create_dir_all(path.parent().unwrap_or(&settled)).map_err(io(&settled))?;
            let from = whole.join(&file.name).canonicalize();
            from.and_then(|from| store::place(&from, &path)).map_err(io(&path))?;
        }
        std::fs::rename(&settled, out).map_err(io(out))
    }

    /// Brings everything but the weights, and of these the headers: a checkpoint to plan by, whose weights read as zeros and take no
    /// room (on file systems that know holes). Returns it, named by the commit, with the weights files it consists of.
    ///
    /// # Errors
    /// As [`Hub::pull`].
    pub fn outline(&self, transfer: &dyn Transfer) -> Result<(PathBuf, Vec<RemoteFile>)> {
        self.listing.unlisted.iter().for_each(|text| transfer.warn(text));
        let is_weights = |file: &&RemoteFile| file.name.ends_with(".safetensors");
        let (_, small): (Vec<_>, Vec<_>) = self.listing.fetched.iter().partition(is_weights);
        let small: Vec<_> = small.into_iter().cloned().collect();
        self.hub.check_disk(&self.dir, &small)?;
        self.hub.download_all(&self.dir, &self.repository, &self.listing.commit, &small, transfer)?;
        let weights = self.weights()?;
        let folder = format!("outline/{}", self.listing.commit);
        let outline = self.dir.join(&folder);
        std::fs::create_dir_all(&outline).map_err(|source| Error::Io { path: outline.clone(), source })?;
        for file in &weights {
            if transfer.cancelled() {
                return Err(Error::Cancelled);
            }
            let path = outline.join(&file.name);
            let size = file.size.ok_or_else(|| self.refuse(file, "the hub does not say how long it is"))?;
            if std::fs::metadata(&path).is_ok_and(|found| found.len() == size) {
                continue;
            }
            let header = self.header(file, size)?;
            hollow(&path, &header, size).map_err(|source| Error::Io { path, source })?;
        }
        cache::link_all(&self.dir, &folder, &small)?;
        transfer.expect(weights.iter().filter_map(|file| file.size).sum());
        Ok((outline, weights))
    }

    /// The weights files that make up the checkpoint: those that the index names, or the only one.
    fn weights(&self) -> Result<Vec<RemoteFile>> {
        let mut names = std::collections::BTreeSet::from(["model.safetensors".to_string()]);
        if let Some(index) = self.file(INDEX) {
            let path = self.blob(index);
            let text = std::fs::read(&path).map_err(|source| Error::Io { path, source })?;
            let json: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
            let map = json["weight_map"].as_object().filter(|map| !map.is_empty());
            let map = map.ok_or_else(|| self.refuse(index, "not an index of weights files"))?;
            names = map.values().filter_map(|file| file.as_str().map(str::to_owned)).collect();
        }
        let missing = |name: &str| Error::NotFound { url: format!("{}/{name}", self.repository) };
        names.iter().map(|name| self.file(name).cloned().ok_or_else(|| missing(name))).collect()
    }

    /// Bytes of a file that are not on the disk yet.
    pub fn missing(&self, file: &RemoteFile) -> u64 {
        self.hub.missing(&self.dir, file)
    }

    /// Brings one weights file, checked as every file is.
    ///
    /// # Errors
    /// As [`Hub::pull`].
    pub fn bring(&self, file: &RemoteFile, transfer: &dyn Transfer) -> Result<PathBuf> {
        self.hub.check_disk(&self.dir, std::slice::from_ref(file))?;
        self.hub.download(&self.hub.agent(), &self.dir, &self.url(file), file, transfer)?;
        let folder = format!("arrived/{}", self.listing.commit);
        cache::link(&self.dir, &folder, &file.name, &file.etag)?;
        Ok(self.dir.join(folder).join(&file.name))
    }

    /// Removes what [`bring`](Self::bring) brought; a file of the shared cache stays there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn discard(&self, file: &RemoteFile) -> Result<()> {
        let arrived = self.dir.join("arrived").join(&self.listing.commit).join(&file.name);
        for path in [arrived, self.blob(file)] {
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::Io { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes all that has come of this repository.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn clear(self) -> Result<()> {
        std::fs::remove_dir_all(&self.dir).map_err(|source| Error::Io { path: self.dir, source })
    }

    fn url(&self, file: &RemoteFile) -> String {
        self.hub.file_url(&self.repository, &self.listing.commit, file)
    }

    fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.dir.join("blobs").join(&file.etag)
    }

    fn refuse(&self, file: &RemoteFile, reason: &str) -> Error {
        Error::Hub { url: self.url(file), reason: reason.into() }
    }

    /// The header of a weights file with its length before it, by a request for the file's first bytes.
    fn header(&self, file: &RemoteFile, size: u64) -> Result<Vec<u8>> {
        let (agent, url) = (self.hub.agent(), self.url(file));
        let first = FIRST_BYTES.min(size).max(1);
        let (mut wanted, mut failed) = (first, 0);
        loop {
            let (error, asked) =
                match self.hub.attempt(&agent, &url, Some(&format!("bytes=0-{}", wanted - 1)))? {
                    Attempt::Again(error, asked) => (error, asked),
                    Attempt::Answer(response) => {
                        // A hub that ignores ranges sends the whole file, of which no more than this is read.
                        let (mut bytes, status) = (Vec::new(), response.status().as_u16());
                        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
                        let read = body.take(wanted).read_to_end(&mut bytes);
                        let end = bytes
                            .first_chunk()
                            .map(|length| 8u64.saturating_add(u64::from_le_bytes(*length)));
                        match (read, end) {
                            (Ok(_), Some(end)) if end > size.min(LONGEST_HEADER) => {
                                return Err(
                                    self.refuse(file, "its header is longer than the file, or than any")
                                );
                            }
                            (_, Some(end)) if end <= bytes.len() as u64 => {
                                bytes.truncate(end as usize);
                                return Ok(bytes);
                            }
                            (Ok(_), Some(end)) if end > wanted && wanted == first => {
                                wanted = end;
                                continue;
                            }
                            (Ok(_), _) => {
                                (self.refuse(file, &format!("the answer {status} ends early")), None)
                            }
                            (Err(e), _) => (self.refuse(file, &e.to_string()), None),
                        }
                    }
                };
            failed += 1;
            self.hub.wait(failed, error, asked)?;
        }
    }
}

/// A file of this size that begins with the header; the rest is a hole.
fn hollow(path: &Path, header: &[u8], size: u64) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    file.write_all(header)?;
    file.set_len(size)?;
    std::fs::rename(partial, path)
}
