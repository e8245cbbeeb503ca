//! The weight of a linear layer or an embedding, as a model holds it.

use crate::{
    Error, Input, LowRank, Packed, Result, Rotation, SingleInput, Sparse,
    ops::{Gather, MatMat, MatMul, MatVec, Products, SparseMatMul, TransposedMatMul},
};
use candle_core::{D, Result as CandleResult, Tensor};
use std::sync::Arc;

/// How a matrix is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// Inputs are rounded to eight bits ([`QuantizedInput`](crate::QuantizedInput)) and the products are of integers, where that is faster: for a single input,
    /// as every step of decoding has, everywhere; for a batch, on processors with instructions for it.
    Int8,
    /// The input as it is, products in f32: what is exact.
    #[default]
    F32,
}

/// A matrix `[rows, cols]` = `[out_features, in_features]`:
///
/// ```text
/// y = (packed + left^T right + sparse) rotate(x)
/// ```
///
/// The corrections live in the rotated frame, like the packed matrix. Cheap to clone: the bytes are shared.
#[derive(Debug, Clone)]
pub struct Weight {
    packed: Packed,
    rotation: Option<Arc<Rotation>>,
    low_rank: Option<LowRank>,
    sparse: Option<Arc<Sparse>>,
    arithmetic: Arithmetic,
}

impl From<Packed> for Weight {
    fn from(packed: Packed) -> Self {
        Self { packed, rotation: None, low_rank: None, sparse: None, arithmetic: Arithmetic::default() }
    }
}

impl Weight {
    /// The weight with another arithmetic.
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// The weight with its input rotated.
    ///
    /// # Errors
    /// [`Error::CorrectionShape`] when the rotation is for another size.
    pub fn with_rotation(mut self, rotation: Arc<Rotation>) -> Result<Self> {
        self.check("the rotation", [self.rows(), rotation.cols()])?;
        self.rotation = Some(rotation);
        Ok(self)
    }

    /// The weight with a low-rank correction.
    ///
    /// # Errors
    /// [`Error::CorrectionShape`] when it is for another shape.
    pub fn with_low_rank(mut self, low_rank: LowRank) -> Result<Self> {
        self.check("the low-rank correction", [low_rank.left().cols(), low_rank.right().cols()])?;
        self.low_rank = Some(low_rank);
        Ok(self)
    }

    /// The weight with a sparse correction.
    ///
    /// # Errors
    /// [`Error::CorrectionShape`] when it is for another shape.
    pub fn with_sparse(mut self, sparse: Sparse) -> Result<Self> {
        self.check("the sparse correction", [sparse.rows(), sparse.cols()])?;
        self.sparse = Some(Arc::new(sparse));
        Ok(self)
    }

    fn check(&self, what: &'static str, found: [usize; 2]) -> Result<()> {
        let expected = [self.rows(), self.cols()];
        if found == expected { Ok(()) } else { Err(Error::CorrectionShape { what, found, expected }) }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.packed.rows()
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.packed.cols()
    }

    /// The packed matrix, without the corrections.
    pub fn packed(&self) -> &Packed {
        &self.packed
    }

    /// The rotation of the input, if any.
    pub fn rotation(&self) -> Option<&Arc<Rotation>> {
        self.rotation.as_ref()
    }

    /// The low-rank correction, if any.
    pub fn low_rank(&self) -> Option<&LowRank> {
        self.low_rank.as_ref()
    }

    /// The sparse correction, if any.
    pub fn sparse(&self) -> Option<&Sparse> {
        self.sparse.as_deref()
    }

    /// Stored bytes: packed matrix and corrections.
    pub fn bytes(&self) -> usize {
        let low_rank = self.low_rank.as_ref().map_or(0, |l| l.left().bytes() + l.right().bytes());
        self.packed.bytes() + low_rank + self.sparse.as_ref().map_or(0, |s| s.bytes())
    }

    /// `y [batch, rows] = x [batch, cols] W^T`, both f32.
    ///
    /// Large batches are summed in another order than single inputs: outputs agree to rounding, not to the bit.
    ///
    /// # Errors
    /// When the input is not a contiguous f32 tensor `[batch, cols]` or its device has no such op.
    pub fn forward(&self, input: &Input) -> CandleResult<Tensor> {
        let x = input.rotated(self.rotation.as_ref())?;
        let weight = self.packed.clone();
        let mut y = if self.is_single_product(input) {
            self.single_product(&[self], input)?
        } else if self.arithmetic == Arithmetic::Int8
            && x.device().is_cpu()
            && let Some(depth) = MatMat::depth(&weight)
        {
            let inputs = input.quantized_batch(self.rotation.as_ref(), &x, depth)?;
            x.apply_op1_no_bwd(&MatMat { weight, inputs })?
        } else {
            x.apply_op1_no_bwd(&MatMul(weight))?
        };
        if let Some(low_rank) = &self.low_rank {
            let z = x.apply_op1_no_bwd(&MatMul(low_rank.right().clone()))?;
            y = (y + z.apply_op1_no_bwd(&TransposedMatMul(low_rank.left().clone()))?)?;
        }
        if let Some(sparse) = &self.sparse {
            y = (y + x.apply_op1_no_bwd(&SparseMatMul(sparse.clone()))?)?;
        }
        Ok(y)
    }

