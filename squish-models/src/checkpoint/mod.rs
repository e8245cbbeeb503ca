//! A checkpoint directory, squished or original: its configuration and its tensors by name.
//!
//! Weights files are memory-mapped; nothing is copied but norms and biases. `docs/format.md` specifies
//! what a squished checkpoint looks like.

mod certificate;
mod manifest;
mod shard;
mod tensors;
pub mod text_file;

pub use certificate::{Calibration, Certificate, CertificateDemand, Measurement, Source};
pub use manifest::{
    FORMAT, LowRankRecord, MANIFEST_KEY, Manifest, PackedRecord, QUANT_METHOD, RotationRecord, SparseRecord,
    StoredPart, TensorRecord,
};
pub use shard::{Entry, Shard};
pub use tensors::Tensors;

use crate::{Error, Result, layers::Observer};
use serde_json::Value;
use squish_kernels::{Arithmetic, Rotation, Weight};
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// Name of the single weights file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Weights files that an index may name.
const MOST_SHARDS: usize = 10_000;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
    shards: Vec<Shard>,
    /// Which shard holds a tensor, and where.
    entries: BTreeMap<String, (usize, Entry)>,
    manifest: Option<Manifest>,
    /// Rotations by size, block and seed: layers share them.
    rotations: Mutex<HashMap<(usize, usize, u64), Arc<Rotation>>>,
    /// Weights that take the place of stored ones, by tensor name.
    replaced: HashMap<String, Weight>,
    observer: Option<Arc<dyn Observer>>,
    arithmetic: Arithmetic,
}

impl Checkpoint {
    /// Opens a directory with `config.json` and `model.safetensors`, or shards with an index.
    ///
    /// # Errors
    /// When a file cannot be read, is not what its name says, or is of an unknown format version.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        let config = read_json(&dir.join("config.json"))?;
        let mut shards = Vec::new();
        let mut entries = BTreeMap::new();
        let mut manifest: Option<Manifest> = None;
        for path in weights_files(&dir)? {
            let shard = Shard::open(&path)?;
            for (name, entry) in shard.entries() {
                entries.insert(name, (shards.len(), entry));
            }
            if let Some(found) = shard.manifest()? {
                match &mut manifest {
                    Some(manifest) => manifest.tensors.extend(found.tensors),
                    None => manifest = Some(found),
                }
            }
            shards.push(shard);
        }
        let checkpoint = Self {
            dir,
            config,
            shards,
            entries,
            manifest,
            rotations: Mutex::default(),
            replaced: HashMap::new(),
            observer: None,
            arithmetic: Arithmetic::Int8,
        };
        checkpoint.check_quantisation()?;
        Ok(checkpoint)
    }

    /// Refuses checkpoints that some other tool quantised, and squished ones without their manifest.
    fn check_quantisation(&self) -> Result<()> {
        let Some(found) = self.config.get("quantization_config").filter(|v| !v.is_null()) else {
            return Ok(());
        };
        let method = found.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        let refuse = |reason| Err(Error::Config { path: self.config_path(), reason });
        if method != QUANT_METHOD {
            return refuse(format!("weights quantised by the method `{method}` are not supported"));
        }
        if self.manifest.is_none() {
            return refuse(format!(
                "says `{QUANT_METHOD}`, but the weights carry no `{MANIFEST_KEY}` metadata"
            ));
        }
        Ok(())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration file, for messages.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    /// The contents of `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// What a squished checkpoint says of itself; `None` for an original one.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The weights files.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Models loaded from now on multiply single inputs with this arithmetic; at first, [`Arithmetic::Int8`].
    pub fn set_arithmetic(&mut self, arithmetic: Arithmetic) {
        self.arithmetic = arithmetic;
    }

    /// Names of all stored tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Models loaded from now on have this weight in place of the stored one.
    pub fn replace(&mut self, name: &str, weight: Weight) {
        self.replaced.insert(name.into(), weight);
    }

    /// Models loaded from now on have the stored weight again.
    pub fn restore(&mut self, name: &str) {
        self.replaced.remove(name);
    }

    /// The linears of models loaded from now on show their inputs to `observer`.
    pub fn observe(&mut self, observer: Option<Arc<dyn Observer>>) {
        self.observer = observer;
    }

    /// Whether linears of models loaded from now on show their inputs to somebody.
    pub(crate) fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    /// Where a stored tensor lies: its shard and its entry there.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn entry(&self, name: &str) -> Result<(&Shard, &Entry)> {
        match self.entries.get(name) {
            Some((shard, entry)) => Ok((&self.shards[*shard], entry)),
            None => Err(Error::MissingTensor { dir: self.dir.clone(), name: name.into() }),
        }
    }

    /// The tensors whose names begin with `prefix` and a dot; all of them for an empty prefix.
    pub fn tensors(&self, prefix: &str) -> Tensors<'_> {
        Tensors::new(self, prefix)
    }

    /// The rotation of this size, block and seed, shared by all that ask for it.
    fn rotation(&self, cols: usize, record: RotationRecord) -> squish_kernels::Result<Arc<Rotation>> {
        let key = (cols, record.block, record.seed);
        let mut rotations = self.rotations.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(rotation) = rotations.get(&key) {
            return Ok(rotation.clone());
        }
        let rotation = Arc::new(Rotation::new(cols, record.block, record.seed)?);
        rotations.insert(key, rotation.clone());
        Ok(rotation)
    }
}

/// The weights files of a directory: those the index names, or the single one.
fn weights_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let index = dir.join(INDEX_FILE);
    if !index.exists() {
        let single = dir.join(WEIGHTS_FILE);
        return if single.exists() { Ok(vec![single]) } else { Err(Error::NoWeights(dir.into())) };
    }
    let refuse = |reason: String| Error::Config { path: index.clone(), reason };
    let json = read_json(&index)?;
    let map =
        json.get("weight_map").and_then(Value::as_object).ok_or_else(|| refuse("no `weight_map`".into()))?;
    let mut files = std::collections::BTreeSet::new();
    for file in map.values() {
        let file = file.as_str().ok_or_else(|| refuse("a shard's name is not a string".into()))?;
        // A plain name: an index may not point outside its directory.
        if Path::new(file).file_name().is_none_or(|name| name != file) {
            return Err(refuse(format!("shard name `{file}` is not a plain file name")));
        }
        files.insert(dir.join(file));
    }
    match files.len() {
        0 => Err(refuse("`weight_map` is empty".into())),
        n if n > MOST_SHARDS => Err(refuse(format!("{n} weights files, at most {MOST_SHARDS} are read"))),
        _ => Ok(files.into_iter().collect()),
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let text = text_file::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::Config { path: path.into(), reason: format!("not valid JSON: {e}") })
}
