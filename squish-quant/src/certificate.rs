//! Writing certificates: what was read is named by its hash, and measurements go into the checkpoint's own file.
//!
//! The file is never changed in place: a new one with the longer header is written beside it, synced, and renamed
//! over it. Whoever has the old one mapped keeps it.

use crate::{
    Error, Result, inspect,
    output::{check_space, header_length, io_error},
};
use serde_json::{Map, Number, Value, json};
use sha2::{Digest, Sha256};
use squish_kernels::scheme;
use squish_models::{
    Checkpoint,
    checkpoint::{Certificate, MANIFEST_KEY, Measurement, Source},
};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// Name and version of this tool.
pub const TOOL: &str = concat!("squish-quant ", env!("CARGO_PKG_VERSION"));

/// What decides on the bytes that this tool makes of the same input: its version, and those of the schemes' layouts.
pub fn maker() -> Value {
    let schemes: Map<_, _> =
        scheme::ALL.iter().map(|scheme| (scheme.name().into(), scheme.version().into())).collect();
    json!({"tool": TOOL, "schemes": schemes})
}

/// Names a file by its bytes.
///
/// # Errors
/// [`Error::Io`].
pub fn hash_file(path: &Path) -> Result<Source> {
    let hash = || {
        let (mut file, mut hasher) = (File::open(path)?, Sha256::new());
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hexadecimal(hasher)),
                n => hasher.update(&buffer[..n]),
            }
        }
    };
    Ok(Source { name: last_component(path), sha256: hash().map_err(io_error(path))? })
}

/// Names bytes that are in no file, such as text that a model wrote.
pub fn hash_bytes(name: &str, bytes: &[u8]) -> Source {
    Source { name: name.into(), sha256: hexadecimal(Sha256::new_with_prefix(bytes)) }
}

/// Names a checkpoint by its configuration and its weights: the SHA-256 of what
/// `sha256sum config.json model*.safetensors` prints in its directory, one line a file.
///
/// # Errors
/// [`Error::Io`].
pub fn hash_checkpoint(checkpoint: &Checkpoint) -> Result<Source> {
    let weights = checkpoint.shards().iter().map(|shard| shard.path().to_path_buf());
    let files = std::iter::once(checkpoint.config_path()).chain(weights);
    let hashed = files.map(|path| hash_file(&path).map(|file| (file.sha256, file.name)));
    Ok(hash_files(checkpoint.dir(), hashed.collect::<Result<Vec<_>>>()?))
}

/// As [`hash_checkpoint`], from the SHA-256 and the name of each file.
pub(crate) fn hash_files(dir: &Path, files: impl IntoIterator<Item = (String, String)>) -> Source {
    let mut lines = String::new();
    for (sha256, name) in files {
        let _ = writeln!(lines, "{sha256}  {name}");
    }
    hash_bytes(&last_component(dir), lines.as_bytes())
}

