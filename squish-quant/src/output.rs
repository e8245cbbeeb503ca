//! Output that appears complete or not at all.
//!
//! A squished checkpoint is written into a hidden directory beside its destination, synced, and renamed.
//! Its weights files are written in place: the layout is known before the first weight is
//! encoded, so parts go to their final offsets as they come, and memory holds one chunk at a time.

use crate::{Error, Result};
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Alignment of the first tensor, and of every tensor whose size is a multiple of it: a cache line.
const ALIGNMENT: usize = 64;

/// Attaches a path to an I/O error.
pub fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.into(), source }
}

/// A directory under construction. Dropped without [`OutputDir::finish`], it is removed, or kept for a later call to go on with.
#[derive(Debug)]
pub struct OutputDir {
    destination: PathBuf,
    work: Work,
}

/// Where a directory is made.
#[derive(Debug)]
enum Work {
    Temporary(TempDir),
    Kept(PathBuf),
}

impl OutputDir {
    /// Begins a directory that is to appear at `destination`, which must be absent or empty, on a disk with
    /// `needed` bytes free.
    ///
    /// # Errors
    /// [`Error::OutputNotEmpty`], [`Error::DiskFull`] or [`Error::Io`].
    pub fn create(destination: &Path, needed: u64) -> Result<Self> {
        let (destination, parent) = free_target(destination)?;
        check_space(&parent, needed, fs4::available_space(&parent).map_err(io_error(&parent))?)?;
        let name = destination.file_name().unwrap_or_default().to_string_lossy();
        let work = tempfile::Builder::new()
            .prefix(&format!(".{name}.partial-"))
            .tempdir_in(&parent)
            .map_err(io_error(&parent))?;
        Ok(Self { destination, work: Work::Temporary(work) })
    }

    /// Begins a directory that is to appear at `destination`, or goes on with it: until it is finished it is `work`, on the same disk,
    /// and stays there.
    ///
    /// # Errors
    /// [`Error::OutputNotEmpty`] or [`Error::Io`].
    pub fn resume(destination: &Path, work: &Path) -> Result<Self> {
        let (destination, _) = free_target(destination)?;
        fs::create_dir_all(work).map_err(io_error(work))?;
        Ok(Self { destination, work: Work::Kept(work.into()) })
    }

    /// The directory to write into.
    pub fn path(&self) -> &Path {
        match &self.work {
            Work::Temporary(dir) => dir.path(),
            Work::Kept(path) => path,
        }
    }

    /// Writes a whole small file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<()> {
        let path = self.path().join(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(contents)?;
            file.sync_all()
        };
        write().map_err(io_error(&path))
    }

    /// Syncs the directory and renames it to its destination.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        let path = self.path().to_path_buf();
        let Self { destination, work } = self;
        let publish = |work: &Path| {
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                // Temporary directories are private; the result is as readable as any other.
                fs::set_permissions(work, fs::Permissions::from_mode(0o755))?;
                File::open(work)?.sync_all()?;
            }
            #[cfg(not(unix))]
            if destination.exists() {
                fs::remove_dir(&destination)?;
            }
            fs::rename(work, &destination)?;
            // The new name is an entry of the parent directory, which has to reach the disk too.
            #[cfg(unix)]
            if let Some(parent) = work.parent() {
                File::open(parent)?.sync_all()?;
            }
            Ok(())
        };
        publish(&path).map_err(io_error(&destination))?;
        // The directory has moved: there is nothing left to remove.
        if let Work::Temporary(work) = work {
            let _ = work.keep();
        }
        Ok(())
    }
}

/// The path of an output that is absent or empty, and its parent directory, which is made where it is missing.
fn free_target(destination: &Path) -> Result<(PathBuf, PathBuf)> {
    let destination = rename_target(destination)?;
    match fs::read_dir(&destination) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(Error::OutputNotEmpty(destination));
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(io_error(&destination)(e)),
    }
    let parent = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).map_err(io_error(&parent))?;
    Ok((destination, parent))
}

/// The path that a directory can be renamed to: with a name at its end, and no link to a directory.
fn rename_target(destination: &Path) -> Result<PathBuf> {
    // `.`, `..` and `/` cannot be replaced. Found out only at the end, that would cost all the work.
    if destination.file_name().is_none() {
        let source = std::io::Error::other("the output directory must end in a name of its own");
        return Err(io_error(destination)(source));
    }
    // The components leave out what may follow the name: a slash, a dot.
    let path: PathBuf = destination.components().collect();
    if path.is_symlink() { fs::canonicalize(&path).map_err(io_error(destination)) } else { Ok(path) }
}

pub(crate) fn check_space(dir: &Path, needed: u64, available: u64) -> Result<()> {
    if needed <= available { Ok(()) } else { Err(Error::DiskFull { dir: dir.into(), needed, available }) }
}

/// The padded length of a safetensors header of this many bytes: the tensors after it begin on a cache line.
pub(crate) fn header_length(bytes: usize) -> usize {
    (8 + bytes).next_multiple_of(ALIGNMENT) - 8
}

/// A tensor of a weights file.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Bytes.
    pub bytes: usize,
}

/// A safetensors file whose tensors are written in any order, at their final places.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    file: File,
    header: Map<String, Value>,
    header_bytes: usize,
    file_bytes: u64,
    /// Offset of a tensor in the file, and its length.
    places: HashMap<String, (usize, usize)>,
}

impl WeightsFile {
    /// Bytes of a file with these tensors and this much metadata, at most.
    pub fn size(tensors: &[Stored], metadata: &Map<String, Value>) -> usize {
        let header: usize = tensors.iter().map(|t| t.name.len() + 160).sum();
        let metadata = Value::Object(metadata.clone()).to_string().len();
        tensors.iter().map(|t| t.bytes).sum::<usize>() + header + metadata + 2 * ALIGNMENT
    }

