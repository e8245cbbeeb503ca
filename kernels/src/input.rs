//! The input of linears, as a tensor.

use crate::{QuantizedBatch, QuantizedInput, Rotation, ops::Rotate};
use candle_core::{CpuStorage, D, Error, Result, Storage, Tensor};
use std::{cell::RefCell, sync::Arc};

/// The input of one or more linears, `[batch, cols]` f32, rotated and quantised at most once for all that share a rotation.
#[derive(Debug)]
pub struct Input {
    plain: Option<Tensor>,
    /// All dimensions but the last.
    pub(crate) rows: usize,
    pub(crate) on_cpu: bool,
    rotated: RefCell<Option<(Arc<Rotation>, Tensor)>>,
    quantized: Rounded<QuantizedInput>,
    quantized_batch: Rounded<QuantizedBatch>,
}

/// A quantised input, and the rotation that it is under.
type Rounded<T> = RefCell<Option<(Option<Arc<Rotation>>, Arc<T>)>>;

impl Input {
    /// An input that no linear has rotated yet.
    pub fn new(plain: Tensor) -> Self {
        Self::with(&plain, Some(plain.clone()), None)
    }

    /// An input that is there under this rotation only: for linears that share it.
    pub fn rotated_by(rotation: Option<Arc<Rotation>>, x: Tensor) -> Self {
        match rotation {
            Some(rotation) => Self::with(&x, None, Some((rotation, x.clone()))),
            None => Self::new(x),
        }
    }

    fn with(x: &Tensor, plain: Option<Tensor>, rotated: Option<(Arc<Rotation>, Tensor)>) -> Self {
        let rows = x.elem_count() / x.dims().last().map_or(1, |&cols| cols.max(1));
        let (quantized, quantized_batch) = Default::default();
        let on_cpu = x.device().is_cpu();
        Self { plain, rows, on_cpu, rotated: rotated.into(), quantized, quantized_batch }
    }

    /// The input as it was given.
    ///
    /// # Errors
    /// Where it is there under a rotation only.
    pub fn plain(&self) -> Result<&Tensor> {
        self.plain.as_ref().ok_or_else(rotated_only)
    }

    /// The input under this rotation.
    pub(crate) fn rotated(&self, rotation: Option<&Arc<Rotation>>) -> Result<Tensor> {
        let Some(rotation) = rotation else {
            return self.plain()?.contiguous();
        };
        if let Some((held, x)) = &*self.rotated.borrow()
            && (Arc::ptr_eq(held, rotation) || held == rotation)
        {
            return Ok(x.clone());
        }
        let x = self.plain()?.contiguous()?.apply_op1_no_bwd(&Rotate(rotation.clone()))?;
        *self.rotated.borrow_mut() = Some((rotation.clone(), x.clone()));
        Ok(x)
    }

    /// `x`, which is this input under the rotation, in eight bits.
    pub(crate) fn quantized(
        &self,
        rotation: Option<&Arc<Rotation>>,
        x: &Tensor,
    ) -> Result<Arc<QuantizedInput>> {
        held_or(&self.quantized, rotation, x, |values| {
            let mut rounded = QuantizedInput::default();
            rounded.round(values);
            rounded
        })
    }

    /// `x`, which is this batch of inputs under the rotation, in eight bits.
    pub(crate) fn quantized_batch(
        &self,
        rotation: Option<&Arc<Rotation>>,
        x: &Tensor,
        depth: usize,
    ) -> Result<Arc<QuantizedBatch>> {
        let cols = x.dim(D::Minus1)?;
        held_or(&self.quantized_batch, rotation, x, |values| QuantizedBatch::new(values, cols, depth))
    }
}

/// That an input is there under a rotation only, and not under the one asked for.
pub(crate) fn rotated_only() -> Error {
    Error::Msg("the input is not there as it was before its rotation".into()).bt()
}

/// What is held for this rotation; else what `round` makes of the values of `x`, held from now on.
fn held_or<T>(
    held: &Rounded<T>,
    rotation: Option<&Arc<Rotation>>,
    x: &Tensor,
    round: impl Fn(&[f32]) -> T,
) -> Result<Arc<T>> {
    if let Some((of, rounded)) = &*held.borrow()
        && of.as_ref() == rotation
    {
        return Ok(rounded.clone());
    }
    let (storage, layout) = x.storage_and_layout();
    let values = match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => &values[start..end],
        _ => return Err(Error::Msg("an input in eight bits must be contiguous f32".into()).bt()),
    };
    let rounded = Arc::new(round(values));
    *held.borrow_mut() = Some((rotation.cloned(), rounded.clone()));
    Ok(rounded)
}