fn hexadecimal(hasher: Sha256) -> String {
    hasher.finalize().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// The last component of a path as it is written, which in a cache may be a link to a file named by its digest; that of what it
/// leads to where it ends in `..`.
fn last_component(path: &Path) -> String {
    let resolved = path.canonicalize();
    let named = path.file_name().or(resolved.as_deref().ok().and_then(Path::file_name));
    named.unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The numbers of a measurement, from its JSON object: all but the time it took, and what is absent.
pub fn numbers(measured: &Value) -> BTreeMap<String, Number> {
    let fields = measured.as_object().into_iter().flatten();
    let numbers = fields.filter(|(name, _)| *name != "seconds").filter_map(|(name, value)| match value {
        Value::Number(number) => Some((name.clone(), number.clone())),
        _ => None,
    });
    numbers.collect()
}

/// A squished checkpoint whose certificate is to get measurements.
#[derive(Debug)]
pub struct Certifier {
    checkpoint: Checkpoint,
    /// The first weights file, links resolved.
    path: PathBuf,
    /// Its successor, beside it; removed if nothing comes of it.
    file: NamedTempFile,
}

impl Certifier {
    /// Opens a squished checkpoint and makes sure that its directory can be written to, before anything long is
    /// measured.
    ///
    /// # Errors
    /// [`Error::NotSquished`], [`Error::DiskFull`], [`Error::Io`], or what opening a checkpoint says.
    pub fn open(dir: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        if checkpoint.manifest().is_none() {
            return Err(Error::NotSquished(dir.into()));
        }
        let shard = &checkpoint.shards()[0];
        let path = shard.path().canonicalize().map_err(io_error(shard.path()))?;
        let parent = path.parent().unwrap_or(Path::new("."));
        let available = fs4::available_space(parent).map_err(io_error(parent))?;
        // The header grows by some kilobytes at most.
        check_space(parent, shard.file_bytes() as u64 + (1 << 20), available)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let file = tempfile::Builder::new().prefix(&format!(".{name}.partial-")).tempfile_in(parent);
        let file = file.map_err(io_error(parent))?;
        Ok(Self { checkpoint, path, file })
    }

    /// The checkpoint's certificate as it is; one that only counts bytes where there is none.
    ///
    /// # Errors
    /// As [`inspect()`].
    pub fn certificate(&self) -> Result<Certificate> {
        if let Some(certificate) = self.checkpoint.certificate() {
            return Ok(certificate.clone());
        }
        let inspection = inspect(self.checkpoint.dir())?;
        Ok(Certificate::new(inspection.parameters as u64, inspection.file_bytes as u64))
    }

    /// Makes sure that this is the checkpoint that was compressed, where the certificate names one.
    ///
    /// # Errors
    /// [`Error::OtherOriginal`].
    pub fn check_original(&self, against: &Source) -> Result<()> {
        match self.checkpoint.certificate().and_then(|c| c.original.as_ref()) {
            Some(original) if original.sha256 != against.sha256 => Err(Error::OtherOriginal {
                path: self.path.clone(),
                original: original.name.clone(),
                against: against.name.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Writes the certificate with these measurements into the first weights file, whose bytes it counts anew.
    /// Each replaces an earlier one of the same kind on the same data.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::OtherOriginal`] when a measurement compares with another checkpoint than the one
    /// that was compressed. The file is then as it was.
    pub fn finish(self, measurements: impl IntoIterator<Item = Measurement>) -> Result<Certificate> {
        let mut certificate = self.certificate()?;
        for measurement in measurements {
            measurement.against.iter().try_for_each(|against| self.check_original(against))?;
            certificate.add(measurement);
        }
        let Self { checkpoint, path, file } = self;
        let others: u64 = checkpoint.shards()[1..].iter().map(|shard| shard.file_bytes() as u64).sum();
        // Some systems do not rename over a mapped file.
        drop(checkpoint);
        let write = || rewrite(&path, file, &mut certificate, others);
        write().map_err(io_error(&path))?;
        Ok(certificate)
    }
}

/// Replaces the certificate in a weights file, which `file` becomes. `others` are the bytes of the other files.
fn rewrite(
    path: &Path,
    mut file: NamedTempFile,
    certificate: &mut Certificate,
    others: u64,
) -> std::io::Result<()> {
    let mut source = File::open(path)?;
    let mut length = [0; 8];
    source.read_exact(&mut length)?;
    let mut header = vec![0; u64::from_le_bytes(length) as usize];
    source.read_exact(&mut header)?;
    let data = source.metadata()?.len() - (8 + header.len()) as u64;
    let mut header: Map<String, Value> = serde_json::from_slice(&header)?;

    // The header holds the size of the file that it is part of: it is written again until it is true. It only ever
    // grows, so this ends.
    let mut bytes = 0;
    let header = loop {
        certificate.count((8 + bytes) as u64 + data + others);
        set_certificate(&mut header, certificate)?;
        let text = serde_json::to_vec(&header)?;
        if text.len() <= bytes {
            break text;
        }
        bytes = header_length(text.len());
    };
    file.write_all(&(bytes as u64).to_le_bytes())?;
    file.write_all(&header)?;
    // A safetensors header may end in spaces.
    file.write_all(&vec![b' '; bytes - header.len()])?;
    source.seek(SeekFrom::Start(8 + u64::from_le_bytes(length)))?;
    std::io::copy(&mut source, file.as_file_mut())?;
    file.as_file().set_permissions(source.metadata()?.permissions())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    #[cfg(unix)]
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}

/// Puts the certificate into the manifest, of which everything else stays as it is.
fn set_certificate(header: &mut Map<String, Value>, certificate: &Certificate) -> std::io::Result<()> {
    let missing = || std::io::Error::other("the manifest has gone");
    let manifest =
        header.get_mut("__metadata__").and_then(|m| m.get_mut(MANIFEST_KEY)).ok_or_else(missing)?;
    let mut fields: Map<String, Value> = serde_json::from_str(manifest.as_str().ok_or_else(missing)?)?;
    fields.insert("certificate".into(), serde_json::to_value(certificate)?);
    *manifest = serde_json::to_string(&fields)?.into();
    Ok(())
}
