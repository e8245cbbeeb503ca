//! A directory's way to a repository: what is there already, the large files to their storage, and one commit that names them all.
//!
//! 1. The repository's files and digests. What is the same is not sent; where everything is, nothing is done.
//! 2. The repository is created, if it is not there.
//! 3. The hub says of each file whether it goes to the large-file storage or into the commit (`preupload`).
//! 4. Large files, in one piece or in parts as the storage wants them ([`lfs`]). The storage knows what it has, so a push that was
//!    interrupted sends only what is missing.
//! 5. One commit: a reader sees the old files or the new ones. Weights files that are no longer part of the checkpoint go with it.

mod lfs;
mod post;

use super::{Hub, Transfer, client::Attempt, digest};
use crate::{Error, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use post::Payload;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Files of one request, at most.
const BATCH: usize = 100;
/// Bytes of a file that goes into the commit itself.
const MOST_REGULAR: u64 = 16 << 20;
/// Bytes of a file from which the hub tells what kind it is.
const SAMPLE: u64 = 512;

/// A file to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Its path in the repository.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// A local file with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Measured {
    name: String,
    path: PathBuf,
    size: u64,
    sha256: String,
}

/// What publishing a directory comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// `organisation/name`.
    pub repository: String,
    /// Whether the repository is not there yet.
    pub create: bool,
    /// Names of files that are there as they are here.
    pub same: Vec<String>,
    /// Names of weights files there that would no longer be part of the checkpoint.
    pub removed: Vec<String>,
    send: Vec<Measured>,
    /// The commit that it was compared with.
    parent: Option<String>,
}

impl Push {
    /// Whether there is nothing to do.
    pub fn is_done(&self) -> bool {
        !self.create && self.send.is_empty() && self.removed.is_empty()
    }

    /// The files that are sent, with their bytes.
    pub fn sent(&self) -> impl Iterator<Item = (&str, u64)> {
        self.send.iter().map(|file| (file.name.as_str(), file.size))
    }
}

impl Hub {
    /// Compares local files with a repository.
    ///
    /// # Errors
    /// [`Error::WriteDenied`] without a token, those of a request but [`Error::NotFound`], [`Error::Io`].
    pub fn plan_push(&self, repository: &str, files: &[LocalFile]) -> Result<Push> {
        crate::name::check_repository(repository)?;
        if self.token.is_none() {
            return Err(Error::WriteDenied { url: format!("{}/{repository}", self.endpoint), token: false });
        }
        let mut push = Push {
            repository: repository.into(),
            create: false,
            same: Vec::new(),
            removed: Vec::new(),
            send: Vec::new(),
            parent: None,
        };
        let there = match self.files(repository, "main") {
            Ok(answer) => {
                push.parent = Some(answer.sha);
                answer.siblings
            }
            Err(Error::NotFound { .. }) => {
                push.create = true;
                Vec::new()
            }
            Err(Error::Unauthorised { url, token }) => return Err(Error::WriteDenied { url, token }),
            Err(error) => return Err(error),
        };
        for LocalFile { name, path } in files {
            if !crate::name::is_relative_file(name) {
                return Err(Error::Repository { found: crate::scan::printable(name) });
            }
            let io = |source| Error::Io { path: path.clone(), source };
            let size = std::fs::metadata(path).map_err(io)?.len();
            let etag = there.iter().find(|file| file.rfilename == *name).and_then(|file| file.etag());
            let same = match &etag {
                Some(etag) => digest::of_file(path, etag)?.as_ref() == Some(etag),
                None => false,
            };
            if same {
                push.same.push(name.clone());
                continue;
            }
            let sha256 = digest::sha256(path)?;
            push.send.push(Measured { name: name.clone(), path: path.clone(), size, sha256 });
        }
        let is_weights =
            |name: &str| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
        let here = |name: &str| files.iter().any(|file| file.name == name);
        let names = there.into_iter().map(|file| file.rfilename);
        push.removed = names.filter(|name| is_weights(name) && !here(name)).collect();
        Ok(push)
    }

