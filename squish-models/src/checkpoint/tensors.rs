//! Tensors of a checkpoint by name, under a prefix.

use super::{Checkpoint, Entry, PackedRecord, Shard, StoredPart, TensorRecord};
use crate::{Error, Result, layers::Observer};
use bytes::Bytes;
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use squish_kernels::{
    LowRank, Packed, Sparse, Weight,
    scheme::{self, Scheme},
};
use std::sync::Arc;

/// The tensors of a checkpoint whose names begin with a prefix. Cheap to make; [`Tensors::pp`] descends.
#[derive(Debug, Clone)]
pub struct Tensors<'a> {
    checkpoint: &'a Checkpoint,
    prefix: String,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, prefix: &str) -> Self {
        Self { checkpoint, prefix: prefix.into() }
    }

    /// The tensors below `prefix.name`.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { checkpoint: self.checkpoint, prefix: self.full(&name.to_string()) }
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.into() } else { format!("{}.{name}", self.prefix) }
    }

    /// A small tensor such as a norm or a bias, read into an f32 [`Tensor`] on the device.
    ///
    /// # Errors
    /// When it is missing, has another shape, or is not bf16, f16 or f32.
    pub fn dense(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let name = self.full(name);
        let (shard, entry) = self.checkpoint.entry(&name)?;
        check_shape(shard, &name, &entry.shape, shape)?;
        let dtype = match shard.float_scheme(&name, entry)?.name() {
            "bf16" => DType::BF16,
            "f16" => DType::F16,
            _ => DType::F32,
        };
        let tensor = Tensor::from_raw_buffer(&shard.bytes(entry), dtype, shape, device)?;
        Ok(tensor.to_dtype(DType::F32)?)
    }

    /// A matrix `[rows, cols]`, packed in any scheme or unquantised, over the mapped bytes.
    ///
    /// # Errors
    /// When it is missing, has another shape, or its stored parts are not what its record says.
    pub fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        Ok(self.stored_weight(name, rows, cols)?.with_arithmetic(self.checkpoint.arithmetic))
    }

    fn stored_weight(&self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        let name = self.full(name);
        if let Some(weight) = self.checkpoint.replaced.get(&name) {
            let (shard, found) = (&self.checkpoint.shards[0], [weight.rows(), weight.cols()]);
            check_shape(shard, &name, &found, &[rows, cols])?;
            return Ok(weight.clone());
        }
        match self.checkpoint.manifest().and_then(|m| m.tensors.get(&name)) {
            Some(record) => self.packed_weight(&name, record, rows, cols),
            None => {
                let (shard, entry) = self.checkpoint.entry(&name)?;
                check_shape(shard, &name, &entry.shape, &[rows, cols])?;
                let scheme = shard.float_scheme(&name, entry)?;
                let packed =
                    Packed::new(scheme, rows, cols, scheme.default_group(cols), vec![shard.bytes(entry)]);
                Ok(packed.map_err(|source| weight_error(shard, &name, source))?.into())
            }
        }
    }

    /// Who wants to see the inputs of the matrix `name`, and its full name.
    pub fn observer(&self, name: &str) -> Option<(Arc<str>, Arc<dyn Observer>)> {
        let observer = self.checkpoint.observer.clone()?;
        Some((self.full(name).into(), observer))
    }

    fn packed_weight(&self, name: &str, record: &TensorRecord, rows: usize, cols: usize) -> Result<Weight> {
        // Errors name the file of the record's first part; before one is found, the first file.
        let shard = &self.checkpoint.shards[0];
        check_shape(shard, name, &record.shape, &[rows, cols])?;
        let (packed, shard) = self.packed(name, name, &record.packed, rows, cols)?;
        let error = |source| weight_error(shard, name, source);
        let mut weight = Weight::from(packed);
        if let Some(rotation) = record.rotation {
            let rotation = self.checkpoint.rotation(cols, rotation).map_err(error)?;
            weight = weight.with_rotation(rotation).map_err(error)?;
        }
        if let Some(low_rank) = &record.low_rank {
            let (left, _) =
                self.packed(name, &format!("{name}.left"), &low_rank.left, low_rank.rank, rows)?;
            let (right, _) =
                self.packed(name, &format!("{name}.right"), &low_rank.right, low_rank.rank, cols)?;
            weight = LowRank::new(left, right).and_then(|l| weight.with_low_rank(l)).map_err(error)?;
        }
        if let Some(sparse) = record.sparse {
            let [offsets, columns, values] = sparse.stored(name, rows).map(|part| self.part(&part));
            let sparse = Sparse::new(rows, cols, offsets?, columns?, values?);
            weight = sparse.and_then(|s| weight.with_sparse(s)).map_err(error)?;
        }
        Ok(weight)
    }

    /// The packed matrix whose parts are stored under `stem`, and the shard of its first part.
    fn packed(
        &self,
        name: &str,
        stem: &str,
        record: &PackedRecord,
        rows: usize,
        cols: usize,
    ) -> Result<(Packed, &'a Shard)> {
        let error = |source| weight_error(&self.checkpoint.shards[0], name, source);
        let stored = record.stored(stem, rows, cols).map_err(error)?;
        let (shard, _) = self.checkpoint.entry(&stored[0].name)?;
        let parts = stored.iter().map(|part| self.part(part)).collect::<Result<_>>()?;
        let packed = Packed::new(record.scheme().map_err(error)?, rows, cols, record.group, parts);
        Ok((packed.map_err(error)?, shard))
    }

    /// The bytes of one stored part.
    fn part(&self, part: &StoredPart) -> Result<Bytes> {
        self.checkpoint.part(part).map(|(shard, entry)| shard.bytes(entry))
    }
}

impl Checkpoint {
    /// Where one part of a packed tensor lies, which must be of exactly its type and shape.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`] or [`Error::ElementType`].
    pub fn part(&self, part: &StoredPart) -> Result<(&Shard, &Entry)> {
        let (shard, entry) = self.entry(&part.name)?;
        check_shape(shard, &part.name, &entry.shape, &part.shape)?;
        if entry.dtype != part.dtype {
            let expected = "the type that docs/format.md gives this part";
            return Err(type_error(shard, &part.name, entry.dtype, expected));
        }
        Ok((shard, entry))
    }
}

impl Shard {
    /// The scheme of an unquantised tensor: its element type.
    ///
    /// # Errors
    /// [`Error::ElementType`] for anything but bf16, f16 and f32.
    pub fn float_scheme(&self, name: &str, entry: &Entry) -> Result<&'static dyn Scheme> {
        match entry.dtype {
            Dtype::BF16 => Ok(&scheme::BF16),
            Dtype::F16 => Ok(&scheme::F16),
            Dtype::F32 => Ok(&scheme::F32),
            other => Err(type_error(self, name, other, "BF16, F16 or F32")),
        }
    }
}

fn check_shape(shard: &Shard, name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.to_vec(), expected.to_vec());
    Err(Error::Shape { path: shard.path().into(), name: name.into(), found, expected })
}

fn type_error(shard: &Shard, name: &str, found: Dtype, expected: &'static str) -> Error {
    Error::ElementType { path: shard.path().into(), name: name.into(), found: format!("{found:?}"), expected }
}

fn weight_error(shard: &Shard, name: &str, source: squish_kernels::Error) -> Error {
    Error::Weight { path: shard.path().into(), name: name.into(), source }
}
