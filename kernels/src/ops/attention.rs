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

use super::{Matrices, softmax, strided_rows};
use crate::{
    arch::{
        self,
        page::{Mix, PageKernels},
    },
    kv::{History, PAGE, Store},
    scheme::UNIT,
    team,
};
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape};
use rayon::prelude::*;
use std::ops::Range;

/// Pages of one product.
const PAGES: usize = 4;

/// Pages of one task where there are too few queries to keep all threads busy.
const SEGMENT: usize = 4;

/// From this many tasks on, keys are not split between tasks. Not the number of threads, on which
/// results would then depend.
const ENOUGH_TASKS: usize = 16;

/// Up to so many pages of all heads are worked on by one thread while a token is decoded: handing them out takes longer.
const FEW_PAGES: usize = 2;

/// Up to so many rows of queries are multiplied with a page as it is decoded; for more, pages are decoded once for a product of
/// matrices.
const FEW_ROWS: usize = 16;

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
        let queries = self.queries(q);
        let units = head_dim.div_ceil(UNIT);
        let run = Run { op: *self, kernels, q: &queries, heads, n, head_dim, kv_heads, units };
        Ok((CpuStorage::F32(run.all()), (n, heads * head_dim).into()))
    }

    /// The queries, scaled, and rotated as the keys are: `[heads, n, head_dim]`.
    fn queries(&self, q: &Matrices) -> Vec<f32> {
        let [heads, n, head_dim] = q.dims;
        let mut all = Vec::with_capacity(heads * n * head_dim);
        for head in 0..heads {
            all.extend(q.rows(head, 0..n).iter().map(|q| q * self.scale));
        }
        if let Some(rotation) = self.history.key_rotation() {
            match n {
                1 => all.chunks_exact_mut(head_dim).for_each(|q| rotation.apply(q)),
                _ => all.par_chunks_exact_mut(head_dim).with_min_len(32).for_each(|q| rotation.apply(q)),
            }
        }
        all
    }
}

struct Run<'a> {
    op: Attention<'a>,
    kernels: PageKernels,
    /// `[heads, n, head_dim]`.
    q: &'a [f32],
    heads: usize,
    n: usize,
    head_dim: usize,
    kv_heads: usize,
    /// Units of a value: `head_dim / 64`, rounded up.
    units: usize,
}

/// The queries of one task, all of one page, and the pages that it looks at.
#[derive(Clone)]
struct Task {
    kv_head: usize,
    queries: Range<usize>,
    pages: Range<usize>,
}

/// What some queries have found in some keys; rows are heads, then positions.
struct Found {
    /// The largest score.
    most: Vec<f32>,
    /// `sum exp(score - most)`.
    sum: Vec<f32>,
    /// `[rows, 64 units]`: `sum exp(score - most) value`.
    mix: Vec<f32>,
}