    /// Does what was planned; returns the commit, or `None` where there was nothing to do.
    ///
    /// # Errors
    /// [`Error::WriteDenied`], [`Error::Hub`], [`Error::Cancelled`], [`Error::Io`]. The repository is then as it was; large files that have
    /// arrived are not sent again by the next push.
    pub fn push(
        &self,
        push: &Push,
        private: bool,
        summary: &str,
        transfer: &dyn Transfer,
    ) -> Result<Option<String>> {
        if push.is_done() {
            return Ok(None);
        }
        let sender = self.sender();
        if push.create {
            let (organisation, name) = push.repository.split_once('/').unwrap_or_default();
            let request =
                json!({"type": "model", "organization": organisation, "name": name, "private": private});
            let url = format!("{}/api/repos/create", self.endpoint);
            // 409: somebody was faster.
            self.insist(|| self.post(&sender, &url, &request, |status| is_success(status) || status == 409))?;
        }
        transfer.expect(push.send.iter().map(|file| file.size).sum());
        let large = self.preupload(&sender, push)?;
        let (large, small): (Vec<_>, Vec<_>) = push.send.iter().partition(|file| large.contains(&file.name));
        for batch in large.chunks(BATCH) {
            self.send_large(&sender, &push.repository, batch, transfer)?;
        }
        let mut header = json!({"summary": summary, "description": ""});
        if let Some(parent) = &push.parent {
            // What somebody else has committed meanwhile is not overwritten: the hub refuses then.
            header["parentCommit"] = parent.as_str().into();
        }
        let mut lines = vec![json!({"key": "header", "value": header})];
        for file in &small {
            if file.size > MOST_REGULAR {
                let url = format!("{}/{}", self.endpoint, push.repository);
                let reason =
                    format!("it wants {} within the commit, at most {MOST_REGULAR} bytes are", file.name);
                return Err(Error::Hub { url, reason });
            }
            let contents = std::fs::read(&file.path);
            let contents = contents.map_err(|source| Error::Io { path: file.path.clone(), source })?;
            let contents = STANDARD.encode(contents);
            let value = json!({"content": contents, "path": file.name, "encoding": "base64"});
            lines.push(json!({"key": "file", "value": value}));
        }
        for file in &large {
            let value = json!({"path": file.name, "algo": "sha256", "oid": file.sha256, "size": file.size});
            lines.push(json!({"key": "lfsFile", "value": value}));
        }
        lines.extend(push.removed.iter().map(|name| json!({"key": "deletedFile", "value": {"path": name}})));
        if transfer.cancelled() {
            return Err(Error::Cancelled);
        }
        let commit = self.commit(&sender, push, &lines)?;
        small.iter().for_each(|file| transfer.at(&file.name, file.size, Some(file.size)));
        Ok(Some(commit))
    }

    /// The names of the files that the hub wants in its large-file storage.
    fn preupload(&self, sender: &ureq::Agent, push: &Push) -> Result<Vec<String>> {
        let url = format!("{}/api/models/{}/preupload/main", self.endpoint, push.repository);
        let mut large = Vec::new();
        for batch in push.send.chunks(BATCH) {
            let mut files = Vec::new();
            for file in batch {
                let sample = STANDARD.encode(first_bytes(&file.path)?);
                files.push(json!({"path": file.name, "size": file.size, "sample": sample}));
            }
            let request = json!({"files": files});
            let response = self.insist(|| self.post(sender, &url, &request, is_success))?;
            let answer = self.json(&url, response)?;
            for file in answer["files"].as_array().into_iter().flatten() {
                if let (Some("lfs"), Some(path)) = (file["uploadMode"].as_str(), file["path"].as_str()) {
                    large.push(path.to_owned());
                }
            }
        }
        Ok(large)
    }

    /// Makes the commit. Where an attempt's answer is lost, it may have been made: the repository is looked at before another.
    fn commit(&self, sender: &ureq::Agent, push: &Push, lines: &[Value]) -> Result<String> {
        let url = format!("{}/api/models/{}/commit/main", self.endpoint, push.repository);
        let body = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let headers = [("content-type", "application/x-ndjson")];
        let mut failed = 0;
        loop {
            match self.deliver(
                sender,
                "POST",
                &url,
                true,
                &headers,
                Payload::Bytes(body.as_bytes()),
                is_success,
            )? {
                Attempt::Answer(response) => {
                    let answer = self.json(&url, response)?;
                    return Ok(answer["commitOid"].as_str().unwrap_or_default().into());
                }
                Attempt::Again(error, asked) => {
                    failed += 1;
                    self.wait(failed, error, asked)?;
                }
            }
            if let Some(commit) = self.holds(push)? {
                return Ok(commit);
            }
        }
    }

    /// The repository's commit, where it holds everything that was to be sent.
    fn holds(&self, push: &Push) -> Result<Option<String>> {
        let answer = self.files(&push.repository, "main")?;
        for file in &push.send {
            let there = answer.siblings.iter().find(|f| f.rfilename == file.name).and_then(|f| f.etag());
            let Some(etag) = there else { return Ok(None) };
            if digest::of_file(&file.path, &etag)? != Some(etag) {
                return Ok(None);
            }
        }
        let gone = |name: &String| answer.siblings.iter().all(|file| file.rfilename != *name);
        Ok(push.removed.iter().all(gone).then_some(answer.sha))
    }
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

fn first_bytes(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(SAMPLE).read_to_end(&mut bytes));
    read.map_err(|source| Error::Io { path: path.into(), source })?;
    Ok(bytes)
}
