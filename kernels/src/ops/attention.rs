//! Causal grouped-query attention as one op: scores, softmax and the mix of values, without a matrix of all scores
//! (Dao et al., "FlashAttention", 2022).
//!
//! Keys come in blocks. A query keeps the largest score so far `m`, the sum `l` of `exp(score - m)`, and the values mixed
//! with these weights; a block with a larger score shrinks what is kept by `exp(m - m')`. In the end the mix is
//! divided by `l`. Queries of the heads that share keys and values are rows of the same products.

use super::{softmax, strided_rows};
use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape};
use rayon::prelude::*;
use std::ops::Range;
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{DType, MetalStorage, backend::BackendStorage},
};

/// Positions of queries that are worked on together.
const QUERY_BLOCK: usize = 64;

/// Keys of one product.
const KEY_BLOCK: usize = 256;

/// Keys of one task where there are too few queries to keep all threads busy.
const SEGMENT: usize = 1024;

/// From this many tasks on, keys are not split between tasks. Not the number of threads, on which
/// results would then depend.
const ENOUGH_TASKS: usize = 16;

/// `q [heads, n, head_dim]`, `k` and `v [kv_heads, positions, head_dim] -> [n, heads * head_dim]`, all f32.
///
/// The queries are those of the last `n` positions; each sees its own position and those before it. `heads` is a multiple
/// of `kv_heads`: each key head serves as many consecutive query heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// What scores are multiplied by, usually `head_dim^-1/2`.
    pub scale: f32,
    /// Scores become `softcap * tanh(score / softcap)` where this is set.
    pub softcap: Option<f32>,
    /// A query sees this many positions at most, its own included; `None` for all before it.
    pub window: Option<usize>,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "squish-attention"
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
        let heads =
            |what, storage, layout| strided_rows(&format!("{}: {what}", self.name()), storage, layout);
        let (q, k, v) =
            (heads("queries", q, q_layout)?, heads("keys", k, k_layout)?, heads("values", v, v_layout)?);
        self.check(q.dims, k.dims, v.dims)?;
        let [heads, n, head_dim] = q.dims;
        let y = Run { op: *self, q, k, v }.all();
        Ok((CpuStorage::F32(y), (n, heads * head_dim).into()))
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
        let name = self.name();
        let matrices = |what, storage: &MetalStorage, layout| {
            super::strided_matrices(&format!("{name}: {what}"), storage.dtype(), layout)
        };
        let ((q_dims, q_stride), (k_dims, k_stride), (v_dims, v_stride)) = (
            matrices("queries", q, q_layout)?,
            matrices("keys", k, k_layout)?,
            matrices("values", v, v_layout)?,
        );
        self.check(q_dims, k_dims, v_dims)?;
        let [heads, n, head_dim] = q_dims;
        let held = k.dtype();
        let known = q.dtype() == DType::F32 && [DType::F32, DType::F16].contains(&held) && v.dtype() == held;
        let packed = heads == 1 || q_stride == n * head_dim;
        let strides = [k_stride, v_stride];
        let launch = (known && packed)
            .then(|| metal::attention(self, q_dims, [k_dims[0], k_dims[1]], strides, held == DType::F16));
        let Some(Some(launch)) = launch else {
            let message = format!("{name}: queries {q_dims:?} over keys in {held:?} are not for this device");
            return Err(Error::Msg(message).bt());
        };
        let inputs =
            [(q, q_layout.start_offset()), (k, k_layout.start_offset()), (v, v_layout.start_offset())];
        let y = device::run(name, q.device(), &[launch], None, &inputs, n * heads * head_dim)?;
        Ok((y, (n, heads * head_dim).into()))
    }
}

impl Attention {
    /// Whether queries, keys and values of these dimensions fit each other.
    fn check(&self, q: [usize; 3], k: [usize; 3], v: [usize; 3]) -> Result<()> {
        let fits = k == v
            && q[2] == k[2]
            && q[1] <= k[1]
            && q[0].min(k[0]).min(k[2]) > 0
            && q[0].is_multiple_of(k[0])
            && self.window != Some(0);
        if fits {
            return Ok(());
        }
        let (name, window) = (self.name(), self.window);
        let message =
            format!("{name}: queries {q:?}, keys {k:?} and values {v:?} do not fit, window {window:?}");
        Err(Error::Msg(message).bt())
    }
}

/// Some matrices `[dims[1], dims[2]]`, contiguous each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrices<'a> {
    pub values: &'a [f32],
    pub dims: [usize; 3],
    /// From the start of one matrix to that of the next.
    pub stride: usize,
}

impl<'a> Matrices<'a> {
    fn rows(&self, matrix: usize, rows: Range<usize>) -> &'a [f32] {
        let cols = self.dims[2];
        &self.values[matrix * self.stride..][rows.start * cols..rows.end * cols]
    }
}

struct Run<'a> {
    op: Attention,
    q: Matrices<'a>,
    k: Matrices<'a>,
    v: Matrices<'a>,
}

/// The queries of one task, and the keys that it looks at.
#[derive(Clone)]
struct Task {
    kv_head: usize,
    queries: Range<usize>,
    keys: Range<usize>,
}

