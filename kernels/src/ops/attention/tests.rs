//! Against the definition, over histories that were built in portions.

use super::*;
use crate::kv::{Codec, Mode};
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

/// A sequence, and how it is attended to.
struct Case {
    mode: Mode,
    recent: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Case {
    fn new(
        mode: Mode,
        window: Option<usize>,
        [kv_heads, group, len, head_dim]: [usize; 4],
        mut seed: u64,
        spread: f32,
    ) -> Self {
        let q = random([kv_heads * group, len, head_dim], &mut seed, spread);
        let k = random([kv_heads, len, head_dim], &mut seed, spread);
        let v = random([kv_heads, len, head_dim], &mut seed, spread);
        Self { mode, recent: 70, window, softcap: None, q, k, v }
    }

    fn history(&self) -> History {
        History::new(self.mode, self.recent)
    }

    /// Attends to the positions after those of the history, `n` at a time, up to `end`.
    fn feed(&self, history: &mut History, end: usize, n: usize) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        while history.len() < end {
            let (start, n) = (history.len(), n.min(end - history.len()));
            // As a model hands them over: with gaps between heads.
            let [q, k, v] = [&self.q, &self.k, &self.v].map(|t| t.narrow(1, start, n).unwrap());
            history.append(&k, &v, self.window).unwrap();
            let op = Attention { scale: 0.3, softcap: self.softcap, history };
            rows.extend(q.apply_op1_no_bwd(&op).unwrap().to_vec2::<f32>().unwrap());
            history.prune();
        }
        rows
    }

    /// The definition, in f64, from the numbers that a history holds.
    fn expected(&self) -> Vec<Vec<f64>> {
        let [q, k] = [&self.q, &self.k].map(|t| t.to_vec3::<f32>().unwrap());
        // All at once: nothing is dropped.
        let mut history = self.history();
        history.append(&self.k, &self.v, self.window).unwrap();
        let (len, group, head_dim) = (k[0].len(), q.len() / k.len(), k[0][0].len());
        // For each position, what it is as it came and when it is no longer recent, rotated back.
        let held = |values: bool, recent: bool| -> Vec<Vec<Vec<f64>>> {
            let rotation = if values { history.value_rotation() } else { history.key_rotation() };
            let vector = |head: usize, position: usize| {
                let page = history.page(position / PAGE).unwrap();
                let store = if values { page.values.seen(recent) } else { page.keys.seen(recent) }.unwrap();
                let value = |d| store.value(head, position % PAGE, d);
                let mut x: Vec<f32> = (0..head_dim).map(value).collect();
                rotation.iter().for_each(|rotation| rotation.invert(&mut x));
                x.into_iter().map(f64::from).collect()
            };
            (0..k.len()).map(|head| (0..len).map(|p| vector(head, p)).collect()).collect()
        };
        let (keys, values) = ([held(false, false), held(false, true)], [held(true, false), held(true, true)]);
        let mut y = Vec::new();
        for i in 0..len {
            let mut row = Vec::new();
            for (head, q) in q.iter().enumerate() {
                let seen = history.seen(i);
                let at = |p: usize| usize::from(history.is_recent(i / PAGE, p / PAGE));
                let score = |p: usize| {
                    let k = &keys[at(p)][head / group][p];
                    let s: f64 = q[i].iter().zip(k).map(|(q, k)| f64::from(*q) * k).sum::<f64>() * 0.3;
                    self.softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
                };
                let scores: Vec<f64> = seen.clone().map(score).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let shares: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let sum: f64 = shares.iter().sum();
                row.extend((0..head_dim).map(|d| {
                    let value = |p: usize| values[at(p)][head / group][p][d];
                    seen.clone().zip(&shares).map(|(p, share)| share * value(p)).sum::<f64>() / sum
                }));
            }
            y.push(row);
        }
        y
    }
}