    /// Creates a file with room for these tensors. `metadata` is a placeholder that reserves the header's
    /// length: what [`WeightsFile::finish`] writes must not be longer. A file that is there already keeps the bytes of its tensors, for
    /// the same layout to go on with.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path, mut tensors: Vec<Stored>, metadata: &Map<String, Value>) -> Result<Self> {
        // Tensors of whole cache lines come first, so that each begins on one; the rest in order of their
        // elements' sizes, so that elements are aligned. Then by name: the same input gives the same file.
        tensors.sort_by_key(|t| {
            let whole = t.bytes.is_multiple_of(ALIGNMENT);
            (!whole, std::cmp::Reverse(if whole { 0 } else { t.dtype.bitsize() }), t.name.clone())
        });
        let mut header = Map::new();
        header.insert("__metadata__".into(), Value::Object(metadata.clone()));
        let mut places = HashMap::new();
        let mut end = 0;
        for Stored { name, dtype, shape, bytes } in tensors {
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes]});
            header.insert(name.clone(), entry);
            places.insert(name, (end, bytes));
            end += bytes;
        }
        let length = Value::Object(header.clone()).to_string().len();
        let header_bytes = header_length(length);
        places.values_mut().for_each(|(offset, _)| *offset += 8 + header_bytes);
        let file_bytes = (8 + header_bytes + end) as u64;
        let create = || {
            let file = File::options().create(true).truncate(false).write(true).open(path)?;
            file.set_len(file_bytes)?;
            Ok(file)
        };
        let file = create().map_err(io_error(path))?;
        Ok(Self { path: path.into(), file, header, header_bytes, file_bytes, places })
    }

    /// Bytes of the whole file, now and when it is finished.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Writes bytes of a tensor, `offset` bytes after its beginning.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// When there is no such tensor or the bytes do not fit into it: the caller made the layout.
    pub fn write(&mut self, tensor: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        let (start, length) = self.places[tensor];
        assert!(offset + bytes.len() <= length, "{tensor}: bytes beyond its end");
        self.write_at(start + offset, bytes).map_err(io_error(&self.path))
    }

    fn write_at(&mut self, offset: usize, bytes: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(offset as u64))?;
        self.file.write_all(bytes)
    }

    /// Makes sure that what has been written is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(io_error(&self.path))
    }

    /// Writes the header with the final metadata, and syncs the file.
    ///
    /// # Errors
    /// [`Error::Io`], also when the metadata is longer than what was reserved.
    pub fn finish(mut self, metadata: Map<String, Value>) -> Result<()> {
        self.header.insert("__metadata__".into(), Value::Object(metadata));
        let mut bytes = (self.header_bytes as u64).to_le_bytes().to_vec();
        bytes.extend(Value::Object(std::mem::take(&mut self.header)).to_string().into_bytes());
        if bytes.len() > 8 + self.header_bytes {
            let source = std::io::Error::other("the metadata outgrew the room reserved for it");
            return Err(Error::Io { path: self.path, source });
        }
        // A safetensors header may end in spaces.
        bytes.resize(8 + self.header_bytes, b' ');
        self.write_at(0, &bytes).and_then(|()| self.file.sync_all()).map_err(io_error(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_is_refused_before_anything_is_written() {
        let error = check_space(Path::new("out"), 1001, 1000).unwrap_err().to_string();
        assert_eq!(error, "out: not enough disk space: 1001 bytes are needed, 1000 are free");
        let dir = tempfile::tempdir().unwrap();
        let refused = OutputDir::create(&dir.path().join("out"), u64::MAX).unwrap_err();
        assert!(matches!(refused, Error::DiskFull { .. }));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_dropped_directory_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let destination = dir.path().join("a/out");
        let output = OutputDir::create(&destination, 10).unwrap();
        output.write("config.json", b"{}").unwrap();
        drop(output);
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 0);

        let output = OutputDir::create(&destination, 10).unwrap();
        output.write("config.json", b"{}").unwrap();
        output.finish().unwrap();
        assert_eq!(fs::read(destination.join("config.json")).unwrap(), b"{}");
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
        assert!(matches!(OutputDir::create(&destination, 10), Err(Error::OutputNotEmpty(_))));
    }

    #[test]
    fn files_are_aligned_and_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.safetensors");
        let stored =
            |name: &str, dtype, shape: Vec<usize>, bytes| Stored { name: name.into(), dtype, shape, bytes };
        let tensors = vec![
            stored("a", Dtype::U8, vec![3], 3),
            stored("b", Dtype::F16, vec![5], 10),
            stored("c", Dtype::U8, vec![128], 128),
        ];
        let metadata = |value: &str| Map::from_iter([("k".to_string(), Value::from(value))]);
        let mut file = WeightsFile::create(&path, tensors, &metadata("placeholder")).unwrap();
        let file_bytes = file.file_bytes();
        file.write("c", 64, &[7; 64]).unwrap();
        file.write("a", 0, &[1, 2, 3]).unwrap();
        file.finish(metadata("short")).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, file_bytes);
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("a").unwrap().data(), [1, 2, 3]);
        assert_eq!(read.tensor("c").unwrap().data()[63..65], [0, 7]);
        assert_eq!((bytes.len() - 141) % ALIGNMENT, 0);
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["k"], "short");
        assert_eq!(header.info("c").unwrap().data_offsets, (0, 128));

        let file = WeightsFile::create(&path, vec![], &metadata("short")).unwrap();
        assert!(file.finish(metadata(&"long".repeat(99))).unwrap_err().to_string().contains("outgrew"));
    }
}
