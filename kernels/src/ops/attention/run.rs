//! The tasks of an attention, and what they find.

use super::{Attention, AttentionBuffers};
use crate::{
    arch::page::{Mix, PageKernels},
    disjoint::Disjoint,
    kv::{PAGE, Store},
    ops::softmax,
    scheme::UNIT,
    team,
};
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

/// Queries and the history they look at.
pub struct Run<'a> {
    pub op: Attention<'a>,
    pub kernels: PageKernels,
    pub heads: usize,
    pub n: usize,
    pub head_dim: usize,
    pub kv_heads: usize,
    /// Units of a value: `head_dim / 64`, rounded up.
    pub units: usize,
}

/// What a task works in.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The queries of a task: `[rows, head_dim]`.
    queries: Vec<f32>,
    /// `[rows, positions]`.
    scores: Vec<f32>,
    /// Keys or values, where there are many rows.
    decoded: Vec<f32>,
}

/// The queries of one task, all of one page, and the pages that it looks at.
#[derive(Debug, Clone)]
pub struct Task {
    kv_head: usize,
    queries: Range<usize>,
    pages: Range<usize>,
    /// Its place in [`AttentionBuffers::found`].
    found: Range<usize>,
}

/// What some queries have found in some keys; rows are heads, then positions.
struct Found<'a> {
    /// The largest score.
    most: &'a mut [f32],
    /// `sum exp(score - most)`.
    sum: &'a mut [f32],
    /// `[rows, 64 units]`: `sum exp(score - most) value`.
    mix: &'a mut [f32],
}

impl<'a> Found<'a> {
    /// Numbers of so many rows of this width.
    fn size(rows: usize, width: usize) -> usize {
        rows * (2 + width)
    }

    /// The three, one after the other.
    fn of(all: &'a mut [f32], width: usize) -> Self {
        let rows = all.len() / (2 + width);
        let (most, rest) = all.split_at_mut(rows);
        let (sum, mix) = rest.split_at_mut(rows);
        Self { most, sum, mix }
    }

    /// The sum and the mix of a row, of so many, in what [`Found::of`] parts.
    fn row(all: &[f32], [row, rows]: [usize; 2], width: usize) -> (f32, &[f32]) {
        (all[rows + row], &all[2 * rows + row * width..][..width])
    }

    /// Adds what the same queries have found elsewhere.
    fn join(&mut self, other: &Self, width: usize) {
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
    }
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

    /// Numbers that a task finds for a block of queries.
    fn found_size(&self, block: &Range<usize>) -> usize {
        Found::size(self.heads / self.kv_heads * block.len(), self.width())
    }

    /// `q [heads, n, head_dim]`, which are in the buffers, scaled and rotated, to `y [n, heads * head_dim]`.
    pub fn all(&self, buffers: &mut AttentionBuffers, y: &mut [f32]) {
        self.plan(buffers);
        self.find_all(buffers);
        let AttentionBuffers { blocks, places, found, .. } = buffers;
        let width = self.width();
        for (place, block) in places.iter().zip(blocks.iter().cycle()) {
            let (all, others) = found[place.clone()].split_at_mut(self.found_size(block));
            let mut all = Found::of(all, width);
            others.chunks_exact_mut(self.found_size(block)).for_each(|other| {
                all.join(&Found::of(other, width), width);
            });
        }
        let Run { n, heads, kv_heads, head_dim, .. } = *self;
        let (past, group, rotation) = (self.past(), heads / kv_heads, self.op.history.value_rotation());
        let finish = |(i, y): (usize, &mut [f32])| {
            let block = (past + i) / PAGE - past / PAGE;
            let queries = &blocks[block];
            for (head, y) in y.chunks_exact_mut(head_dim).enumerate() {
                let found = &found[places[head / group * blocks.len() + block].start..];
                let row = [head % group * queries.len() + i - queries.start, group * queries.len()];
                let (sum, mix) = Found::row(found, row, width);
                let inverse = 1.0 / sum;
                y.iter_mut().zip(mix).for_each(|(y, mix)| *y = mix * inverse);
                rotation.iter().for_each(|rotation| rotation.invert(y));
            }
        };
        match n {
            1 => finish((0, y)),
            _ => y.par_chunks_mut(heads * head_dim).enumerate().for_each(finish),
        }
    }

    /// Writes down the tasks. Those of one head and block of queries come one after the other, and so does what they find.
    fn plan(&self, AttentionBuffers { blocks, tasks, places, .. }: &mut AttentionBuffers) {
        blocks.clear();
        tasks.clear();
        places.clear();
        let (past, kv_heads) = (self.past(), self.kv_heads);
        // Blocks end where pages do, so that a page is recent to all queries of a block or to none.
        blocks.extend(
            (past / PAGE..(past + self.n).div_ceil(PAGE))
                .map(|page| (page * PAGE).max(past) - past..((page + 1) * PAGE).min(past + self.n) - past),
        );
        let mut end = 0;
        for kv_head in 0..kv_heads {
            for queries in &*blocks {
                let seen = self.seen(queries.start).start..self.seen(queries.end - 1).end;
                let pages = seen.start / PAGE..seen.end.div_ceil(PAGE);
                let step = if kv_heads * blocks.len() < ENOUGH_TASKS { SEGMENT } else { pages.len() };
                let (first, size) = (end, self.found_size(queries));
                for start in pages.clone().step_by(step) {
                    let pages = start..pages.end.min(start + step);
                    tasks.push(Task { kv_head, queries: queries.clone(), pages, found: end..end + size });
                    end += size;
                }
                places.push(first..end);
            }
        }
    }

