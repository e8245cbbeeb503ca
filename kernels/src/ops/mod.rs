//! Candle custom ops over packed matrices.
//!
//! Each op is one file with its CPU implementation and, behind the feature `metal`, that for Apple's GPUs beside it. Where
//! an op has none for a device, Candle's defaults answer, with an error that names the op.
//!
//! What a step of decoding does on the CPU is there without tensors as well, over slices that the caller keeps: [`norm_in_place`],
//! [`SplitHeads::in_place`], [`History::append_single`](crate::kv::History::append_single), [`Attention::single`], [`Gated::row`],
//! [`Weight::forward_single`](crate::Weight::forward_single) and [`add_in_place`]. An op and its function over slices are one computation,
//! with results equal to the bit.

mod attention;
mod dense_attention;
mod device_attention;
mod gated;
mod gather;
mod matmat;
mod matmul;
mod matvec;
mod norm;
mod products;
mod rotate;
mod softmax;
mod sparse;
mod split_heads;
mod transposed;

pub use attention::{Attention, AttentionBuffers};
pub use dense_attention::DenseAttention;
pub use device_attention::DeviceAttention;
pub use gated::{Activation, Gated};
pub use gather::Gather;
pub use matmat::{MatMat, matmat};
pub use matmul::MatMul;
pub(crate) use matmul::multiply;
pub use matvec::{MatVec, matvec};
pub use norm::{Added, Norm, RmsScale, norm_in_place};
pub use products::Products;
pub use rotate::Rotate;
pub use sparse::SparseMatMul;
pub use split_heads::SplitHeads;
pub use transposed::TransposedMatMul;
pub(crate) use transposed::multiply_transposed;

use candle_core::{CpuStorage, DType, Error, Layout, Result, Storage, Tensor};
use std::ops::{Deref, Range};

/// Where the contiguous f32 matrix `[batch, cols]` of a layout lies among its storage's elements, and its batch size.
///
/// Leading dimensions are folded into the batch.
fn rows_in(op: &str, dtype: DType, layout: &Layout, cols: usize) -> Result<(Range<usize>, usize)> {
    let refuse =
        |what: &str| Err(Error::Msg(format!("{op}: input {:?} {dtype:?} {what}", layout.dims())).bt());
    if dtype != DType::F32 {
        return refuse("must be F32");
    }
    let Some((start, end)) = layout.contiguous_offsets() else {
        return refuse("must be contiguous");
    };
    match layout.dims() {
        [.., last] if *last == cols => Ok((start..end, (end - start) / cols)),
        _ => refuse(&format!("must have {cols} columns")),
    }
}

/// The contiguous f32 matrix `[batch, cols]` behind a storage, and its batch size.
fn rows_of<'a>(
    op: &str,
    storage: &'a CpuStorage,
    layout: &Layout,
    cols: usize,
) -> Result<(&'a [f32], usize)> {
    let (range, batch) = rows_in(op, storage_dtype(storage), layout, cols)?;
    Ok((&storage.as_slice::<f32>()?[range], batch))
}

/// Matrices of a layout of three dimensions, of which only the first may have gaps: its dimensions, and the elements from
/// the start of one matrix to that of the next.
fn strided_matrices(op: &str, dtype: DType, layout: &Layout) -> Result<([usize; 3], usize)> {
    let refuse = |what: &str| Err(Error::Msg(format!("{op} {:?} {dtype:?} {what}", layout.dims())).bt());
    let (&[count, rows, cols], &[stride, between_rows, between]) = (layout.dims(), layout.stride()) else {
        return refuse("must have three dimensions");
    };
    // The stride of a dimension of one element means nothing.
    let contiguous = (between == 1 || cols == 1) && (between_rows == cols || rows == 1);
    if !contiguous || (count > 1 && stride < rows * cols) {
        return refuse("must be contiguous matrices");
    }
    Ok(([count, rows, cols], stride))
}

/// The f32 matrices behind a storage of three dimensions, of which only the first may have gaps.
fn strided_rows<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<Matrices<'a>> {
    let CpuStorage::F32(values) = storage else {
        let (dims, dtype) = (layout.dims(), storage_dtype(storage));
        return Err(Error::Msg(format!("{op} {dims:?} {dtype:?} must be F32")).bt());
    };
    let (dims, stride) = strided_matrices(op, DType::F32, layout)?;
    Ok(Matrices { values: &values[layout.start_offset()..], dims, stride })
}

