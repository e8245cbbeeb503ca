//! What a calibrated compression has finished, so that one that was interrupted goes on from there.
//!
//! Every encoded matrix is a safetensors file of its own in a hidden directory beside the output, written under
//! another name and renamed. The directory's `key` says what the work is: a compression of another source,
//! recipe, text or tool begins anew.

use crate::{
    Error, Result,
    matrix::{Encoded, MatrixSpec},
    output::io_error,
};
use bytes::Bytes;
use safetensors::{SafeTensors, tensor::TensorView};
use squish_models::checkpoint::TensorRecord;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// Metadata of a stored matrix.
const RECORD: &str = "record";
const COST: &str = "cost";

/// The finished part of a compression.
#[derive(Debug)]
pub struct Resume {
    dir: PathBuf,
}

impl Resume {
    /// The store beside the output directory `out`. What it holds of a compression with another key is removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(out: &Path, key: &str) -> Result<Self> {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let dir = out.with_file_name(format!(".{name}.resume"));
        let path = dir.join("key");
        if fs::read_to_string(&path).is_ok_and(|found| found == key) {
            return Ok(Self { dir });
        }
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(io_error(&dir))?;
        }
        fs::create_dir_all(&dir).map_err(io_error(&dir))?;
        fs::write(&path, key).map_err(io_error(&path))?;
        Ok(Self { dir })
    }

    fn path(&self, tensor: &str) -> PathBuf {
        // Names of tensors may hold anything; files are named by plain characters.
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        self.dir.join(format!("{}.safetensors", tensor.chars().map(plain).collect::<String>()))
    }

    /// A finished matrix; `None` where there is none that can be used.
    pub fn load(&self, tensor: &str, spec: &MatrixSpec) -> Option<Encoded> {
        let bytes = Bytes::from(fs::read(self.path(tensor)).ok()?);
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let metadata = header.metadata().as_ref()?;
        let record: TensorRecord = serde_json::from_str(metadata.get(RECORD)?).ok()?;
        let cost = metadata.get(COST)?.parse().ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let part = |name: &str| Some(bytes.slice_ref(tensors.tensor(name).ok()?.data()));
        let stored = record.stored(tensor).ok()?;
        let parts: Vec<Bytes> = stored.iter().map(|p| part(&p.name)).collect::<Option<_>>()?;
        let weight = spec.weight(&parts).ok()?;
        Some(Encoded { parts, weight, record, cost })
    }

    /// Keeps a finished matrix.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, tensor: &str, encoded: &Encoded) -> Result<()> {
        let matrix = |source| Error::Matrix { name: tensor.into(), source };
        let stored = encoded.record.stored(tensor).map_err(matrix)?;
        let record =
            serde_json::to_string(&encoded.record).expect("a record has string keys and finite numbers");
        let metadata =
            HashMap::from([(RECORD.to_string(), record), (COST.to_string(), encoded.cost.to_string())]);
        let path = self.path(tensor);
        let write = || -> std::io::Result<()> {
            let views = stored.iter().zip(&encoded.parts).map(|(part, bytes)| {
                let view = TensorView::new(part.dtype, part.shape.clone(), bytes);
                Ok((part.name.as_str(), view.map_err(std::io::Error::other)?))
            });
            let views = views.collect::<std::io::Result<Vec<_>>>()?;
            let bytes = safetensors::serialize(views, Some(metadata)).map_err(std::io::Error::other)?;
            let partial = path.with_extension("partial");
            fs::write(&partial, bytes)?;
            fs::rename(&partial, &path)
        };
        write().map_err(io_error(&path))
    }

    /// The error of a compression that stopped: where it was interrupted, how to go on.
    pub fn paused(&self, error: Error) -> Error {
        match error {
            Error::Interrupted => Error::Paused { dir: self.dir.clone() },
            other => other,
        }
    }

    /// Removes the store: the output is complete.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        fs::remove_dir_all(&self.dir).map_err(io_error(&self.dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use squish_kernels::scheme;

    #[test]
    fn keeps_matrices_of_the_same_work_only() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut spec = MatrixSpec::plain(&scheme::NF2, 8, 64, 64);
        spec.entries = 3;
        let weights: Vec<f32> = (0..512).map(|i| (i as f32 * 0.7).sin()).collect();
        let encoded = spec.encode(&weights).unwrap();
        let resume = Resume::open(&out, "a").unwrap();
        assert!(resume.load("m.weight", &spec).is_none());
        resume.save("m.weight", &encoded).unwrap();
        let again = Resume::open(&out, "a").unwrap().load("m.weight", &spec).unwrap();
        assert_eq!((again.parts, again.record, again.cost), (encoded.parts, encoded.record, encoded.cost));
        // A file that is damaged is as good as none.
        let path = resume.path("m.weight");
        fs::write(&path, &fs::read(&path).unwrap()[..100]).unwrap();
        assert!(resume.load("m.weight", &spec).is_none());
        // Other work begins anew.
        let other = Resume::open(&out, "b").unwrap();
        assert!(!path.exists());
        other.finish().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