    /// Does the tasks.
    fn find_all(&self, AttentionBuffers { queries, tasks, found, scratch, .. }: &mut AttentionBuffers) {
        found.resize(tasks.last().map_or(0, |task| task.found.end), 0.0);
        let places = Disjoint::new(found);
        let find = |task: &Task, scratch: &mut Scratch| {
            // SAFETY: the places of tasks do not overlap, and each task comes once.
            let found = unsafe { places.part(task.found.start, task.found.len()) };
            self.find(task, queries, scratch, Found::of(found, self.width()));
        };
        if self.n > 1 {
            let tasks = tasks.par_iter().with_max_len(1);
            return tasks.for_each_init(Scratch::default, |scratch, task| find(task, scratch));
        }
        scratch.resize_with(tasks.len().max(scratch.len()), Scratch::default);
        if tasks.iter().map(|task| task.pages.len()).sum::<usize>() <= FEW_PAGES {
            tasks.iter().zip(scratch).for_each(|(task, scratch)| find(task, scratch));
        } else {
            team::for_each_chunk(&mut scratch[..tasks.len()], 1, |i, scratch| {
                find(&tasks[i], &mut scratch[0])
            });
        }
    }

    /// The positions that query `i` sees.
    fn seen(&self, i: usize) -> Range<usize> {
        self.op.history.seen(self.past() + i)
    }

    /// What a task finds, of `queries [heads, n, head_dim]`.
    fn find(&self, task: &Task, queries: &[f32], scratch: &mut Scratch, found: Found) {
        let Run { n, heads, kv_heads, head_dim, kernels, .. } = *self;
        let (kv_head, block, pages) = (task.kv_head, &task.queries, &task.pages);
        let (history, width) = (self.op.history, self.width());
        let query_page = (self.past() + block.start) / PAGE;
        let group = heads / kv_heads;
        let rows = group * block.len();
        let Scratch { queries: gathered, scores, decoded } = scratch;
        gathered.clear();
        for head in kv_head * group..(kv_head + 1) * group {
            gathered
                .extend_from_slice(&queries[(head * n + block.start) * head_dim..][..block.len() * head_dim]);
        }
        let q = &gathered[..];
        found.most.fill(f32::NEG_INFINITY);
        found.sum.fill(0.0);
        found.mix.fill(0.0);
        let stride = PAGES.min(pages.len()) * PAGE;
        scores.resize(rows * stride, 0.0);
        if rows > FEW_ROWS {
            decoded.resize(stride * width.max(head_dim), 0.0);
        }
        for start in pages.clone().step_by(PAGES) {
            let run = start..pages.end.min(start + PAGES);
            let recent = |page| history.is_recent(query_page, page);
            let stores = |values: bool| {
                run.clone().map(move |page| {
                    let half = history.page(page).map(|page| if values { &page.values } else { &page.keys });
                    half.and_then(|half| half.seen(recent(page))).expect("what queries see is held")
                })
            };
            let (keys, values) = (stores(false), stores(true));
            // S [rows, positions] = Q [rows, head_dim] K^T [head_dim, positions]
            if rows <= FEW_ROWS {
                scores.fill(0.0);
                for (i, store) in keys.clone().enumerate() {
                    let units = store.units(kv_head);
                    let mix = Mix {
                        codec: store.codec(),
                        units,
                        weights: q,
                        stride: head_dim,
                        rows,
                        out_stride: stride,
                    };
                    (kernels.mix)(mix, &mut scores[i * PAGE..]);
                }
            } else {
                for (i, store) in keys.clone().enumerate() {
                    (kernels.decode)(store.codec(), store.units(kv_head), &mut decoded[i * PAGE..], stride);
                }
                product(scores, stride, q, head_dim, decoded, stride, [rows, head_dim, stride], 0.0);
            }
            factors(keys, kv_head, scores, stride);
            let end = (run.end * PAGE).min(history.len());
            let positions = run.start * PAGE..end;
            for (row, scores) in scores.chunks_exact_mut(stride).enumerate() {
                let seen = self.seen(block.start + row % block.len());
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
            factors(values.clone(), kv_head, scores, stride);
            for (i, store) in values.enumerate() {
                let count = (positions.len() - i * PAGE).min(PAGE);
                let bytes = store.codec().unit_bytes();
                for (u, units) in store.units(kv_head).chunks_exact(PAGE * bytes).enumerate() {
                    let units = &units[..count * bytes];
                    if rows <= FEW_ROWS {
                        let weights = &scores[i * PAGE..];
                        let mix =
                            Mix { codec: store.codec(), units, weights, stride, rows, out_stride: width };
                        (kernels.mix)(mix, &mut found.mix[u * UNIT..]);
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
                product(found.mix, width, scores, stride, decoded, width, shape, 1.0);
            }
        }
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