/// A tensor of three dimensions, kept from being written while it is read.
pub(crate) struct HeldMatrices<'a, S> {
    what: &'a str,
    storage: S,
    layout: &'a Layout,
}

/// A tensor of three dimensions on the CPU.
pub(crate) fn matrices_of<'a>(
    what: &'a str,
    tensor: &'a Tensor,
) -> HeldMatrices<'a, impl Deref<Target = Storage> + 'a> {
    let (storage, layout) = tensor.storage_and_layout();
    HeldMatrices { what, storage, layout }
}

impl<S: Deref<Target = Storage>> HeldMatrices<'_, S> {
    /// Its matrices.
    pub(crate) fn get(&self) -> Result<Matrices<'_>> {
        match &*self.storage {
            Storage::Cpu(storage) => strided_rows(self.what, storage, self.layout),
            _ => Err(Error::Msg(format!("{}: must be on the CPU", self.what)).bt()),
        }
    }
}

/// A tensor that an op reads besides its inputs, kept from being written meanwhile.
struct FloatsOf<'a, S> {
    storage: S,
    layout: &'a Layout,
}

impl<'a> FloatsOf<'a, ()> {
    /// This tensor.
    #[allow(clippy::new_ret_no_self)]
    fn new(tensor: &'a Tensor) -> FloatsOf<'a, impl Deref<Target = Storage> + 'a> {
        let (storage, layout) = tensor.storage_and_layout();
        FloatsOf { storage, layout }
    }
}

impl<S: Deref<Target = Storage>> FloatsOf<'_, S> {
    /// Its values on the CPU, f32, of which there must be so many.
    fn get(&self, op: &str, count: usize) -> Result<&[f32]> {
        match (&*self.storage, self.layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) if end - start == count => {
                Ok(&values[start..end])
            }
            _ => Err(self.refuse(op, count)),
        }
    }

    /// Where its values, f32, lie on a Metal device.
    #[cfg(feature = "metal")]
    fn on_metal(&self, op: &str, count: usize) -> Result<crate::metal::device::Input<'_>> {
        let input = self.any_on_metal(op)?;
        let fits = self.layout.is_contiguous() && self.layout.shape().elem_count() == count;
        if fits && self.storage.dtype() == DType::F32 { Ok(input) } else { Err(self.refuse(op, count)) }
    }

    /// Where it begins on a Metal device, of whatever type it is.
    #[cfg(feature = "metal")]
    fn any_on_metal(&self, op: &str) -> Result<crate::metal::device::Input<'_>> {
        match &*self.storage {
            Storage::Metal(storage) => Ok((storage, self.layout.start_offset())),
            _ => Err(self.refuse(op, self.layout.shape().elem_count())),
        }
    }

    fn refuse(&self, op: &str, count: usize) -> Error {
        let (dims, dtype) = (self.layout.dims(), self.storage.dtype());
        Error::Msg(format!(
            "{op}: operand {dims:?} {dtype:?} must be {count} contiguous F32 on the input's device"
        ))
        .bt()
    }
}

/// Some matrices `[dims[1], dims[2]]`, contiguous each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrices<'a> {
    pub values: &'a [f32],
    pub dims: [usize; 3],
    /// From the start of one matrix to that of the next.
    pub stride: usize,
}

impl<'a> Matrices<'a> {
    /// Some rows of a matrix.
    pub(crate) fn rows(&self, matrix: usize, rows: Range<usize>) -> &'a [f32] {
        let cols = self.dims[2];
        &self.values[matrix * self.stride..][rows.start * cols..rows.end * cols]
    }
}

fn storage_dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// `y <- y + values`, for `values` f32 on the CPU, as many as `y` has.
///
/// # Errors
/// When there are not so many.
pub fn add_in_place(y: &mut [f32], values: &Tensor) -> Result<()> {
    let values = FloatsOf::new(values);
    let values = values.get("squish-add", y.len())?;
    y.iter_mut().zip(values).for_each(|(y, value)| *y += value);
    Ok(())
}

/// The shape of the input with its last dimension replaced.
fn with_last_dim(layout: &Layout, last: usize) -> candle_core::Shape {
    let mut dims = layout.dims().to_vec();
    if let Some(d) = dims.last_mut() {
        *d = last;
    }
    dims.into()
}

#[cfg(test)]
mod slices_tests;
#[cfg(test)]
mod tests;
