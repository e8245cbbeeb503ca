//! The digest that a hub states for a file: SHA-256 for large files, git's blob hash for others.

use crate::{Error, Result};
use sha2::Digest as _;
use std::{io::Read, path::Path};

/// The SHA-256 of a file.
pub fn sha256(path: &Path) -> Result<String> {
    of_file(path, &"0".repeat(64)).map(Option::unwrap_or_default)
}

/// Hashes a file as the hub's `etag` of 64 or 40 hexadecimal digits was made; `None` for an etag of another kind.
pub fn of_file(path: &Path, etag: &str) -> Result<Option<String>> {
    let io = |source| Error::Io { path: path.into(), source };
    if !etag.bytes().all(|b| b.is_ascii_hexdigit()) || !matches!(etag.len(), 40 | 64) {
        return Ok(None);
    }
    let mut file = std::fs::File::open(path).map_err(io)?;
    let (mut sha256, mut sha1) = (sha2::Sha256::new(), sha1::Sha1::new());
    sha1.update(format!("blob {}\0", file.metadata().map_err(io)?.len()));
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).map_err(io)?;
        if count == 0 {
            break;
        }
        if etag.len() == 64 { sha256.update(&buffer[..count]) } else { sha1.update(&buffer[..count]) }
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    Ok(Some(if etag.len() == 64 { hex(&sha256.finalize()) } else { hex(&sha1.finalize()) }))
}