/// What some queries have found in some keys; rows are heads, then positions.
struct Found {
    /// The largest score.
    most: Vec<f32>,
    /// `sum exp(score - most)`.
    sum: Vec<f32>,
    /// `[rows, head_dim]`: `sum exp(score - most) value`.
    mix: Vec<f32>,
}

impl Run<'_> {
    fn all(&self) -> Vec<f32> {
        let ([heads, n, head_dim], [kv_heads, ..]) = (self.q.dims, self.k.dims);
        let blocks: Vec<Range<usize>> =
            (0..n).step_by(QUERY_BLOCK).map(|start| start..n.min(start + QUERY_BLOCK)).collect();
        let mut tasks = Vec::new();
        for kv_head in 0..kv_heads {
            for queries in &blocks {
                let keys = self.seen(queries.start).start..self.seen(queries.end - 1).end;
                let step = if kv_heads * blocks.len() < ENOUGH_TASKS { SEGMENT } else { keys.len() };
                let segments = keys.clone().step_by(step).map(|start| start..keys.end.min(start + step));
                tasks.push(
                    segments.map(|keys| Task { kv_head, queries: queries.clone(), keys }).collect::<Vec<_>>(),
                );
            }
        }
        // Later queries see more keys: those first.
        let work = |segments: &Vec<Task>| {
            let found: Vec<Found> = match &segments[..] {
                [task] => vec![self.find(task)],
                _ => segments.par_iter().with_max_len(1).map(|task| self.find(task)).collect(),
            };
            let all = found.into_iter().reduce(|all, more| all.join(more, head_dim));
            all.expect("a query sees its own position at least")
        };
        let found: Vec<Found> = match n {
            // A few heads of a short context are not worth waking other threads.
            1 => tasks.iter().map(work).collect(),
            _ => tasks.par_iter().with_max_len(1).map(work).collect(),
        };
        let (group, mut y) = (heads / kv_heads, vec![0.0; n * heads * head_dim]);
        y.par_chunks_mut(heads * head_dim).enumerate().for_each(|(i, y)| {
            let (block, len) = (i / QUERY_BLOCK, blocks[i / QUERY_BLOCK].len());
            for (head, y) in y.chunks_exact_mut(head_dim).enumerate() {
                let found = &found[head / group * blocks.len() + block];
                let row = head % group * len + i % QUERY_BLOCK;
                let inverse = 1.0 / found.sum[row];
                y.iter_mut().zip(&found.mix[row * head_dim..]).for_each(|(y, mix)| *y = mix * inverse);
            }
        });
        y
    }

    /// The positions that query `i` sees.
    fn seen(&self, i: usize) -> Range<usize> {
        let end = self.k.dims[1] - self.q.dims[1] + i + 1;
        self.op.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    fn find(&self, task: &Task) -> Found {
        let ([heads, _, head_dim], [kv_heads, ..]) = (self.q.dims, self.k.dims);
        let Task { kv_head, queries, keys } = task;
        let group = heads / kv_heads;
        let rows = group * queries.len();
        let mut q = Vec::with_capacity(rows * head_dim);
        for head in kv_head * group..(kv_head + 1) * group {
            q.extend(self.q.rows(head, queries.clone()).iter().map(|q| q * self.op.scale));
        }
        let mut found = Found {
            most: vec![f32::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
            mix: vec![0.0; rows * head_dim],
        };
        let mut scores = vec![0.0; rows * KEY_BLOCK.min(keys.len())];
        for start in keys.clone().step_by(KEY_BLOCK) {
            let block = start..keys.end.min(start + KEY_BLOCK);
            let (width, k) = (block.len(), self.k.rows(*kv_head, block.clone()));
            let scores = &mut scores[..rows * width];
            // S [rows, width] = Q [rows, head_dim] K^T [head_dim, width]
            product(scores, [rows, head_dim, width], &q, k, [1, head_dim], 0.0);
            for (row, scores) in scores.chunks_exact_mut(width).enumerate() {
                let seen = self.seen(queries.start + row % queries.len());
                let visible =
                    seen.start.clamp(start, block.end) - start..seen.end.clamp(start, block.end) - start;
                let (before, rest) = scores.split_at_mut(visible.start);
                let (scores, after) = rest.split_at_mut(visible.len());
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
                    found.mix[row * head_dim..][..head_dim].iter_mut().for_each(|mix| *mix *= shrink);
                }
                found.sum[row] = found.sum[row] * shrink + softmax::exp_below(scores, most);
                found.most[row] = most;
            }
            // mix [rows, head_dim] += S [rows, width] V [width, head_dim]
            let v = self.v.rows(*kv_head, block);
            product(&mut found.mix, [rows, width, head_dim], scores, v, [head_dim, 1], 1.0);
        }
        found
    }
}