impl Run<'_> {
    /// Position of the first query.
    fn past(&self) -> usize {
        self.op.history.len() - self.n
    }

    /// Width of a mix.
    fn width(&self) -> usize {
        self.units * UNIT
    }

    fn all(&self) -> Vec<f32> {
        let Run { n, heads, kv_heads, head_dim, .. } = *self;
        let past = self.past();
        // Blocks end where pages do, so that a page is recent to all queries of a block or to none.
        let first_page = past / PAGE;
        let blocks: Vec<Range<usize>> = (first_page..(past + n).div_ceil(PAGE))
            .map(|page| (page * PAGE).max(past) - past..((page + 1) * PAGE).min(past + n) - past)
            .collect();
        // The tasks of a head's queries come one after the other, and end at `ends`.
        let (mut tasks, mut ends) = (Vec::new(), Vec::new());
        for kv_head in 0..kv_heads {
            for queries in &blocks {
                let seen = self.seen(queries.start).start..self.seen(queries.end - 1).end;
                let pages = seen.start / PAGE..seen.end.div_ceil(PAGE);
                let step = if kv_heads * blocks.len() < ENOUGH_TASKS { SEGMENT } else { pages.len() };
                let segments = pages.clone().step_by(step).map(|start| start..pages.end.min(start + step));
                tasks.extend(segments.map(|pages| Task { kv_head, queries: queries.clone(), pages }));
                ends.push(tasks.len());
            }
        }
        let mut parts: Vec<Option<Found>> = tasks.iter().map(|_| None).collect();
        match n {
            1 if tasks.iter().map(|task| task.pages.len()).sum::<usize>() <= FEW_PAGES => {
                parts.iter_mut().zip(&tasks).for_each(|(found, task)| *found = Some(self.find(task)));
            }
            1 => team::for_each_chunk(&mut parts, 1, |i, found| found[0] = Some(self.find(&tasks[i]))),
            _ => {
                let all = parts.par_iter_mut().zip(&tasks).with_max_len(1);
                all.for_each(|(found, task)| *found = Some(self.find(task)));
            }
        }
        let (mut parts, mut start) = (parts.into_iter().flatten(), 0);
        let joined = ends.into_iter().map(|end| {
            let of_these = parts.by_ref().take(end - std::mem::replace(&mut start, end));
            let all = of_these.reduce(|all, more| all.join(more, self.width()));
            all.expect("a query sees its own position at least")
        });
        let found: Vec<Found> = joined.collect();
        let (group, mut y) = (heads / kv_heads, vec![0.0; n * heads * head_dim]);
        let rotation = self.op.history.value_rotation();
        let finish = |(i, y): (usize, &mut [f32])| {
            let block = (past + i) / PAGE - first_page;
            let queries = &blocks[block];
            for (head, y) in y.chunks_exact_mut(head_dim).enumerate() {
                let found = &found[head / group * blocks.len() + block];
                let row = head % group * queries.len() + i - queries.start;
                let inverse = 1.0 / found.sum[row];
                y.iter_mut().zip(&found.mix[row * self.width()..]).for_each(|(y, mix)| *y = mix * inverse);
                rotation.iter().for_each(|rotation| rotation.invert(y));
            }
        };
        match n {
            1 => finish((0, &mut y)),
            _ => y.par_chunks_mut(heads * head_dim).enumerate().for_each(finish),
        }
        y
    }

    /// The positions that query `i` sees.
    fn seen(&self, i: usize) -> Range<usize> {
        self.op.history.seen(self.past() + i)
    }

    fn find(&self, task: &Task) -> Found {
        let Run { n, heads, kv_heads, head_dim, kernels, .. } = *self;
        let Task { kv_head, queries, pages } = task;
        let (history, width) = (self.op.history, self.width());
        let query_page = (self.past() + queries.start) / PAGE;
        let group = heads / kv_heads;
        let rows = group * queries.len();
        let mut q = Vec::with_capacity(rows * head_dim);
        for head in kv_head * group..(kv_head + 1) * group {
            q.extend(&self.q[(head * n + queries.start) * head_dim..][..queries.len() * head_dim]);
        }
        let mut found =
            Found { most: vec![f32::NEG_INFINITY; rows], sum: vec![0.0; rows], mix: vec![0.0; rows * width] };
        let stride = PAGES.min(pages.len()) * PAGE;
        let mut scores = vec![0.0; rows * stride];
        let mut decoded = if rows > FEW_ROWS { vec![0.0; stride * width.max(head_dim)] } else { Vec::new() };
        for start in pages.clone().step_by(PAGES) {
            let block = start..pages.end.min(start + PAGES);
            let recent = |page| history.is_recent(query_page, page);
            let stores = |values: bool| {
                block.clone().map(move |page| {
                    let half = history.page(page).map(|page| if values { &page.values } else { &page.keys });
                    half.and_then(|half| half.seen(recent(page))).expect("what queries see is held")
                })
            };
            let (keys, values) = (stores(false), stores(true));
            // S [rows, positions] = Q [rows, head_dim] K^T [head_dim, positions]
            if rows <= FEW_ROWS {
                scores.fill(0.0);
                for (i, store) in keys.clone().enumerate() {
                    let units = store.units(*kv_head);
                    let run = Mix {
                        codec: store.codec(),
                        units,
                        weights: &q,
                        stride: head_dim,
                        rows,
                        out_stride: stride,
                    };
                    (kernels.mix)(run, &mut scores[i * PAGE..]);
                }
            } else {
                for (i, store) in keys.clone().enumerate() {
                    (kernels.decode)(store.codec(), store.units(*kv_head), &mut decoded[i * PAGE..], stride);
                }
                product(&mut scores, stride, &q, head_dim, &decoded, stride, [rows, head_dim, stride], 0.0);
            }
            factors(keys, *kv_head, &mut scores, stride);
            let end = (block.end * PAGE).min(history.len());
            let positions = block.start * PAGE..end;
            for (row, scores) in scores.chunks_exact_mut(stride).enumerate() {
                let seen = self.seen(queries.start + row % queries.len());
                let from = seen.start.clamp(positions.start, end) - positions.start;
                let to = seen.end.clamp(positions.start, end) - positions.start;
                let (before, rest) = scores.split_at_mut(from);
                let (scores, after) = rest.split_at_mut(to.saturating_sub(from));
                before.fill(0.0);
                after.fill(0.0);
                if scores.is_empty() {
                    continue;
                }
                if let Some(cap) = self.op.softcap {
                    scores.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
                }
                let most = found.most[row].max(softmax::largest(scores));
                let shrink = if most > found.most[row] { (found.most[row] - most).exp() } else { 1.0 };
                if shrink != 1.0 {
                    found.mix[row * width..][..width].iter_mut().for_each(|mix| *mix *= shrink);
                }
                found.sum[row] = found.sum[row] * shrink + softmax::exp_below(scores, most);
                found.most[row] = most;
            }
            // mix [rows, width] += S [rows, positions] V [positions, width]; places without a position are no part of it.
            factors(values.clone(), *kv_head, &mut scores, stride);
            for (i, store) in values.enumerate() {
                let count = (positions.len() - i * PAGE).min(PAGE);
                let bytes = store.codec().unit_bytes();
                for (u, units) in store.units(*kv_head).chunks_exact(PAGE * bytes).enumerate() {
                    let units = &units[..count * bytes];
                    if rows <= FEW_ROWS {
                        let weights = &scores[i * PAGE..];
                        let run =
                            Mix { codec: store.codec(), units, weights, stride, rows, out_stride: width };
                        (kernels.mix)(run, &mut found.mix[u * UNIT..]);
                    } else {
                        (kernels.decode)(
                            store.codec(),
                            units,
                            &mut decoded[i * PAGE * width + u * UNIT..],
                            width,
                        );
                    }
                }
            }
            if rows > FEW_ROWS {
                let shape = [rows, positions.len(), width];
                product(&mut found.mix, width, &scores, stride, &decoded, width, shape, 1.0);
            }
        }
        found
    }
}

