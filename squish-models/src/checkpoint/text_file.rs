//! The JSON and text files of a checkpoint: read within bounds, since they come from elsewhere.

use std::{
    fs::File,
    io::{Error, Read, Result},
    path::Path,
};

/// Bytes of a JSON or text file, at most; the longest tokenizers have some tens of megabytes.
pub const MOST_BYTES: u64 = 256 << 20;

/// The bytes of a regular file of at most [`MOST_BYTES`].
///
/// # Errors
/// Where it cannot be read, is no regular file (a pipe would wait for a writer), or is longer.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    // A file may grow between the two calls.
    let read = File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if read as u64 > MOST_BYTES {
        return Err(Error::other(format!("more than the {MOST_BYTES} bytes that are read of such a file")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert_eq!(read(&path).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(read(&path).unwrap(), b"{}");
        assert!(read(dir.path()).unwrap_err().to_string().contains("regular"));
        // A sparse file: no byte of it is written.
        File::create(&path).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("more than"));
    }
}
