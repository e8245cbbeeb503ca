//! Files and directories on disk.

use super::{Contents, Danger, Finding, Role, content, extension, printable, scan_bytes};
use crate::{Error, Result};
use serde::Serialize;
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

/// Bytes of a file that is not safetensors that are read at most.
const MOST_READ: u64 = 1 << 30;
/// Bytes at the end of a weights file that are looked through for an archive's end record.
const TAIL: u64 = 1 << 20;
/// Files of a directory that are looked at, at most.
const MOST_FILES: usize = 10_000;
/// Folders within folders.
const MOST_FOLDERS: usize = 16;

/// What a scan found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Each file that was looked at, with what the loader takes it for.
    pub files: Vec<(String, Role)>,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_safe(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, name: String, contents: Contents) {
        self.files.push((name, contents.role));
        self.findings.extend(contents.findings);
    }
}

/// Scans a file, or every file below a directory.
///
/// # Errors
/// [`Error::Io`] where something cannot be read.
pub fn scan_path(path: &Path) -> Result<Report> {
    let mut report = Report::default();
    let metadata = std::fs::metadata(path).map_err(|source| Error::Io { path: path.into(), source })?;
    if metadata.is_dir() {
        walk(path, "", 0, &mut report)?;
    } else {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let contents = scan_file(&name, path)?;
        report.add(printable(&name), contents);
    }
    Ok(report)
}

fn walk(dir: &Path, prefix: &str, depth: usize, report: &mut Report) -> Result<()> {
    let io = |source| Error::Io { path: dir.into(), source };
    let mut entries: Vec<_> =
        std::fs::read_dir(dir).map_err(io)?.collect::<std::io::Result<_>>().map_err(io)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let bounds = report.files.len() >= MOST_FILES || depth >= MOST_FOLDERS;
        let kind = std::fs::metadata(entry.path());
        if bounds {
            let detail = format!("more than {MOST_FILES} files or {MOST_FOLDERS} levels of folders");
            report.findings.push(Finding {
                file: printable(&name),
                danger: Danger::Bounds,
                detail,
                globals: vec![],
            });
            return Ok(());
        }
        if kind.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
            // A link to a folder may lead in circles, and belongs to no checkpoint.
            if !entry.file_type().map_err(io)?.is_symlink() {
                walk(&entry.path(), &format!("{name}/"), depth + 1, report)?;
            }
        } else {
            let contents = scan_file(&name, &entry.path())?;
            report.add(printable(&name), contents);
        }
    }
    Ok(())
}

/// Scans one file as if it had the path `name` in a repository. Of a weights file only the header and the end are
/// read.
///
/// # Errors
/// [`Error::Io`].
pub fn scan_file(name: &str, path: &Path) -> Result<Contents> {
    let io = |source| Error::Io { path: path.into(), source };
    // Looked at before it is opened: opening a pipe would wait for a writer.
    let length = match std::fs::metadata(path).map_err(io)? {
        m if m.is_file() => m.len(),
        _ => {
            let detail = "not a regular file".into();
            let finding =
                Finding { file: printable(name), danger: Danger::Mismatch, detail, globals: vec![] };
            return Ok(Contents { role: Role::Ignored, findings: vec![finding] });
        }
    };
    let mut file = File::open(path).map_err(io)?;
    if extension(name) == "safetensors" && length > 2 * TAIL {
        return weights(name, &mut file, length).map_err(io);
    }
    if length > MOST_READ {
        return large(name, &mut file, length).map_err(io);
    }
    let mut bytes = Vec::new();
    file.take(MOST_READ).read_to_end(&mut bytes).map_err(io)?;
    Ok(scan_bytes(name, &bytes))
}

/// Refuses a file in which anything is wrong.
pub(crate) fn check_file(name: &str, path: &Path) -> Result<()> {
    match scan_file(name, path)?.findings.into_iter().next() {
        Some(finding) => Err(Error::Unsafe { what: finding.file, reason: finding.detail }),
        None => Ok(()),
    }
}

fn weights(name: &str, file: &mut File, length: u64) -> std::io::Result<Contents> {
    let mut bytes = vec![0; 8];
    file.read_exact(&mut bytes)?;
    let header = u64::from_le_bytes(bytes[..].try_into().expect("eight bytes"));
    let header = header.min(content::MOST_HEADER_BYTES as u64 + 1).min(length - 8);
    Read::take(&mut *file, header).read_to_end(&mut bytes)?;
    let file_bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if content::safetensors(&bytes, file_bytes).is_err() {
        // What it is instead shows in its beginning.
        let mut contents = scan_bytes(name, &bytes);
        if contents.findings.is_empty() {
            contents.findings.push(mismatch(name, "not safetensors"));
        }
        return Ok(contents);
    }
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(length - TAIL))?;
    file.read_to_end(&mut tail)?;
    let mut contents = Contents { role: Role::Safetensors, findings: Vec::new() };
    if super::zip::Archive::open(&tail).is_some() {
        contents.findings.push(mismatch(name, "ends as a zip archive, which its name does not say"));
    }
    Ok(contents)
}

/// A file that is not what its name says.
fn mismatch(name: &str, detail: &str) -> Finding {
    Finding { file: printable(name), danger: Danger::Mismatch, detail: detail.into(), globals: vec![] }
}

/// A large file of another kind is never loaded: it is known by its beginning, or refused.
fn large(name: &str, file: &mut File, length: u64) -> std::io::Result<Contents> {
    let mut head = Vec::new();
    Read::take(&mut *file, TAIL).read_to_end(&mut head)?;
    let mut contents = scan_bytes(name, &head);
    if contents.findings.is_empty() && (contents.role != Role::Ignored || super::is_never_fetched(name)) {
        contents.findings.push(Finding {
            file: printable(name),
            danger: Danger::Bounds,
            detail: format!("{length} bytes, at most {MOST_READ} are looked through"),
            globals: vec![],
        });
    }
    Ok(contents)
}

/// Whether bytes begin as the header of a weights file of this length does; the header itself is left to its reader.
pub(super) fn is_header(head: &[u8], length: u64) -> bool {
    let Some((bytes, text)) = head.split_first_chunk::<8>() else { return false };
    let header = u64::from_le_bytes(*bytes);
    header <= content::MOST_HEADER_BYTES as u64
        && header.saturating_add(8) <= length
        && text.starts_with(b"{")
}
