//! One file: resumed, checked, and only then called by its name.

use super::{Hub, RemoteFile, client::Attempt, digest, pull::Transfer};
use crate::{Error, Result};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};
use ureq::Agent;

/// Why the body of an answer ended.
enum End {
    /// It was whole, as far as can be told.
    Whole,
    /// The connection broke, or took too long.
    Broken(String),
}

impl Hub {
    /// Brings a file into `blobs/ETAG`, whatever part of it is there already. Processes that want the same file wait for one
    /// another.
    pub(super) fn download(
        &self,
        agent: &Agent,
        dir: &Path,
        url: &str,
        remote: &RemoteFile,
        transfer: &dyn Transfer,
    ) -> Result<()> {
        let blobs = dir.join("blobs");
        let blob = blobs.join(&remote.etag);
        let lock_path = blobs.join(format!("{}.lock", remote.etag));
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::Io { path, source }
        };
        std::fs::create_dir_all(&blobs).map_err(io(&blobs))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(io(&lock_path))?;
        lock.lock().map_err(io(&lock_path))?;
        if blob.is_file() || self.borrow(dir, remote)? {
            transfer.at(&remote.name, remote.size.unwrap_or(0), remote.size);
            return Ok(());
        }
        let part = blobs.join(format!("{}.incomplete", remote.etag));
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&part);
        let file = &mut file.map_err(io(&part))?;
        // A part from before may be damaged, so a wrong digest is forgiven once: then all of it is fetched again.
        let resumed = file.metadata().map_err(io(&part))?.len() > 0;
        for forgiven in [resumed, false] {
            self.fetch(agent, file, &part, url, remote, transfer)?;
            file.sync_all().map_err(io(&part))?;
            match digest::of_file(&part, &remote.etag)? {
                Some(found) if found == remote.etag => break,
                _ if forgiven => file.set_len(0).map_err(io(&part))?,
                found => {
                    let _ = std::fs::remove_file(&part);
                    let (name, expected) = (remote.name.clone(), remote.etag.clone());
                    return Err(Error::Checksum { name, expected, found: found.unwrap_or_default() });
                }
            }
        }
        if let Err(error) = crate::scan::check_file(&remote.name, &part) {
            let _ = std::fs::remove_file(&part);
            return Err(error);
        }
        std::fs::rename(&part, &blob).map_err(io(&blob))
    }

    /// Fetches what is missing of a file.
    fn fetch(
        &self,
        agent: &Agent,
        file: &mut File,
        part: &Path,
        url: &str,
        remote: &RemoteFile,
        transfer: &dyn Transfer,
    ) -> Result<()> {
        let io = |source| Error::Io { path: part.into(), source };
        let mut failed = 0;
        loop {
            let have = file.seek(SeekFrom::End(0)).map_err(io)?;
            match remote.size {
                Some(size) if have == size => return Ok(()),
                Some(size) if have > size => {
                    file.set_len(0).map_err(io)?;
                    continue;
                }
                _ => {}
            }
            let range = (have > 0).then(|| format!("bytes={have}-"));
            let (error, asked) = match self.attempt(agent, url, range.as_deref())? {
                Attempt::Again(error, asked) => (error, asked),
                Attempt::Answer(response) if response.status() == 416 => {
                    // Nothing lies behind what is there. Where it is whole, the digest will say so.
                    if remote.size.is_none() {
                        return Ok(());
                    }
                    file.set_len(0).map_err(io)?;
                    (Error::Hub { url: url.into(), reason: "the hub answers 416".into() }, None)
                }
                Attempt::Answer(response) => {
                    if range.is_some() && !continues(&response, have) {
                        // The whole file again.
                        file.set_len(0).map_err(io)?;
                        file.seek(SeekFrom::Start(0)).map_err(io)?;
                    }
                    let before = file.metadata().map_err(io)?.len();
                    let end = copy(response, file, remote, transfer).map_err(io)?;
                    let now = file.metadata().map_err(io)?.len();
                    if transfer.cancelled() {
                        return Err(Error::Cancelled);
                    }
                    if now > before {
                        failed = 0;
                    }
                    match end {
                        // A file that is too long has another digest, which is looked at next.
                        End::Whole if remote.size.is_none_or(|size| now >= size) => return Ok(()),
                        End::Whole => {
                            (Error::Hub { url: url.into(), reason: "the answer ends early".into() }, None)
                        }
                        End::Broken(reason) => (Error::Hub { url: url.into(), reason }, None),
                    }
                }
            };
            if transfer.cancelled() {
                return Err(Error::Cancelled);
            }
            failed += 1;
            self.wait(failed, error, asked)?;
        }
    }
}

/// Whether an answer goes on at this byte.
fn continues(response: &ureq::http::Response<ureq::Body>, at: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|v| v.to_str().ok());
    let first = range.and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    response.status() == 206 && first == Some(at)
}

/// Appends an answer's body to a file, no more of it than the file should have.
fn copy(
    response: ureq::http::Response<ureq::Body>,
    file: &mut File,
    remote: &RemoteFile,
    transfer: &dyn Transfer,
) -> std::io::Result<End> {
    let mut done = file.stream_position()?;
    // One byte more than there should be is enough to see that it is another file.
    let room = remote.size.map_or(1 << 42, |size| size + 1).saturating_sub(done);
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader().take(room);
    let mut buffer = vec![0; 1 << 18];
    loop {
        if transfer.cancelled() {
            return Ok(End::Whole);
        }
        match body.read(&mut buffer) {
            Ok(0) => return Ok(End::Whole),
            Ok(count) => {
                file.write_all(&buffer[..count])?;
                done += count as u64;
                transfer.at(&remote.name, done, remote.size);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Ok(End::Broken(e.to_string())),
        }
    }
}
