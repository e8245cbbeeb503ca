//! A look at the beginning and the end of the files that a loader opens: cheap enough for every start.

use super::{Finding, content, path, pickle::Pickle, printable, zip::Archive};
use crate::{Error, Result};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

/// The files beside the weights that a loader opens.
pub const OPENED: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];
/// Bytes of a file's beginning and of its end that are read.
const READ: u64 = 1 << 16;
/// Weights files of a directory that are looked at; an index names no more in any real checkpoint.
const MOST_WEIGHTS: usize = 10_000;

/// Refuses a checkpoint directory in which a file that a loader would open is plainly something else: a pickle, an archive, a
/// program, or longer than any loader reads. What is within the bounds is judged by the parsers themselves;
/// [`scan_path`](super::scan_path) reads every byte.
///
/// # Errors
/// [`Error::Unsafe`], which names the file; [`Error::Io`], also for what is no regular file.
pub fn glance(dir: &Path) -> Result<()> {
    for name in OPENED {
        let file = dir.join(name);
        if std::fs::symlink_metadata(&file).is_ok() {
            judge(&file, look(name, &file)?)?;
        }
    }
    let entries = std::fs::read_dir(dir).map_err(|source| Error::Io { path: dir.into(), source })?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    for name in names.filter(|name| name.ends_with(".safetensors")).take(MOST_WEIGHTS) {
        let file = dir.join(&name);
        judge(&file, look(&name, &file)?)?;
    }
    Ok(())
}

fn judge(path: &Path, reason: Option<String>) -> Result<()> {
    match reason {
        Some(reason) => Err(Error::Unsafe { what: printable(&path.display().to_string()), reason }),
        None => Ok(()),
    }
}

/// Why a file is refused.
fn look(name: &str, path: &Path) -> Result<Option<String>> {
    let io = |source| Error::Io { path: path.into(), source };
    // Looked at before it is opened: opening a pipe would wait for a writer.
    let length = match std::fs::metadata(path) {
        Ok(m) if m.is_file() => m.len(),
        Ok(_) => return Err(io(std::io::Error::other("not a regular file"))),
        Err(e) => return Err(io(e)),
    };
    let weights = name.ends_with(".safetensors");
    if !weights && length > content::MOST_JSON_BYTES as u64 {
        return Ok(Some(format!("{length} bytes, at most {} are read", content::MOST_JSON_BYTES)));
    }
    let mut file = File::open(path).map_err(io)?;
    let mut head = Vec::new();
    Read::take(&mut file, READ).read_to_end(&mut head).map_err(io)?;
    let mut tail = Vec::new();
    if length > READ {
        file.seek(SeekFrom::Start(length - READ.min(length))).map_err(io)?;
        Read::take(&mut file, READ).read_to_end(&mut tail).map_err(io)?;
    }
    let end = if tail.is_empty() { &head } else { &tail };
    // The length of a weights file's header may look like a pickle's first bytes, or a program's.
    if weights && path::is_header(&head, length) {
        let zip = Archive::open(end).is_some();
        return Ok(zip.then(|| "ends as a zip archive, which its name does not say".into()));
    }
    if let Some(pickle) = Pickle::detect(&head, weights) {
        return Ok(Some(content::describe(&pickle)));
    }
    if Archive::open(&head).or_else(|| Archive::open(end)).is_some() {
        return Ok(Some("holds a zip archive, which its name does not say".into()));
    }
    let mut findings: Vec<Finding> = Vec::new();
    content::other(name, name, &head, "", 0, &mut findings);
    Ok(findings.into_iter().next().map(|finding| finding.detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, bytes: &[u8]) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), bytes).unwrap();
        match glance(dir.path()) {
            Ok(()) => None,
            Err(Error::Unsafe { reason, .. }) => Some(reason),
            Err(e) => panic!("{e}"),
        }
    }

    fn weights(data: usize) -> Vec<u8> {
        let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{data}],"data_offsets":[0,{data}]}}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + data, 0x80);
        bytes
    }

    #[test]
    fn what_is_plainly_something_else_is_refused() {
        let pickle = b"\x80\x04cposix\nsystem\n.";
        for name in ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"] {
            assert!(refused(name, pickle).unwrap().contains("posix.system"), "{name}");
            assert!(refused(name, b"\x7fELF\x02\x01\x01\0\0\0").is_some(), "{name}");
            assert!(refused(name, b"PK\x03\x04\0\0\0\0").is_some(), "{name}");
            assert!(refused(name, b"\x1f\x8b\x08\0").is_some(), "{name}");
        }
        let end = b"PK\x01\x02\0\0\0\0PK\x05\x06\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0";
        let mut zipped = weights(1 << 20);
        let length = zipped.len();
        zipped[length - end.len()..].copy_from_slice(end);
        assert!(refused("model.safetensors", &zipped).unwrap().contains("zip"));
    }

    #[test]
    fn what_loaders_open_passes() {
        assert_eq!(refused("model.safetensors", &weights(1 << 20)), None);
        assert_eq!(refused("model-00001-of-00002.safetensors", &weights(0x8002)), None);
        for text in ["{\"a\": 1}", " [1]", "", "(", "not JSON at all"] {
            assert_eq!(refused("config.json", text.as_bytes()), None, "{text}");
        }
        // Other files do not count, however many they are.
        let dir = tempfile::tempdir().unwrap();
        (0..=MOST_WEIGHTS).for_each(|i| drop(File::create(dir.path().join(i.to_string())).unwrap()));
        std::fs::write(dir.path().join("model.safetensors"), b"\x80\x02N.").unwrap();
        assert!(glance(dir.path()).is_err());
        // Beside them lies what no loader opens: another tool's business, and the scanner's.
        assert_eq!(refused("pytorch_model.bin", b"\x80\x04cposix\nsystem\n."), None);
    }

    #[test]
    #[cfg(unix)]
    fn neither_pipes_nor_folders_nor_dangling_links_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("config.json")).unwrap();
        assert!(matches!(glance(dir.path()), Err(Error::Io { .. })));
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("tokenizer.json")).unwrap();
        assert!(matches!(glance(dir.path()), Err(Error::Io { .. })));
    }
}