impl Found {
    /// What the same queries have found in both.
    fn join(mut self, other: Self, head_dim: usize) -> Self {
        for row in 0..self.most.len() {
            let most = self.most[row].max(other.most[row]);
            // A query that saw no key of a segment has the largest score -inf there, and shares of 0.
            let share = |m: f32| if m == f32::NEG_INFINITY { 0.0 } else { (m - most).exp() };
            let (a, b) = (share(self.most[row]), share(other.most[row]));
            self.sum[row] = a * self.sum[row] + b * other.sum[row];
            let mixes =
                self.mix[row * head_dim..].iter_mut().zip(&other.mix[row * head_dim..]).take(head_dim);
            mixes.for_each(|(mine, theirs)| *mine = a * *mine + b * theirs);
            self.most[row] = most;
        }
        self
    }
}

/// `out [m, n] = keep * out + a [m, k] b`, with `b`'s element `(i, j)` at `i * strides[0] + j * strides[1]`.
fn product(out: &mut [f32], [m, k, n]: [usize; 3], a: &[f32], b: &[f32], strides: [usize; 2], keep: f32) {
    assert!(out.len() == m * n && a.len() == m * k && b.len() == k * n);
    assert!(strides == [1, k] || strides == [n, 1]);
    // SAFETY: `out [m, n]` and `a [m, k]` are row-major, and `b` is row-major or the transpose of a row-major matrix, each
    // of the length asserted. Strides are given as (column, row).
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            keep != 0.0,
            a.as_ptr(),
            1,
            k as isize,
            b.as_ptr(),
            strides[1] as isize,
            strides[0] as isize,
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
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    fn random(dims: [usize; 3], seed: &mut u64, spread: f32) -> Tensor {
        let mut next = || {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((*seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * spread
        };
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| next()).collect();
        Tensor::from_vec(values, (dims[0], dims[1], dims[2]), &Device::Cpu).unwrap()
    }

    /// The definition, in f64.
    fn expected(op: Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Vec<f64> {
        let [q, k, v] = [q, k, v].map(|t| t.to_vec3::<f32>().unwrap());
        let (n, group, past) = (q[0].len(), q.len() / k.len(), k[0].len() - q[0].len());
        let mut y = Vec::new();
        for i in 0..n {
            for (head, q) in q.iter().enumerate() {
                let (k, v) = (&k[head / group], &v[head / group]);
                let first = op.window.map_or(0, |w| (past + i + 1).saturating_sub(w));
                let weights: Vec<f64> = (first..=past + i)
                    .map(|j| {
                        let dot: f64 =
                            q[i].iter().zip(&k[j]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        let score = f64::from(op.scale) * dot;
                        op.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for c in 0..v[0].len() {
                    let mixed: f64 = weights.iter().zip(&v[first..]).map(|(w, v)| w * f64::from(v[c])).sum();
                    y.push(mixed / sum);
                }
            }
        }
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn equals_the_definition(
            kv_heads in 1..4usize, group in 1..4usize, head_dim in 1..40usize, n in 1..150usize,
            past in prop::sample::select(vec![0, 1, 63, 300, 1500]),
            window in prop::option::of(1..400usize), softcap in prop::option::of(1f32..20.),
            spread in prop::sample::select(vec![0.1f32, 1.0, 6.0]), seed: u64,
        ) {
            let mut seed = seed;
            let op = Attention { scale: 0.3, softcap, window };
            let q = random([kv_heads * group, n, head_dim], &mut seed, spread);
            // As a cache has them: with room for more positions behind.
            let held = |seed: &mut u64| random([kv_heads, past + n + 3, head_dim], seed, spread).narrow(1, 0, past + n).unwrap();
            let (k, v) = (held(&mut seed), held(&mut seed));
            let y = q.apply_op3(&k, &v, op).unwrap();
            prop_assert_eq!(y.dims(), [n, kv_heads * group * head_dim]);
            let y: Vec<f32> = y.flatten_all().unwrap().to_vec1().unwrap();
            for (found, expected) in y.iter().zip(expected(op, &q, &k, &v)) {
                let error = (f64::from(*found) - expected).abs();
                prop_assert!(error < 2e-5 * f64::from(spread), "{found} {expected}");
            }
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut seed = 1;
        let mut tensor = |dims| random(dims, &mut seed, 1.0);
        let op = Attention { scale: 1.0, softcap: None, window: None };
        let (q, k) = (tensor([4, 2, 8]), tensor([2, 5, 8]));
        assert!(q.apply_op3(&k, &k, op).is_ok());
        for (q, k, v, op) in [
            (tensor([3, 2, 8]), k.clone(), k.clone(), op),
            (tensor([4, 6, 8]), k.clone(), k.clone(), op),
            (tensor([4, 2, 4]), k.clone(), k.clone(), op),
            (q.clone(), k.clone(), tensor([2, 4, 8]), op),
            (q.clone(), k.clone(), k.clone(), Attention { window: Some(0), ..op }),
            (q.transpose(1, 2).unwrap(), k.clone(), k.clone(), op),
            (q.to_dtype(candle_core::DType::F64).unwrap(), k.clone(), k.clone(), op),
        ] {
            let error = q.apply_op3(&k, &v, op).unwrap_err().to_string();
            assert!(error.contains("squish-attention"), "{error}");
        }
    }
}