/// Multiplies the numbers of each position by its scale.
fn factors<'a>(stores: impl Iterator<Item = &'a Store>, head: usize, rows: &mut [f32], stride: usize) {
    for (i, store) in stores.enumerate() {
        let Some(scales) = store.scales(head) else { continue };
        let scales = scales.map(|scale| scale.to_f32());
        for row in rows.chunks_exact_mut(stride) {
            row[i * PAGE..].iter_mut().zip(scales).for_each(|(v, scale)| *v *= scale);
        }
    }
}

impl Found {
    /// What the same queries have found in both.
    fn join(mut self, other: Self, width: usize) -> Self {
        for row in 0..self.most.len() {
            let most = self.most[row].max(other.most[row]);
            // A query that saw no key of a segment has the largest score -inf there, and shares of 0.
            let share = |m: f32| if m == f32::NEG_INFINITY { 0.0 } else { (m - most).exp() };
            let (a, b) = (share(self.most[row]), share(other.most[row]));
            self.sum[row] = a * self.sum[row] + b * other.sum[row];
            let mixes = self.mix[row * width..].iter_mut().zip(&other.mix[row * width..]).take(width);
            mixes.for_each(|(mine, theirs)| *mine = a * *mine + b * theirs);
            self.most[row] = most;
        }
        self
    }
}

/// `out [m, n] = keep * out + a [m, k] b [k, n]`, all row-major, with rows so far apart.
#[allow(clippy::too_many_arguments)]
fn product(
    out: &mut [f32],
    out_stride: usize,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    b_stride: usize,
    [m, k, n]: [usize; 3],
    keep: f32,
) {
    let fits = |len: usize, rows: usize, cols: usize, stride: usize| {
        rows == 0 || (cols <= stride && (rows - 1) * stride + cols <= len)
    };
    assert!(
        fits(out.len(), m, n, out_stride) && fits(a.len(), m, k, a_stride) && fits(b.len(), k, n, b_stride)
    );
    // SAFETY: the three are row-major, with rows within their slices, as asserted. Strides are given as (column, row).
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            keep != 0.0,
            a.as_ptr(),
            1,
            a_stride as isize,
            b.as_ptr(),
            1,
            b_stride as isize,
            keep,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests;
