//! A single input of linears in buffers that are used again: what a step of decoding on the CPU multiplies by, without tensors.

use crate::{QuantizedInput, Rotation, Weight, arch, input::rotated_only, ops};
use candle_core::{Error, Result};
use std::sync::Arc;

/// An input `[cols]` f32, rotated and quantised once for linears one after the other that share a rotation, as [`Input`](crate::Input) is.
///
/// The next input is written over it: nothing is allocated but for longer inputs, and corrections of more outputs, than those before.
#[derive(Debug, Default)]
pub struct SingleInput {
    values: Vec<f32>,
    /// The rotation that the values come in.
    frame: Option<Arc<Rotation>>,
    /// The values under a rotation that they did not come in.
    rotated: Held<Vec<f32>>,
    quantized: Held<QuantizedInput>,
    corrections: Corrections,
}

/// Something made of the values under a rotation or none, where it was made of them.
#[derive(Debug, Default)]
struct Held<T> {
    made: bool,
    rotation: Option<Arc<Rotation>>,
    of: T,
}

impl<T> Held<T> {
    /// What is held for this rotation; else what `make` makes of it, held from now on.
    fn get(&mut self, rotation: Option<&Arc<Rotation>>, make: impl FnOnce(&mut T)) -> &T {
        if !self.made || self.rotation.as_ref() != rotation {
            make(&mut self.of);
            (self.made, self.rotation) = (true, rotation.cloned());
        }
        &self.of
    }
}

impl SingleInput {
    /// A new input of so many values that come in this rotation, to be written: until then they are the last one's, as far as it
    /// had as many.
    pub fn renew(&mut self, cols: usize, rotation: Option<Arc<Rotation>>) -> &mut [f32] {
        self.values.resize(cols, 0.0);
        self.frame = rotation;
        (self.rotated.made, self.quantized.made) = (false, false);
        &mut self.values
    }

    /// The values, as they came.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// [`Weight::forward_single`].
    pub(crate) fn multiply<const N: usize>(&mut self, weights: [&Weight; N], y: &mut [f32]) -> Result<()> {
        let kernels = arch::kernels().map_err(Error::wrap)?;
        let (cols, rows) = (self.values.len(), weights.iter().map(|weight| weight.rows()).sum::<usize>());
        if y.len() != rows || weights.iter().any(|weight| weight.cols() != cols) {
            let of = weights.map(|weight| [weight.rows(), weight.cols()]);
            let message =
                format!("an input of {cols} and an output of {} do not suit matrices {of:?}", y.len());
            return Err(Error::Msg(message).bt());
        }
        let Self { values, frame, rotated, quantized, corrections } = self;
        let (packed, mut rest, mut done) = (weights.map(Weight::packed), y, 0);
        while done < N {
            let rotation = weights[done].rotation();
            let x = match (rotation, &*frame) {
                (None, None) => &values[..],
                (Some(rotation), Some(frame)) if rotation == frame => values,
                (Some(by), None) => rotated.get(rotation, |rotated| {
                    rotated.clear();
                    rotated.extend_from_slice(values);
                    by.apply_together(rotated);
                }),
                (_, Some(_)) => return Err(rotated_only()),
            };
            // Matrices that one parallel region multiplies.
            let alike = |weight: &&&Weight| weight.multiplies_integers() && weight.rotation() == rotation;
            let run = weights[done..].iter().take_while(alike).count();
            let these = done..done + run.max(1);
            done = these.end;
            let (mut y, after) = rest.split_at_mut(packed[these.clone()].iter().map(|w| w.rows()).sum());
            rest = after;
            if run > 0 {
                let x = quantized.get(rotation, |quantized| quantized.round(x));
                ops::matvec(&kernels, &packed[these.clone()], x, y);
            } else {
                ops::multiply(packed[these.start], x, y).map_err(Error::wrap)?;
            }
            for weight in &weights[these] {
                let (of_this, others) = y.split_at_mut(weight.rows());
                corrections.add(weight, x, of_this).map_err(Error::wrap)?;
                y = others;
            }
        }
        Ok(())
    }
}

/// What the corrections of a matrix are computed in.
#[derive(Debug, Default)]
struct Corrections {
    /// `right x [rank]`.
    inner: Vec<f32>,
    /// A row of the left factor.
    row: Vec<f32>,
    /// A correction's own product: it is summed up before it is added, as tensors are.
    product: Vec<f32>,
}

impl Corrections {
    /// Adds the products of a weight's corrections with its rotated input.
    fn add(&mut self, weight: &Weight, x: &[f32], y: &mut [f32]) -> crate::Result<()> {
        if let Some(low_rank) = weight.low_rank() {
            let (left, right) = (low_rank.left(), low_rank.right());
            self.inner.resize(right.rows(), 0.0);
            self.row.resize(y.len(), 0.0);
            self.product.resize(y.len(), 0.0);
            ops::multiply(right, x, &mut self.inner)?;
            ops::multiply_transposed(left, &self.inner, &mut self.row, &mut self.product);
            y.iter_mut().zip(&self.product).for_each(|(y, product)| *y += product);
        }
        if let Some(sparse) = weight.sparse() {
            self.product.clear();
            self.product.resize(y.len(), 0.0);
            sparse.multiply_add(x, &mut self.product);
            y.iter_mut().zip(&self.product).for_each(|(y, product)| *y += product);
        }
        Ok(())
    }
}
