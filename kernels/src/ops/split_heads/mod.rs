//! Queries, keys and values as attention wants them.

use super::{FloatsOf, RmsScale, norm, rows_of};
use crate::kv::DeviceHistory;
use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;
use std::ops::{Deref, Range};
#[cfg(feature = "metal")]
use {
    super::rows_in,
    crate::metal::{self, device},
    candle_core::{DType, MetalStorage, backend::BackendStorage},
};

/// Values from which on several threads are worth waking.
const MANY: usize = 1 << 15;

/// Queries `[n, heads * head_dim]`, keys and values `[n, kv_heads * head_dim]`, all f32, to heads `[.., n, head_dim]`: with biases added,
/// queries and keys normalised head by head, and turned (Su et al., "RoFormer", 2021): `(a, b)` dimensions `i` and `i + head_dim / 2` of a head
/// at position `p`,
///
/// ```text
/// (a, b) <- (a cos[p, i] - b sin[p, i], a sin[p, i] + b cos[p, i])
/// ```
///
/// The table of cosines and sines is tensors, or slices for a single position in place.
#[derive(Debug, Clone, Copy)]
pub struct SplitHeads<'a, T = &'a Tensor> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Added to queries, keys and values.
    pub biases: Option<[&'a Tensor; 3]>,
    /// Norms of queries and keys, with the same `eps`.
    pub norms: Option<[RmsScale<'a>; 2]>,
    /// Cosines `[n, head_dim / 2]`.
    pub cos: T,
    /// Sines.
    pub sin: T,
}

impl SplitHeads<'_, &[f32]> {
    /// The heads of a single position on the CPU, in place: `qkv [(heads + 2 kv_heads) * head_dim]`, queries, keys and values.
    ///
    /// # Errors
    /// When sizes do not fit.
    pub fn in_place(&self, qkv: &mut [f32]) -> Result<()> {
        let SplitHeads { heads, kv_heads, head_dim: dim, cos, sin, .. } = *self;
        let sizes = [qkv.len(), cos.len(), sin.len()];
        if dim == 0 || !dim.is_multiple_of(2) || sizes != [(heads + 2 * kv_heads) * dim, dim / 2, dim / 2] {
            return Err(self.refuse(&format!("one position of {sizes:?}")));
        }
        let held = self.held();
        let turned = held.turned(self, cos, sin)?;
        let kinds = [heads, kv_heads, kv_heads].into_iter().enumerate();
        let places = kinds.flat_map(|(kind, count)| (0..count).map(move |head| (kind, head)));
        qkv.chunks_exact_mut(dim).zip(places).for_each(|(y, (kind, head))| turned.finish(kind, head, 0, y));
        Ok(())
    }
}

impl SplitHeads<'_> {
    /// Queries `[heads, n, head_dim]`, keys and values `[kv_heads, n, head_dim]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device has no such op.
    pub fn split(&self, [q, k, v]: [&Tensor; 3]) -> Result<[Tensor; 3]> {
        let (n, dim) = (q.dim(0)?, self.head_dim);
        if !q.device().is_cpu() {
            let held = || Tensor::zeros((self.kv_heads, n, dim), q.dtype(), q.device());
            let (keys, values) = (held()?, held()?);
            let q = self.append([q, k, v], [&keys, &values], 0)?;
            return Ok([q, keys, values]);
        }
        let all = q.apply_op3_no_bwd(k, v, &Heads { of: self, place: None })?;
        let mut start = 0;
        let mut part = |heads: usize| {
            let part = all.narrow(0, start, heads * n * dim)?.reshape((heads, n, dim));
            start += heads * n * dim;
            part
        };
        Ok([part(self.heads)?, part(self.kv_heads)?, part(self.kv_heads)?])
    }

    /// The queries `[heads, n, head_dim]`; keys and values are put into `held`, `[kv_heads, capacity, head_dim]` f32 or f16 each, at
    /// position `start`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device has no such op.
    pub fn append(&self, qkv: [&Tensor; 3], held: [&Tensor; 2], start: usize) -> Result<Tensor> {
        let [q, k, v] = qkv;
        if q.device().is_cpu() {
            let [q, k, v] = self.split(qkv)?;
            for (new, held) in [k, v].iter().zip(held) {
                held.slice_set(&new.to_dtype(held.dtype())?, 1, start)?;
            }
            return Ok(q);
        }
        let n = q.dim(0)?;
        for held in held {
            let (heads, capacity, dim) = held.dims3()?;
            let fits = heads == self.kv_heads && dim == self.head_dim && start + n <= capacity;
            if !fits || !held.is_contiguous() {
                return Err(self.refuse(&format!("keys or values {:?} at {start}", held.dims())));
            }
        }
        q.apply_op3_no_bwd(k, v, &Heads { of: self, place: Some(Place::Tensors(held, start)) })
    }

    /// The queries `[heads, n, head_dim]`, rotated where the history's keys are; keys and values are put into the history, whose
    /// queries see `window` positions, and all before them where that is `None`. On a GPU.
    ///
    /// # Errors
    /// When shapes do not fit, or the device has no such op; the history then holds what it held.
    pub fn append_pages(
        &self,
        [q, k, v]: [&Tensor; 3],
        history: &mut DeviceHistory,
        window: Option<usize>,
    ) -> Result<Tensor> {
        let n = q.dim(0)?;
        if window == Some(0) {
            return Err(self.refuse("a window of no positions"));
        }
        let pack = history.reserve((self.kv_heads, n, self.head_dim), q.device())?;
        let place = Some(Place::Pages(history, pack.clone()));
        let q = q.apply_op3_no_bwd(k, v, &Heads { of: self, place })?;
        history.advance(n, pack, window);
        Ok(q)
    }

    /// The new positions, where all sizes fit each other.
    fn check(&self, q: &Layout, k: &Layout, v: &Layout) -> Result<usize> {
        let dim = self.head_dim;
        let n = q.dims().first().copied().unwrap_or(0);
        let (cols, kv_cols) = (self.heads * dim, self.kv_heads * dim);
        let same = |layout: &Layout, cols| layout.dims() == [n, cols];
        if !same(q, cols) || !same(k, kv_cols) || !same(v, kv_cols) || dim == 0 || !dim.is_multiple_of(2) {
            return Err(self.refuse(&format!("{:?}, {:?} and {:?}", q.dims(), k.dims(), v.dims())));
        }
        Ok(n)
    }
}

