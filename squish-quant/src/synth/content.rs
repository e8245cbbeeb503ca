//! The bytes of synthetic tensors.
//!
//! Every bit pattern is a valid code, so codes are random bytes. Each stored part has a stream of the generator of its own,
//! and each piece of it a place in that stream: the bytes do not depend on the number of threads.

use super::Fill;
use crate::{
    Error, Result,
    output::{Stored, WeightsFile},
};
use half::{bf16, f16};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use safetensors::Dtype;
use squish_kernels::{
    Packed,
    scheme::{PartType, Scheme},
};
use squish_models::checkpoint::{PackedRecord, SparseRecord, StoredPart, TensorRecord};

/// Standard deviation of the weights: that with which Hugging Face's models are initialised.
const SIGMA: f32 = 0.02;
/// Standard deviation of a low-rank correction, and size of the sparse one's entries: a tenth, and a few sigma.
const LOW_RANK_SIGMA: f32 = 0.1 * SIGMA;
const SPARSE_SIZE: f32 = 3.0 * SIGMA;
/// Bytes that are made at once, and those that a thread makes: multiples of the generator's words and of every element.
const CHUNK: usize = 1 << 24;
const PIECE: usize = 1 << 18;

/// Writes the tensors of a model, one after the other.
pub struct Content<'a> {
    rng: ChaCha8Rng,
    stream: u64,
    file: &'a mut WeightsFile,
}

/// What a part is filled with.
#[derive(Debug, Clone, Copy)]
enum Bytes {
    /// Random bytes.
    Random,
    /// This f16 or bf16 value all over.
    Repeated([u8; 2]),
    /// Uniform values up to this magnitude.
    Uniform(Dtype, f32),
}

impl<'a> Content<'a> {
    /// The writer of the tensor with this index into its file.
    pub fn new(seed: u64, tensor: usize, file: &'a mut WeightsFile) -> Self {
        // Sixteen streams for each tensor: more than a record has parts.
        Self { rng: ChaCha8Rng::seed_from_u64(seed), stream: (tensor as u64) << 4, file }
    }

    /// An unpacked bf16 tensor.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn plain(&mut self, stored: &Stored, fill: Fill) -> Result<()> {
        let bytes = match fill {
            Fill::Zero => Bytes::Repeated(bf16::ZERO.to_le_bytes()),
            Fill::One => Bytes::Repeated(bf16::ONE.to_le_bytes()),
            Fill::Random => Bytes::Uniform(stored.dtype, SIGMA),
        };
        self.fill(&stored.name, stored.bytes, bytes)
    }

    /// A packed tensor, with its corrections.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Matrix`] for a scheme with parts that are unknown here.
    pub fn packed(&mut self, name: &str, record: &TensorRecord) -> Result<()> {
        let [rows, cols] = record.shape;
        self.matrix(name, name, &record.packed, rows, cols, SIGMA)?;
        if let Some(low_rank) = &record.low_rank {
            // A sum of `rank` products of the factors' values.
            let sigma = (LOW_RANK_SIGMA / (low_rank.rank as f32).sqrt()).sqrt();
            let (left, right) = (format!("{name}.left"), format!("{name}.right"));
            self.matrix(name, &left, &low_rank.left, low_rank.rank, rows, sigma)?;
            self.matrix(name, &right, &low_rank.right, low_rank.rank, cols, sigma)?;
        }
        match record.sparse {
            Some(sparse) => self.sparse(name, sparse, rows, cols),
            None => Ok(()),
        }
    }

    /// The matrix of the tensor `name` that is stored under `stem`, of weights of standard deviation `sigma`.
    fn matrix(
        &mut self,
        name: &str,
        stem: &str,
        record: &PackedRecord,
        rows: usize,
        cols: usize,
        sigma: f32,
    ) -> Result<()> {
        let error = |source| Error::Matrix { name: name.into(), source };
        let scheme = record.scheme().map_err(error)?;
        let parts = record.parts(rows, cols).map_err(error)?;
        let stored = record.stored(stem, rows, cols).map_err(error)?;
        let scale = sigma / unit_sigma(scheme).map_err(error)?;
        for (part, StoredPart { name, dtype, .. }) in parts.iter().zip(stored) {
            let bytes = part_bytes(part.suffix, dtype, scale, sigma);
            let bytes =
                bytes.ok_or_else(|| error(squish_kernels::Error::UnknownScheme(scheme.name().into())))?;
            self.fill(&name, part.bytes(), bytes)?;
        }
        Ok(())
    }

    /// A sparse correction: every row has its share of the entries, one in each of as many runs of columns.
    fn sparse(&mut self, name: &str, record: SparseRecord, rows: usize, cols: usize) -> Result<()> {
        let mut rng = self.next_stream();
        let before = |row: usize| (row as u128 * record.entries as u128 / rows as u128) as usize;
        let [offsets, columns, values] = record.stored(name, rows);
        let bytes: Vec<u8> = (0..=rows).flat_map(|row| (before(row) as u32).to_le_bytes()).collect();
        self.file.write(&offsets.name, 0, &bytes)?;

        let mut bytes = Vec::with_capacity(2 * record.entries);
        for row in 0..rows {
            let count = before(row + 1) - before(row);
            for i in 0..count {
                let column = rng.random_range(i * cols / count..(i + 1) * cols / count);
                bytes.extend((column as u16).to_le_bytes());
            }
        }
        self.file.write(&columns.name, 0, &bytes)?;
        self.fill(&values.name, 2 * record.entries, Bytes::Uniform(Dtype::F16, SPARSE_SIZE))
    }

    /// The generator of the next part.
    fn next_stream(&mut self) -> ChaCha8Rng {
        self.rng.set_stream(self.stream);
        self.stream += 1;
        self.rng.clone()
    }

    /// Fills a stored tensor.
    fn fill(&mut self, name: &str, length: usize, content: Bytes) -> Result<()> {
        let rng = self.next_stream();
        let mut buffer = vec![0; CHUNK.min(length)];
        for start in (0..length).step_by(CHUNK) {
            let chunk = &mut buffer[..CHUNK.min(length - start)];
            chunk.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| {
                let mut rng = rng.clone();
                // One 32-bit word of the stream for a byte at most.
                rng.set_word_pos((start + i * PIECE) as u128);
                content.write(piece, &mut rng);
            });
            self.file.write(name, start, chunk)?;
        }
        Ok(())
    }
}

