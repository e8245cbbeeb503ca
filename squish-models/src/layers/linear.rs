//! Linear layers and embeddings over packed weights.

use crate::{Result, checkpoint::Tensors};
use candle_core::{Device, Tensor};
use squish_kernels::{Input, Rotation, SingleInput, Weight, ops};
use std::sync::Arc;

/// Sees the inputs of the linears of a model that was loaded from a checkpoint with
/// [`Checkpoint::observe`](crate::Checkpoint::observe): how calibration learns what each matrix multiplies.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// `input` is about to be multiplied by the matrix of this tensor name.
    ///
    /// # Errors
    /// When a tensor operation of the observer fails; the forward pass then fails with it.
    fn input(&self, weight: &str, input: &Input) -> candle_core::Result<()>;
}

/// `y = x W^T + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    /// The weight's name, and who wants to see its inputs.
    observer: Option<(Arc<str>, Arc<dyn Observer>)>,
}

impl Linear {
    /// `weight [out_features, in_features]` and, if asked for, `bias [out_features]`, below `tensors`.
    ///
    /// # Errors
    /// When a tensor is missing or not what is expected.
    pub fn load(
        tensors: &Tensors,
        out_features: usize,
        in_features: usize,
        bias: bool,
        device: &Device,
    ) -> Result<Self> {
        let weight = tensors.weight("weight", out_features, in_features)?;
        let bias = bias.then(|| tensors.dense("bias", &[out_features], device)).transpose()?;
        Ok(Self { weight, bias, observer: tensors.observer("weight") })
    }

    /// The rotation that these share and that their input may come in; `None` where they share none, or somebody wants to see the
    /// input as it is.
    pub fn rotation<const N: usize>(linears: [&Self; N]) -> Option<Arc<Rotation>> {
        let first = linears.first()?.weight.rotation()?;
        let same = |linear: &&Self| linear.observer.is_none() && linear.weight.rotation() == Some(first);
        linears.iter().all(same).then(|| first.clone())
    }

    /// `b`, if there is one.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `x [positions, in_features] -> [positions, out_features]`. Linears of one [`Input`] share its rotation.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: &Input) -> candle_core::Result<Tensor> {
        let [y] = Self::products([self], x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// [`Linear::forward`] of several linears of one input, which costs less than one at a time; without the biases, for who has none or adds
    /// them in passing.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn products<const N: usize>(linears: [&Self; N], x: &Input) -> candle_core::Result<[Tensor; N]> {
        for (name, observer) in linears.iter().filter_map(|linear| linear.observer.as_ref()) {
            observer.input(name, x)?;
        }
        let products = Weight::forward_together(&linears.map(|linear| &linear.weight), x)?;
        Ok(products.try_into().expect("an output for each linear"))
    }

    /// [`Linear::forward`] of one position on the CPU without tensors, into `y [out_features]`. Nobody sees the input.
    ///
    /// # Errors
    /// When sizes do not fit.
    pub fn decode(&self, x: &mut SingleInput, y: &mut [f32]) -> candle_core::Result<()> {
        Self::decode_products([self], x, y)?;
        match &self.bias {
            Some(bias) => ops::add_in_place(y, bias),
            None => Ok(()),
        }
    }

    /// [`Linear::products`] of one position on the CPU without tensors, one after the other into `y`. Nobody sees the input.
    ///
    /// # Errors
    /// When sizes do not fit.
    pub fn decode_products<const N: usize>(
        linears: [&Self; N],
        x: &mut SingleInput,
        y: &mut [f32],
    ) -> candle_core::Result<()> {
        debug_assert!(linears.iter().all(|linear| linear.observer.is_none()));
        Weight::forward_single(linears.map(|linear| &linear.weight), x, y)
    }

    /// Output features.
    pub fn out_features(&self) -> usize {
        self.weight.rows()
    }
}

/// The token embedding, and the output head where the two are tied.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: Weight,
    observer: Option<(Arc<str>, Arc<dyn Observer>)>,
}

impl Embedding {
    /// `weight [vocab_size, hidden_size]` below `tensors`.
    ///
    /// # Errors
    /// When the tensor is missing or not what is expected.
    pub fn load(tensors: &Tensors, vocab_size: usize, hidden_size: usize) -> Result<Self> {
        let weight = tensors.weight("weight", vocab_size, hidden_size)?;
        Ok(Self { weight, observer: tensors.observer("weight") })
    }

    /// `ids [positions] -> [positions, hidden_size]`.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        self.weight.gather(ids)
    }

    /// The row of an id that is in the vocabulary, into `x [hidden_size]`, on the CPU.
    pub fn row(&self, id: u32, x: &mut [f32]) {
        self.weight.row(id as usize, x);
    }

    /// The same matrix as an output head.
    pub fn as_head(&self) -> Linear {
        Linear { weight: self.weight.clone(), bias: None, observer: self.observer.clone() }
    }
}