impl<T> SplitHeads<'_, T> {
    fn refuse(&self, what: &str) -> Error {
        let (heads, kv_heads, dim) = (self.heads, self.kv_heads, self.head_dim);
        let message = format!("{NAME}: {what} does not fit {heads} and {kv_heads} heads of {dim}");
        Error::Msg(message).bt()
    }

    /// Biases and norms, to be read on the CPU.
    fn held(&self) -> Held<'_, impl Deref<Target = Storage>> {
        Held {
            biases: self.biases.map(|biases| biases.map(FloatsOf::new)),
            factors: self.norms.map(|norms| norms.map(|norm| FloatsOf::new(norm.factor))),
        }
    }
}

/// Biases and norms, kept from being written while they are read.
struct Held<'a, S> {
    biases: Option<[FloatsOf<'a, S>; 3]>,
    factors: Option<[FloatsOf<'a, S>; 2]>,
}

impl<S: Deref<Target = Storage>> Held<'_, S> {
    /// What is done to heads, with a table of these cosines and sines.
    fn turned<'a, T>(&'a self, of: &SplitHeads<T>, cos: &'a [f32], sin: &'a [f32]) -> Result<Turned<'a>> {
        let dim = of.head_dim;
        let bias = |i: usize, heads: usize| {
            self.biases.as_ref().map(|biases| biases[i].get(NAME, heads * dim)).transpose()
        };
        let norm = |i: usize| match (&self.factors, &of.norms) {
            (Some(factors), Some(norms)) => Ok::<_, Error>(Some((factors[i].get(NAME, dim)?, norms[i].eps))),
            _ => Ok(None),
        };
        let biases = [bias(0, of.heads)?, bias(1, of.kv_heads)?, bias(2, of.kv_heads)?];
        Ok(Turned { dim, biases, norms: [norm(0)?, norm(1)?, None], cos, sin })
    }
}