impl Bytes {
    fn write(self, out: &mut [u8], rng: &mut ChaCha8Rng) {
        match self {
            Self::Random => rng.fill_bytes(out),
            Self::Repeated(value) => out.as_chunks_mut().0.fill(value),
            Self::Uniform(dtype, sigma) => {
                // The standard deviation of a uniform value up to 1 is 1 / sqrt(3).
                let largest = sigma * 3f32.sqrt();
                let mut value = || rng.random_range(-largest..=largest);
                match dtype {
                    Dtype::F32 => out.as_chunks_mut().0.fill_with(|| value().to_le_bytes()),
                    Dtype::F16 => out.as_chunks_mut().0.fill_with(|| f16::from_f32(value()).to_le_bytes()),
                    _ => out.as_chunks_mut().0.fill_with(|| bf16::from_f32(value()).to_le_bytes()),
                }
            }
        }
    }
}

/// What a part of a packed matrix holds under this scale; `None` for a part that is unknown here.
fn part_bytes(suffix: &str, dtype: Dtype, scale: f32, sigma: f32) -> Option<Bytes> {
    match (suffix, dtype) {
        ("codes", Dtype::U8 | Dtype::I8) => Some(Bytes::Random),
        ("scales", Dtype::F16) => Some(Bytes::Repeated(f16::from_f32(scale).to_le_bytes())),
        // Halfway down the sixteen steps of which a scale is made.
        ("mins", Dtype::F16) => Some(Bytes::Repeated(f16::from_f32(-7.5 / 16.0 * scale).to_le_bytes())),
        ("", _) => Some(Bytes::Uniform(dtype, sigma)),
        _ => None,
    }
}

/// Standard deviation of the weights that random codes stand for under a scale of 1.
fn unit_sigma(scheme: &'static dyn Scheme) -> squish_kernels::Result<f32> {
    /// A shape that every scheme can store.
    const ROWS: usize = 16;
    const COLS: usize = 1024;
    let group = scheme.default_group(COLS);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut parts = Vec::new();
    for part in Packed::layout(scheme, ROWS, COLS, group)? {
        let dtype = match part.dtype {
            PartType::U8 => Dtype::U8,
            PartType::I8 => Dtype::I8,
            PartType::F16 => Dtype::F16,
            PartType::BF16 => Dtype::BF16,
            PartType::F32 => Dtype::F32,
        };
        let content = part_bytes(part.suffix, dtype, 1.0, 1.0)
            .ok_or_else(|| squish_kernels::Error::UnknownScheme(scheme.name().into()))?;
        let mut bytes = vec![0; part.bytes()];
        content.write(&mut bytes, &mut rng);
        parts.push(bytes.into());
    }
    let weights = Packed::new(scheme, ROWS, COLS, group, parts)?.dequant();
    let energy: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
    Ok((energy / weights.len() as f64).sqrt() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use squish_kernels::scheme;

    #[test]
    fn the_parts_of_every_scheme_are_known() {
        for scheme in scheme::ALL {
            let sigma = unit_sigma(*scheme).unwrap();
            assert!((0.1..10.0).contains(&sigma), "{}: {sigma}", scheme.name());
        }
    }
}
