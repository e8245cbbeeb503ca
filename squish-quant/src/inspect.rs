//! The true bits of a checkpoint: everything counted, nothing claimed.

use crate::{Error, Result};
use serde::Serialize;
use squish_models::{
    Checkpoint,
    checkpoint::{Certificate, LowRankRecord, RotationRecord, SparseRecord},
};
use std::{collections::BTreeSet, path::Path};

/// What a checkpoint holds.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The architecture that `config.json` names.
    pub architecture: String,
    /// The recipe of a squished checkpoint; absent for an original one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// The tool that wrote a squished checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// What was counted and measured when it was made, and since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// Weights of the model, before any packing.
    pub parameters: usize,
    /// Bytes of all weights files, headers counted.
    pub file_bytes: usize,
    /// `8 * file_bytes / parameters`.
    pub bits_per_parameter: f64,
    /// The tensors, by name.
    pub tensors: Vec<TensorInspection>,
}

/// What one tensor of the model is stored as.
#[derive(Debug, Clone, Serialize)]
pub struct TensorInspection {
    /// Its name.
    pub name: String,
    /// Name of its scheme; the element type of an unpacked tensor.
    pub scheme: String,
    /// Its dimensions before packing.
    pub shape: Vec<usize>,
    /// Bytes of everything stored for it.
    pub bytes: usize,
    /// `8 * bytes / weights`.
    pub bits_per_weight: f64,
    /// Weights of one row that share a scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// The rotation of the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationRecord>,
    /// The low-rank correction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_rank: Option<LowRankRecord>,
    /// The sparse correction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse: Option<SparseRecord>,
    /// Signal-to-noise ratio against the original weights, in decibels, as measured when it was packed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snr_db: Option<f64>,
}

impl TensorInspection {
    /// Weights of the tensor before packing.
    pub fn weights(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Looks into a checkpoint directory, squished or original.
///
/// # Errors
/// When it cannot be read, or a record names parts that are not there or of another type or shape.
pub fn inspect(dir: &Path) -> Result<Inspection> {
    let checkpoint = Checkpoint::open(dir)?;
    let manifest = checkpoint.manifest();
    let mut tensors = Vec::new();
    let mut parts = BTreeSet::new();
    for (name, record) in manifest.iter().flat_map(|m| &m.tensors) {
        let stored = record.stored(name).map_err(|source| Error::Matrix { name: name.clone(), source })?;
        let mut bytes = 0;
        for part in stored {
            bytes += checkpoint.part(&part)?.1.range.len();
            parts.insert(part.name);
        }
        tensors.push(TensorInspection {
            name: name.clone(),
            scheme: record.packed.scheme.clone(),
            shape: record.shape.to_vec(),
            bytes,
            bits_per_weight: bits(bytes, record.shape.iter().product()),
            group: Some(record.packed.group),
            rotation: record.rotation,
            low_rank: record.low_rank.clone(),
            sparse: record.sparse,
            snr_db: record.snr_db,
        });
    }
    for name in checkpoint.names().filter(|name| !parts.contains(*name)) {
        let (_, entry) = checkpoint.entry(name)?;
        tensors.push(TensorInspection {
            name: name.into(),
            scheme: format!("{:?}", entry.dtype).to_lowercase(),
            shape: entry.shape.clone(),
            bytes: entry.range.len(),
            bits_per_weight: bits(entry.range.len(), entry.shape.iter().product()),
            group: None,
            rotation: None,
            low_rank: None,
            sparse: None,
            snr_db: None,
        });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let parameters = tensors.iter().map(TensorInspection::weights).sum();
    let file_bytes = checkpoint.shards().iter().map(|s| s.file_bytes()).sum();
    Ok(Inspection {
        architecture: squish_models::config::architecture(&checkpoint)?.into(),
        recipe: manifest.map(|m| m.recipe.clone()),
        tool: manifest.map(|m| m.tool.clone()),
        certificate: checkpoint.certificate().cloned(),
        parameters,
        file_bytes,
        bits_per_parameter: bits(file_bytes, parameters),
        tensors,
    })
}

/// Bits a weight; 0 for no weights.
pub fn bits(bytes: usize, weights: usize) -> f64 {
    8.0 * bytes as f64 / weights.max(1) as f64
}