/// What is done to heads of queries, keys and values, which are kinds 0, 1 and 2.
struct Turned<'a> {
    dim: usize,
    biases: [Option<&'a [f32]>; 3],
    /// Factor, and what is added to the mean square.
    norms: [Option<(&'a [f32], f32)>; 3],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Turned<'_> {
    /// Does it to a head of some kind at some position of the table.
    fn finish(&self, kind: usize, head: usize, position: usize, y: &mut [f32]) {
        let dim = self.dim;
        if let Some(bias) = self.biases[kind] {
            y.iter_mut().zip(&bias[head * dim..]).for_each(|(y, bias)| *y += bias);
        }
        if let Some((factor, eps)) = self.norms[kind] {
            norm::scale(y, factor, eps);
        }
        if kind < 2 {
            let at = position * dim / 2..(position + 1) * dim / 2;
            let (low, high) = y.split_at_mut(dim / 2);
            let values = low.iter_mut().zip(high).zip(self.cos[at.clone()].iter().zip(&self.sin[at]));
            for ((low, high), (cos, sin)) in values {
                (*low, *high) = (*low * cos - *high * sin, *low * sin + *high * cos);
            }
        }
    }
}

const NAME: &str = "squish-split-heads";

/// The op: to all heads, one after the other, or to the queries' alone, with the others put where they are held.
struct Heads<'a> {
    of: &'a SplitHeads<'a>,
    place: Option<Place<'a>>,
}

/// Where keys and values are held.
#[cfg_attr(not(feature = "metal"), allow(dead_code))]
enum Place<'a> {
    /// In these tensors, from a position on.
    Tensors([&'a Tensor; 2], usize),
    /// In pages, behind the others, of which these are packed now.
    Pages(&'a DeviceHistory, Range<usize>),
}

impl CustomOp3 for Heads<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let SplitHeads { heads, kv_heads, head_dim: dim, .. } = *self.of;
        let n = self.of.check(q_layout, k_layout, v_layout)?;
        if self.place.is_some() {
            return Err(self.of.refuse("a place for keys"));
        }
        let (q, _) = rows_of(NAME, q, q_layout, heads * dim)?;
        let (k, _) = rows_of(NAME, k, k_layout, kv_heads * dim)?;
        let (v, _) = rows_of(NAME, v, v_layout, kv_heads * dim)?;
        let [cos, sin] = [self.of.cos, self.of.sin].map(FloatsOf::new);
        let (cos, sin) = (cos.get(NAME, n * dim / 2)?, sin.get(NAME, n * dim / 2)?);
        let held = self.of.held();
        let turned = held.turned(self.of, cos, sin)?;
        let parts = [(q, heads), (k, kv_heads), (v, kv_heads)];
        // Row i of the output is head i / n, counted on from queries to keys to values, at position i % n.
        let row = |i: usize, y: &mut [f32]| {
            let (mut head, position) = (i / n, i % n);
            let mut kind = 0;
            while head >= parts[kind].1 {
                (head, kind) = (head - parts[kind].1, kind + 1);
            }
            let (x, count) = parts[kind];
            y.copy_from_slice(&x[(position * count + head) * dim..][..dim]);
            turned.finish(kind, head, position, y);
        };
        let mut y = vec![0.0; (heads + 2 * kv_heads) * n * dim];
        if y.len() < MANY {
            y.chunks_mut(dim).enumerate().for_each(|(i, y)| row(i, y));
        } else {
            y.par_chunks_mut(dim).enumerate().for_each(|(i, y)| row(i, y));
        }
        let count = y.len();
        Ok((CpuStorage::F32(y), count.into()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(
        &self,
        q: &MetalStorage,
        q_layout: &Layout,
        k: &MetalStorage,
        k_layout: &Layout,
        v: &MetalStorage,
        v_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let of = self.of;
        let SplitHeads { heads, kv_heads, head_dim: dim, .. } = *of;
        let positions = of.check(q_layout, k_layout, v_layout)?;
        let rows = |storage: &MetalStorage, layout, heads: usize| {
            rows_in(NAME, storage.dtype(), layout, heads * dim).map(|(range, _)| range.start)
        };
        let mut inputs = vec![
            (q, rows(q, q_layout, heads)?),
            (k, rows(k, k_layout, kv_heads)?),
            (v, rows(v, v_layout, kv_heads)?),
        ];
        let place = self.place.as_ref().ok_or_else(|| of.refuse("no place for keys"))?;
        let tensors: Vec<&Tensor> = match place {
            Place::Tensors(held, _) => held.to_vec(),
            Place::Pages(history, _) => history.tensors().ok_or_else(|| of.refuse("no pages"))?.to_vec(),
        };
        let pairs = positions * dim / 2;
        let mut operands = vec![(of.cos, pairs), (of.sin, pairs)];
        if let Some(biases) = of.biases {
            operands.extend(biases.into_iter().zip([heads, kv_heads, kv_heads].map(|heads| heads * dim)));
        }
        operands.extend(of.norms.iter().flatten().map(|norm| (norm.factor, dim)));
        let held: Vec<_> = tensors.iter().map(|held| FloatsOf::new(held)).collect();
        for held in &held {
            inputs.push(held.any_on_metal(NAME)?);
        }
        let others: Vec<_> = operands.iter().map(|(tensor, _)| FloatsOf::new(tensor)).collect();
        for (other, (_, count)) in others.iter().zip(&operands) {
            inputs.push(other.on_metal(NAME, *count)?);
        }
        let (biased, norm) = (of.biases.is_some(), of.norms.map(|[q, _]| q.eps));
        let shape = |start, strides| metal::HeadsShape {
            heads,
            kv_heads,
            positions,
            head_dim: dim,
            start,
            strides,
            biased,
            norm,
        };
        let launches = match place {
            Place::Tensors([keys, values], start) => {
                let half = keys.dtype() == DType::F16;
                if values.dtype() != keys.dtype() || !(half || keys.dtype() == DType::F32) {
                    let (keys, values) = (keys.dtype(), values.dtype());
                    return Err(of.refuse(&format!("keys {keys:?} and values {values:?}")));
                }
                let strides = [keys, values].map(|held| held.dims()[1] * dim);
                vec![metal::split_heads(&shape(*start, strides), half)]
            }
            Place::Pages(history, pack) => {
                let pages = history.shape().ok_or_else(|| of.refuse("no pages"))?;
                metal::append_pages(&shape(history.len(), [0, 0]), &pages, pack.clone())
            }
        };
        let y = device::run(NAME, q.device(), &launches, &[], &inputs, heads * positions * dim)?;
        Ok((y, (heads, positions, dim).into()))
    }
}

#[cfg(test)]
mod tests;