fn assert_near(found: &[Vec<f32>], expected: &[Vec<f64>], bound: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (found, expected) in found.iter().zip(expected) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error < bound, "position {i}: {found} {expected}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn equals_the_definition(
        kv_heads in 1..4usize, group in 1..5usize, head_dim in prop::sample::select(vec![1, 7, 64, 80, 128]),
        len in 1..500usize, n in prop::sample::select(vec![1usize, 3, 64, 100, 1000]), window in prop::option::of(1..400usize),
        softcap in prop::option::of(1f32..20.), spread in prop::sample::select(vec![0.1f32, 1.0, 3.0]),
        keys in prop::sample::select(Codec::ALL.to_vec()), values in prop::sample::select(Codec::ALL.to_vec()), seed: u64,
    ) {
        let mut mode = Mode::new(keys, values);
        if mode.is_packed() && (mode.exact() == Codec::F32 || head_dim % 64 != 0) {
            mode = Mode::F32;
        }
        let case = Case { softcap, ..Case::new(mode, window, [kv_heads, group, len, head_dim], seed, spread) };
        let expected = case.expected();
        let found = case.feed(&mut case.history(), len, n);
        assert_near(&found, &expected, 2e-5 * f64::from(spread).max(0.5));
    }

    /// A history that went back is as one that never went on.
    #[test]
    fn goes_back_exactly_or_not_at_all(
        len in 1..700usize, more in 0..300usize, back in 0..1000usize, window in prop::option::of(1..300usize),
        mode in prop::sample::select(Mode::NAMED.to_vec()), marked: bool, seed: u64,
    ) {
        let case = Case::new(mode, window, [2, 2, len + more, 64], seed, 1.0);
        let mut history = case.history();
        case.feed(&mut history, len, 100);
        if marked {
            history.set_mark();
        }
        case.feed(&mut history, len + more, 7);
        let back = back.min(len + more);
        let reached = history.reachable(back);
        prop_assert!(reached <= back);
        // To where it was marked, and a few positions back, it always goes; without a window or packing, anywhere.
        if marked && back == len || back + 64 > len + more || (window.is_none() && !mode.is_packed()) {
            prop_assert_eq!(reached, back);
        }
        history.truncate(reached);
        prop_assert_eq!(history.len(), reached);
        let again = case.feed(&mut history, len + more, 50);
        let straight = case.feed(&mut case.history(), len + more, 50);
        for (found, expected) in again.iter().zip(&straight[reached..]).flat_map(|(a, b)| a.iter().zip(b)) {
            prop_assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
}

/// What lies behind the end of a history that went back is never read.
#[test]
fn forgets_what_is_no_number() {
    for mode in [Mode::F32, Mode::F16, Mode::K8V4] {
        let case = Case::new(mode, None, [1, 2, 100, 64], 3, 1.0);
        let mut history = case.history();
        case.feed(&mut history, 10, 10);
        let bad = Tensor::full(f32::NAN, (1, 5, 64), &Device::Cpu).unwrap();
        history.append(&bad, &bad, None).unwrap();
        history.truncate(10);
        let found = case.feed(&mut history, 100, 30);
        assert!(found.iter().flatten().all(|v| v.is_finite()), "{mode}");
    }
}

#[test]
fn memory_is_that_of_the_window() {
    for (mode, window) in [(Mode::F16, 300), (Mode::K8V4, 300), (Mode::F32, 64)] {
        let case = Case::new(mode, Some(window), [2, 1, 3000, 64], 5, 1.0);
        let mut history = case.history();
        case.feed(&mut history, 700, 100);
        let early = history.bytes();
        case.feed(&mut history, 3000, 100);
        assert!(
            history.held().len() <= window + 2 * PAGE && history.held().end == 3000,
            "{:?}",
            history.held()
        );
        assert!(history.bytes() <= early + early / 4, "{mode}: {early} {}", history.bytes());
    }
}

#[test]
fn bytes_beyond_the_recent_positions() {
    let bytes = |mode, len| {
        let case = Case::new(mode, None, [2, 1, len, 128], 5, 1.0);
        let mut history = History::new(mode, crate::kv::RECENT);
        case.feed(&mut history, len, 512);
        history.bytes()
    };
    let slope = |mode| (bytes(mode, 2048) - bytes(mode, 1024)) as f64 / 1024.0;
    let f16 = slope(Mode::F16);
    assert_eq!(f16, 2.0 * 2.0 * 128.0 * 2.0);
    for (codec, bar) in [(Codec::Int8, 1.9), (Codec::Int4, 3.6), (Codec::Int2, 6.5)] {
        let ratio = f16 / slope(Mode::new(codec, codec));
        println!("{codec:?}: {ratio:.2} times smaller than f16");
        assert!(ratio >= bar, "{codec:?}: {ratio}");
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let mut seed = 1;
    let mut tensor = |dims| random(dims, &mut seed, 1.0);
    let mut history = History::new(Mode::F32, 128);
    let attend = |history: &History, q: Tensor| {
        let q = q.apply_op1_no_bwd(&Attention { scale: 1.0, softcap: None, history });
        q.map_err(|e| e.to_string())
    };
    assert!(attend(&history, tensor([4, 1, 8])).is_err());
    let k = tensor([2, 5, 8]);
    history.append(&k, &k, None).unwrap();
    assert!(attend(&history, tensor([4, 2, 8])).is_ok());
    for q in [
        tensor([3, 2, 8]),
        tensor([4, 6, 8]),
        tensor([4, 0, 8]),
        tensor([4, 2, 4]),
        tensor([4, 8, 2]).transpose(1, 2).unwrap(),
        tensor([4, 2, 8]).to_dtype(candle_core::DType::F64).unwrap(),
    ] {
        let error = attend(&history, q).unwrap_err();
        assert!(error.contains("squish-attention"), "{error}");
    }
    let v = tensor([2, 4, 8]);
    for (k, v, window) in [
        (k.clone(), v, None),
        (k.clone(), k.clone(), Some(0)),
        (tensor([1, 5, 8]), tensor([1, 5, 8]), None),
        (k.to_dtype(candle_core::DType::F64).unwrap(), k.clone(), None),
    ] {
        assert!(history.append(&k, &v, window).is_err());
        assert_eq!(history.len(), 5);
    }
    let error = History::new(Mode::K8V4, 128).append(&k, &k, None).unwrap_err().to_string();
    assert!(error.contains("k8v4") && error.contains("64"), "{error}");
}

/// A position at a time, by one pair of buffers for all histories, long and short by turns.
#[test]
fn single_positions_equal_tensors_to_the_bit() {
    let mut seed = 7;
    let mut buffers = AttentionBuffers::default();
    for (case, mode) in Mode::NAMED.iter().chain(&Mode::NAMED).enumerate() {
        let (kv_heads, group, dim) = if case % 2 == 0 { (2, 3, 64) } else { (1, 20, 128) };
        let window = (case >= Mode::NAMED.len()).then_some(100);
        let mut histories = [History::new(*mode, 70), History::new(*mode, 70)];
        for position in 0..if case % 3 == 0 { 700 } else { 90 } {
            let [q, k, v] =
                [kv_heads * group, kv_heads, kv_heads].map(|heads| random([heads, 1, dim], &mut seed, 1.0));
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let [of_tensors, of_slices] = &mut histories;
            of_tensors.append(&k, &v, window).unwrap();
            let (q_values, mut k, mut v) = (values(&q), values(&k), values(&v));
            of_slices.append_single(&mut k, &mut v, dim, window).unwrap();
            if position % 50 > 0 && position % 64 > 0 {
                continue;
            }
            let op = |history| Attention { scale: 0.3, softcap: None, history };
            let expected = values(&q.apply_op1_no_bwd(&op(of_tensors)).unwrap());
            let mut found = vec![f32::NAN; q_values.len()];
            op(of_slices).single(&q_values, &mut buffers, &mut found).unwrap();
            assert_eq!(found, expected, "{mode} {position}");
            histories.iter_mut().for_each(History::prune);
        }
    }
}

#[test]
fn a_single_position_that_does_not_fit_is_refused() {
    let mut history = History::default();
    let (mut k, mut v, buffers) = (vec![1.0; 128], vec![1.0; 128], &mut AttentionBuffers::default());
    fn op(history: &History) -> Attention<'_> {
        Attention { scale: 1.0, softcap: None, history }
    }
    assert!(op(&history).single(&[0.0; 128], buffers, &mut [0.0; 128]).is_err());
    assert!(history.append_single(&mut k, &mut v[..64], 64, None).is_err());
    assert!(history.append_single(&mut k[..100], &mut v[..100], 64, None).is_err());
    assert!(history.append_single(&mut k, &mut v, 0, None).is_err());
    assert!(history.append_single(&mut k, &mut v, 64, Some(0)).is_err());
    assert!(history.is_empty());
    history.append_single(&mut k, &mut v, 64, None).unwrap();
    assert!(history.append_single(&mut k, &mut v, 128, None).is_err());
    for (q, y) in [(64, 64), (128, 64), (130, 130), (0, 0)] {
        assert!(op(&history).single(&vec![0.0; q], buffers, &mut vec![0.0; y]).is_err(), "{q} {y}");
    }
    assert!(op(&history).single(&[0.0; 256], buffers, &mut [0.0; 256]).is_ok());
    assert_eq!(history.len(), 1);
}
