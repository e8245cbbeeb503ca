//! What a squished weights file says of itself, as JSON in its metadata.

use super::Certificate;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use squish_kernels::{
    Packed, Result, Rotation, scheme,
    scheme::{Part, PartType, Scheme},
};
use std::collections::BTreeMap;

/// Key of the safetensors metadata that holds the [`Manifest`].
pub const MANIFEST_KEY: &str = "squish";
/// Version of the container that this build reads and writes.
pub const FORMAT: u32 = 1;
/// `quant_method` in `config.json`'s `quantization_config`.
pub const QUANT_METHOD: &str = "squish";

/// The records of all packed tensors of a file, and how they came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the container.
    pub format: u32,
    /// Name and version of the tool that wrote the file.
    pub tool: String,
    /// Name of the recipe.
    pub recipe: String,
    /// A record for every packed tensor, by the original tensor's name.
    pub tensors: BTreeMap<String, TensorRecord>,
    /// What was counted and measured of the whole checkpoint; in the first weights file only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
}

/// How one tensor is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// `[out_features, in_features]` of the original.
    pub shape: [usize; 2],
    /// The packed matrix.
    #[serde(flatten)]
    pub packed: PackedRecord,
    /// The rotation of the input, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationRecord>,
    /// The low-rank correction, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_rank: Option<LowRankRecord>,
    /// The sparse correction, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<SparseRecord>,
    /// Signal-to-noise ratio of the stored weights against the original ones, in decibels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snr_db: Option<f64>,
}

/// Scheme, version and group of one packed matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedRecord {
    /// Name of the scheme.
    pub scheme: String,
    /// Version of the scheme's layout.
    pub version: u32,
    /// Weights of one row that share a scale.
    pub group: usize,
}

/// A rotation of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationRecord {
    /// Length of one transform.
    pub block: usize,
    /// Seed of the signs.
    pub seed: u64,
}

/// A low-rank correction `left^T right`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LowRankRecord {
    /// Number of rank-one terms.
    pub rank: usize,
    /// The factor `[rank, out_features]`.
    pub left: PackedRecord,
    /// The factor `[rank, in_features]`.
    pub right: PackedRecord,
    /// What it added to the signal-to-noise ratio, in decibels.
    #[serde(default)]
    pub gain_db: f64,
}

/// A sparse correction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SparseRecord {
    /// Number of stored entries.
    pub entries: usize,
    /// What it added to the signal-to-noise ratio, in decibels.
    #[serde(default)]
    pub gain_db: f64,
}

/// One tensor that is really in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPart {
    /// Its name: the original tensor's, with suffixes.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
}

impl TensorRecord {
    /// Everything that is stored for the tensor `name`.
    ///
    /// # Errors
    /// When a scheme is unknown or does not fit the shape.
    pub fn stored(&self, name: &str) -> Result<Vec<StoredPart>> {
        let [rows, cols] = self.shape;
        let mut stored = self.packed.stored(name, rows, cols)?;
        if let Some(low_rank) = &self.low_rank {
            stored.extend(low_rank.left.stored(&format!("{name}.left"), low_rank.rank, rows)?);
            stored.extend(low_rank.right.stored(&format!("{name}.right"), low_rank.rank, cols)?);
        }
        if let Some(sparse) = self.sparse {
            stored.extend(sparse.stored(name, rows));
        }
        Ok(stored)
    }
}

impl SparseRecord {
    /// Row offsets, columns and values of the sparse correction of the tensor `name` with this many rows.
    pub fn stored(&self, name: &str, rows: usize) -> [StoredPart; 3] {
        let part = |suffix, dtype, length| StoredPart {
            name: format!("{name}.sparse.{suffix}"),
            dtype,
            shape: vec![length],
        };
        [
            part("offsets", Dtype::U32, rows.saturating_add(1)),
            part("columns", Dtype::U16, self.entries),
            part("values", Dtype::F16, self.entries),
        ]
    }
}

impl PackedRecord {
    /// The parts of the packed matrix `stem`, in the scheme's order.
    ///
    /// # Errors
    /// As [`PackedRecord::parts`].
    pub fn stored(&self, stem: &str, rows: usize, cols: usize) -> Result<Vec<StoredPart>> {
        let stored = |part: Part| StoredPart {
            name: if part.suffix.is_empty() { stem.into() } else { format!("{stem}.{}", part.suffix) },
            dtype: match part.dtype {
                PartType::U8 => Dtype::U8,
                PartType::I8 => Dtype::I8,
                PartType::F16 => Dtype::F16,
                PartType::BF16 => Dtype::BF16,
                PartType::F32 => Dtype::F32,
            },
            shape: part.shape.to_vec(),
        };
        Ok(self.parts(rows, cols)?.into_iter().map(stored).collect())
    }

    /// The record of a scheme of this build.
    pub fn new(scheme: &dyn Scheme, group: usize) -> Self {
        Self { scheme: scheme.name().into(), version: scheme.version(), group }
    }

    /// The scheme, if this build has it in this version.
    ///
    /// # Errors
    /// [`squish_kernels::Error::UnknownScheme`] or [`squish_kernels::Error::UnsupportedVersion`].
    pub fn scheme(&self) -> Result<&'static dyn Scheme> {
        let scheme = scheme::by_name(&self.scheme)?;
        if scheme.version() == self.version {
            Ok(scheme)
        } else {
            let (found, supported) = (self.version, scheme.version());
            Err(squish_kernels::Error::UnsupportedVersion { scheme: scheme.name(), found, supported })
        }
    }

    /// The parts of a matrix of this shape.
    ///
    /// # Errors
    /// As [`PackedRecord::scheme`] and [`Packed::layout`].
    pub fn parts(&self, rows: usize, cols: usize) -> Result<Vec<Part>> {
        Packed::layout(self.scheme()?, rows, cols, self.group)
    }
}

impl From<&Rotation> for RotationRecord {
    fn from(rotation: &Rotation) -> Self {
        Self { block: rotation.block(), seed: rotation.seed() }
    }
}