    /// [`Weight::forward`] of several matrices of one input. A single input is multiplied by all of them in one go, where nothing but the
    /// packed matrices is to be added up.
    ///
    /// # Errors
    /// As [`Weight::forward`].
    pub fn forward_together(weights: &[&Self], input: &Input) -> CandleResult<Vec<Tensor>> {
        let plain = |w: &&Self| w.is_single_product(input) && w.low_rank.is_none() && w.sparse.is_none();
        let [first, rest @ ..] = weights else { return Ok(Vec::new()) };
        if !input.on_cpu {
            return Self::forward_in_few_launches(weights, input);
        }
        if !weights.iter().all(plain) || rest.iter().any(|w| w.rotation != first.rotation) {
            return weights.iter().map(|weight| weight.forward(input)).collect();
        }
        parts(&first.single_product(weights, input)?, weights)
    }

    /// [`Weight::forward_together`] on a GPU: runs of matrices that one launch multiplies with a single input are.
    fn forward_in_few_launches(weights: &[&Self], input: &Input) -> CandleResult<Vec<Tensor>> {
        let mut outputs = Vec::with_capacity(weights.len());
        while let [first, ..] = weights[outputs.len()..] {
            let rest = &weights[outputs.len()..];
            let alike =
                |w: &&&Self| w.low_rank.is_none() && w.sparse.is_none() && w.rotation == first.rotation;
            let alike: Vec<&Packed> = rest.iter().take_while(alike).map(|w| &w.packed).collect();
            let run = crate::metal::joined(&alike);
            if run < 2 || input.rows != 1 {
                outputs.push(first.forward(input)?);
                continue;
            }
            let x = input.rotated(first.rotation.as_ref())?;
            let y = x.apply_op1_no_bwd(&Products(alike[..run].iter().copied().cloned().collect()))?;
            outputs.extend(parts(&y, &rest[..run])?);
        }
        Ok(outputs)
    }

    /// Whether the input is multiplied by the packed matrix in integers, and on its own.
    fn is_single_product(&self, input: &Input) -> bool {
        input.rows == 1 && input.on_cpu && self.multiplies_integers()
    }

    /// Whether a single input on the CPU is multiplied by the packed matrix in integers.
    pub(crate) fn multiplies_integers(&self) -> bool {
        self.arithmetic == Arithmetic::Int8 && self.packed.scheme().integers().is_some()
    }

    /// [`Weight::forward_together`] for a single input `[cols]` on the CPU without a tensor: the outputs of all matrices, one after the other,
    /// are written to `y [rows of all]`. They are those of [`Weight::forward`] to the bit.
    ///
    /// # Errors
    /// When sizes do not fit, or the input is there under another rotation only; and those of [`arch::kernels`](crate::arch::kernels).
    pub fn forward_single<const N: usize>(
        weights: [&Self; N],
        input: &mut SingleInput,
        y: &mut [f32],
    ) -> CandleResult<()> {
        input.multiply(weights, y)
    }

    /// The products of packed matrices with a single input under this one's rotation, one after the other.
    fn single_product(&self, weights: &[&Self], input: &Input) -> CandleResult<Tensor> {
        let x = input.rotated(self.rotation.as_ref())?;
        let input = input.quantized(self.rotation.as_ref(), &x)?;
        let weights = weights.iter().map(|weight| weight.packed.clone()).collect();
        x.apply_op1_no_bwd(&MatVec { weights, input })
    }

    /// Rows of the matrix in the unrotated frame, `[n, cols]` f32 for `ids [n]` u32: an embedding look-up.
    ///
    /// # Errors
    /// When an id is not below [`Weight::rows`], or the ids are not a contiguous u32 tensor `[n]`.
    pub fn gather(&self, ids: &Tensor) -> CandleResult<Tensor> {
        ids.apply_op1_no_bwd(&Gather(self.clone()))
    }

    /// One row in the unrotated frame, into `out` of [`Weight::cols`] values.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        self.rotated_row(row, out);
        if let Some(rotation) = &self.rotation {
            rotation.invert(out);
        }
    }

    /// One row as it multiplies the rotated input: packed plus corrections.
    pub fn rotated_row(&self, row: usize, out: &mut [f32]) {
        self.packed.decode_row(row, out);
        if let Some(low_rank) = &self.low_rank {
            let mut right = vec![0.0; self.cols()];
            for r in 0..low_rank.rank() {
                let left = low_rank.left().weight(r, row);
                low_rank.right().decode_row(r, &mut right);
                out.iter_mut().zip(&right).for_each(|(o, v)| *o += left * v);
            }
        }
        for (col, value) in self.sparse.iter().flat_map(|s| s.row(row)) {
            out[col] += value;
        }
    }
}

/// The outputs of each of these weights, of `[.., rows]` those of all of them.
fn parts(y: &Tensor, weights: &[&Weight]) -> CandleResult<Vec<Tensor>> {
    let mut start = 0;
    let part = |weight: &&Weight| {
        let part = y.narrow(D::Minus1, start, weight.rows());
        start += weight.rows();
        part
    };
    weights.iter().map(part).collect()
}
