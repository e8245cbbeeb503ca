//! Root-mean-square normalisation (Zhang and Sennrich, 2019).

use crate::{Result, checkpoint::Tensors};
use candle_core::{Device, Tensor};
use squish_kernels::{
    Input, Rotation, SingleInput,
    ops::{self, Added, Norm, RmsScale},
};
use std::sync::Arc;

/// How a model's norms read their weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormStyle {
    /// Added to the mean square.
    pub eps: f64,
    /// Whether what is stored is the factor's distance from 1, as in Gemma.
    pub one_plus: bool,
}

/// The residual stream `[positions, size]` on its way from a layer to the next norm, which adds up what the layer left to be added.
#[derive(Debug, Clone)]
pub struct Stream<'a> {
    x: Tensor,
    /// What is to be added, and its own norm, if it has one.
    added: Option<(Tensor, Option<&'a RmsNorm>)>,
}

impl<'a> Stream<'a> {
    /// The stream with nothing to be added.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn new(x: &Tensor) -> candle_core::Result<Self> {
        Ok(Self { x: x.contiguous()?, added: None })
    }

    /// A stream without anything to be added, and `y`, normalised where there is a norm for it.
    pub fn plus(self, y: Tensor, norm: Option<&'a RmsNorm>) -> Self {
        debug_assert!(self.added.is_none());
        Self { added: Some((y, norm)), ..self }
    }

    /// The sum.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn sum(self) -> candle_core::Result<Tensor> {
        match self.added {
            None => Ok(self.x),
            Some((y, None)) => self.x + y,
            Some((y, Some(norm))) => self.x + norm.forward(&y)?,
        }
    }
}

/// `x / sqrt(mean(x^2) + eps) * factor`, over the last dimension.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    factor: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// `weight [size]` below `tensors`.
    ///
    /// # Errors
    /// When the tensor is missing or not what is expected.
    pub fn load(tensors: &Tensors, size: usize, style: NormStyle, device: &Device) -> Result<Self> {
        let weight = tensors.dense("weight", &[size], device)?;
        let factor = if style.one_plus { (weight + 1.0)? } else { weight };
        Ok(Self { factor, eps: style.eps as f32 })
    }

    /// `x [.., size]`, normalised.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let op = Norm { scale: self.scale(), added: None, rotation: None };
        x.contiguous()?.apply_op1_no_bwd(&op)
    }

    /// What it multiplies by.
    pub fn scale(&self) -> RmsScale<'_> {
        RmsScale { factor: &self.factor, eps: self.eps }
    }

    /// The norm of a stream, in this rotation, and the stream with all added up.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn of_stream<'a>(
        &self,
        stream: Stream<'_>,
        rotation: Option<Arc<Rotation>>,
    ) -> candle_core::Result<(Stream<'a>, Input)> {
        let added = stream.added.as_ref().map(|(y, norm)| (y, norm.map(Self::scale)));
        let sums = added.is_some();
        let op = Norm { scale: self.scale(), added, rotation };
        let both = stream.x.apply_op1_no_bwd(&op)?;
        let (x, normed) = if sums { (both.get(1)?, both.get(0)?) } else { (stream.x.clone(), both) };
        Ok((Stream { x, added: None }, Input::rotated_by(op.rotation, normed)))
    }

    /// [`of_stream`](Self::of_stream) for one position on the CPU without tensors: what the layer before has left is added to the
    /// `stream`, and `layer` is then the next one's input, in this rotation.
    ///
    /// # Errors
    /// When sizes do not fit.
    pub fn of_layer(
        &self,
        stream: &mut [f32],
        layer: &mut SingleInput,
        added: Added<&Self>,
        rotation: Option<Arc<Rotation>>,
    ) -> candle_core::Result<()> {
        let added = match added {
            Added::Nothing => Added::Nothing,
            Added::AsItIs => Added::AsItIs,
            Added::Normed(norm) => Added::Normed(norm.scale()),
        };
        let left = layer.values().len();
        if !matches!(added, Added::Nothing) && left != stream.len() {
            let message = format!("a layer's output of {left} for a stream of {}", stream.len());
            return Err(candle_core::Error::Msg(message).bt());
        }
        let y = layer.renew(stream.len(), rotation.clone());
        ops::norm_in_place(stream, y, added, self.scale(), rotation.as_deref())
    }
}
