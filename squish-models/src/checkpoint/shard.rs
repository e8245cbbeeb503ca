//! One memory-mapped safetensors file.

use super::{FORMAT, MANIFEST_KEY, Manifest};
use crate::{Error, Result};
use bytes::Bytes;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use std::{
    collections::HashMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Tensors of a file, at most; a model of a hundred blocks has some thousands.
const MOST_TENSORS: usize = 200_000;
/// Bytes of a tensor's name.
const MOST_NAME: usize = 1024;
/// Dimensions of a tensor.
const MOST_DIMENSIONS: usize = 8;

/// A mapped file whose header has been checked: every tensor lies inside the file, without holes.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Arc<Mmap>,
    bytes: Bytes,
    /// Where the tensors' bytes begin.
    data: usize,
    metadata: Metadata,
}

/// A tensor in a shard.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Bytes of the file.
    pub range: Range<usize>,
}

/// The mapping as the owner of shared bytes.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// What the library's parser does not bound.
fn check_bounds(metadata: &Metadata) -> Result<(), String> {
    let tensors = metadata.tensors();
    if tensors.len() > MOST_TENSORS {
        return Err(format!("{} tensors, at most {MOST_TENSORS} are read", tensors.len()));
    }
    for (name, info) in tensors {
        if name.len() > MOST_NAME {
            return Err(format!("a tensor's name of {} bytes, at most {MOST_NAME} are read", name.len()));
        }
        if info.shape.len() > MOST_DIMENSIONS {
            let count = info.shape.len();
            return Err(format!(
                "tensor `{name}` has {count} dimensions, at most {MOST_DIMENSIONS} are read"
            ));
        }
    }
    Ok(())
}

impl Shard {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Safetensors`], or [`Error::Config`] for more tensors, longer names or more dimensions than any
    /// model has.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.into(), source };
        // Looked at before it is opened: opening a pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is read-only and private. As with every memory-mapped weights file, another
        // process that truncates it while it is in use ends this one; weights files are not edited in place.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|source| Error::Safetensors { path: path.into(), source })?;
        check_bounds(&metadata).map_err(|reason| Error::Config { path: path.into(), reason })?;
        let bytes = Bytes::from_owner(Owner(map.clone()));
        Ok(Self { path: path.into(), data: size_of::<u64>() + header, map, bytes, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The tensors of the file.
    pub fn entries(&self) -> HashMap<String, Entry> {
        let entry = |info: &safetensors::tensor::TensorInfo| {
            let (start, end) = info.data_offsets;
            Entry { dtype: info.dtype, shape: info.shape.clone(), range: self.data + start..self.data + end }
        };
        self.metadata.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect()
    }

    /// The squish manifest, if the file has one.
    ///
    /// # Errors
    /// [`Error::Config`] when it cannot be parsed, [`Error::Format`] for an unknown version.
    pub fn manifest(&self) -> Result<Option<Manifest>> {
        let Some(text) = self.metadata.metadata().as_ref().and_then(|m| m.get(MANIFEST_KEY)) else {
            return Ok(None);
        };
        let refuse = |e: serde_json::Error| Error::Config {
            path: self.path.clone(),
            reason: format!("the `{MANIFEST_KEY}` metadata is malformed: {e}"),
        };
        // The version decides how the rest reads, so it is looked at first.
        #[derive(serde::Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_str(text).map_err(refuse)?;
        if format != FORMAT {
            return Err(Error::Format { path: self.path.clone(), found: format, supported: FORMAT });
        }
        serde_json::from_str(text).map(Some).map_err(refuse)
    }

    /// A tensor's bytes, shared with the mapping.
    pub fn bytes(&self, entry: &Entry) -> Bytes {
        self.bytes.slice(entry.range.clone())
    }

    /// Tells the system that the pages of these bytes are not needed for now, so that a tool which reads a
    /// large file once does not keep it in memory. The bytes stay readable.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            /// A multiple of the page size of every system this runs on.
            const PAGE: usize = 1 << 16;
            let start = range.start / PAGE * PAGE;
            let end = range.end.min(self.bytes.len()) / PAGE * PAGE;
            if start < end {
                // SAFETY: the mapping is a read-only view of a file, so dropped pages are read back from it
                // with the same contents. Failing is harmless: the advice is not taken.
                let _ = unsafe {
                    self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
                };
            }
        }
        #[cfg(not(unix))]
        let _ = (range, &self.map);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(header: &str) -> Result<Shard> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(&path, bytes).unwrap();
        Shard::open(&path)
    }

    #[test]
    fn headers_beyond_any_models_are_refused() {
        let tensor = |name: &str, shape: &str| {
            format!(r#""{name}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,0]}}"#)
        };
        assert!(open(&format!("{{{}}}", tensor("a", "0"))).is_ok());
        let long = tensor(&"n".repeat(MOST_NAME + 1), "0");
        let deep = tensor("a", &["0"; MOST_DIMENSIONS + 1].join(","));
        let many: Vec<_> = (0..=MOST_TENSORS).map(|i| tensor(&i.to_string(), "0")).collect();
        for (header, words) in [(long, "name of"), (deep, "dimensions"), (many.join(","), "tensors")] {
            let error = open(&format!("{{{header}}}")).unwrap_err();
            assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(words), "{error}");
        }
        for header in ["", "{", "[]", &"[".repeat(100_000), &format!("{{\"a\":{}", "{\"a\":".repeat(100_000))]
        {
            assert!(matches!(open(header), Err(Error::Safetensors { .. })));
        }
    }
}
