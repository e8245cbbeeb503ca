//! Causal grouped-query attention over a [`History`] as one op: scores, softmax and the mix of values, without a matrix of all
//! scores (Dao et al., "FlashAttention", 2022), and without keys and values in f32.
//!
//! Keys come in blocks of pages. A query keeps the largest score so far `m`, the sum `l` of `exp(score - m)`, and the values
//! mixed with these weights; a block with a larger score shrinks what is kept by `exp(m - m')`. In the end the mix is
//! divided by `l`. Queries of the heads that share keys and values are rows of the same products, so that what is decoded is
//! decoded once for all of them.
//!
//! Packed vectors have been rotated by an orthonormal `R`. Since `q . k = R q . R k`, the query is rotated once; and the mix of rotated
//! values is the rotated mix, which is rotated back once. Scales are factors of the scores and of their weights.

mod run;

use super::{Matrices, strided_rows};
use crate::{
    arch,
    kv::{History, PAGE},
    scheme::UNIT,
};
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape};
use rayon::prelude::*;
use run::{Run, Scratch, Task};
use std::ops::Range;

/// `q [heads, n, head_dim] -> [n, heads * head_dim]` f32, for the queries of the last `n` positions of a history.
///
/// Each sees its own position and those before it, as many as the history's window says. `heads` is a multiple
/// of the history's heads: each of those serves as many consecutive query heads.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// What scores are multiplied by, usually `head_dim^-1/2`.
    pub scale: f32,
    /// Scores become `softcap * tanh(score / softcap)` where this is set.
    pub softcap: Option<f32>,
    /// Keys and values, those of the queries' own positions included.
    pub history: &'a History,
}

/// Buffers that attention works in. Kept from one step of decoding to the next, nothing is allocated but for what a longer history
/// takes: a few kilobytes for each 256 positions of a key head; 128 KiB, with heads of 128, where it serves more than 16 query heads.
#[derive(Debug, Default)]
pub struct AttentionBuffers {
    /// The queries, scaled and rotated: `[heads, n, head_dim]`.
    queries: Vec<f32>,
    /// Runs of queries of one page.
    blocks: Vec<Range<usize>>,
    tasks: Vec<Task>,
    /// Where in `found` the tasks of each head and each block have theirs.
    places: Vec<Range<usize>>,
    /// What the tasks have found.
    found: Vec<f32>,
    /// What each task of a single position works in.
    scratch: Vec<Scratch>,
}

impl CustomOp1 for Attention<'_> {
    fn name(&self) -> &'static str {
        "squish-attention"
    }

    fn cpu_fwd(&self, q: &CpuStorage, q_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.attend(&strided_rows(&format!("{}: queries", self.name()), q, q_layout)?)
    }
}

impl Attention<'_> {
    /// `q [heads, n, head_dim]` to `[n, heads * head_dim]`.
    pub(super) fn attend(&self, q: &Matrices) -> Result<(CpuStorage, Shape)> {
        let [heads, n, head_dim] = q.dims;
        let mut y = vec![0.0; heads * n * head_dim];
        self.attend_in(&mut AttentionBuffers::default(), q, &mut y)?;
        Ok((CpuStorage::F32(y), (n, heads * head_dim).into()))
    }

    /// The op for a single position: `q [heads * head_dim]` to `y`, of the same size.
    ///
    /// # Errors
    /// When queries and history do not fit each other.
    pub fn single(&self, q: &[f32], buffers: &mut AttentionBuffers, y: &mut [f32]) -> Result<()> {
        let head_dim = self.history.shape().map_or(q.len(), |(_, width)| width);
        let heads = q.len().checked_div(head_dim).unwrap_or(0);
        if q.len() != heads * head_dim || y.len() != q.len() {
            let (sizes, width) = ([q.len(), y.len()], head_dim);
            let message = format!("{}: queries and output {sizes:?} are no heads of {width}", self.name());
            return Err(Error::Msg(message).bt());
        }
        self.attend_in(buffers, &Matrices { values: q, dims: [heads, 1, head_dim], stride: head_dim }, y)
    }

    /// `q [heads, n, head_dim]` to `y [n, heads * head_dim]`.
    fn attend_in(&self, buffers: &mut AttentionBuffers, q: &Matrices, y: &mut [f32]) -> Result<()> {
        let kernels = arch::kernels().map_err(Error::wrap)?.pages;
        let ([heads, n, head_dim], history) = (q.dims, self.history);
        let fits = |&(kv_heads, width): &(usize, usize)| {
            width == head_dim
                && heads > 0
                && heads.is_multiple_of(kv_heads)
                && (1..=history.len()).contains(&n)
        };
        let Some((kv_heads, _)) = history.shape().filter(fits) else {
            let (q, len) = (q.dims, history.len());
            let message = format!(
                "{}: queries {q:?} and {len} positions of keys and values {:?} do not fit",
                self.name(),
                history.shape()
            );
            return Err(Error::Msg(message).bt());
        };
        // What queries see is held; kept here rather than found out in the midst of it.
        let missing = (history.seen(history.len() - n).start / PAGE..history.len().div_ceil(PAGE))
            .find(|&page| history.page(page).is_none());
        if let Some(page) = missing {
            let message = format!("{}: page {page} of the history was dropped", self.name());
            return Err(Error::Msg(message).bt());
        }
        self.scale_queries(q, &mut buffers.queries);
        let units = head_dim.div_ceil(UNIT);
        Run { op: *self, kernels, heads, n, head_dim, kv_heads, units }.all(buffers, y);
        Ok(())
    }

    /// The queries, scaled, and rotated as the keys are: `[heads, n, head_dim]`.
    fn scale_queries(&self, q: &Matrices, all: &mut Vec<f32>) {
        let [heads, n, head_dim] = q.dims;
        all.clear();
        for head in 0..heads {
            all.extend(q.rows(head, 0..n).iter().map(|q| q * self.scale));
        }
        if let Some(rotation) = self.history.key_rotation() {
            match n {
                1 => all.chunks_exact_mut(head_dim).for_each(|q| rotation.apply(q)),
                _ => all.par_chunks_exact_mut(head_dim).with_min_len(32).for_each(|q| rotation.apply(q)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
