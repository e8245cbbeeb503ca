//! Pages of keys and values as a device holds them, and what attention finds in them, by definition.

use crate::{Random, bytes};
use candle_core::{Device, Tensor};
use squish_kernels::{
    Rotation,
    kv::{Codec, History, Mode, PAGE, Side, Store},
    metal::PagesShape,
    ops::DenseAttention,
};

/// A history of the CPU's, all of it held, and its pages as a device has them.
pub struct Pages {
    history: History,
    mode: Mode,
    recent: usize,
    rotation: Rotation,
    /// Pages of a side that is packed which are held as they came.
    ring: usize,
}

/// Heads that ask, and positions that do: the last of all.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Query heads.
    pub heads: usize,
    /// Positions.
    pub n: usize,
}

impl Pages {
    /// `positions` of random heads, the last pages of which, two and those that `recent` positions and `n` queries touch, are held as
    /// they came.
    pub fn new(
        mode: Mode,
        [kv_heads, positions, head_dim]: [usize; 3],
        recent: usize,
        n: usize,
        random: &mut Random,
    ) -> Self {
        let mut history = History::new(mode, recent);
        let mut heads = |size: f32| {
            let values = random.floats(kv_heads * positions * head_dim).iter().map(|v| size * v).collect();
            Tensor::from_vec(values, (kv_heads, positions, head_dim), &Device::Cpu).expect("a tensor")
        };
        history.append(&heads(2.0), &heads(1.0), None).expect("heads of this shape");
        let block = Rotation::best_block(head_dim).expect("an even width");
        let rotation = Rotation::new(head_dim, block, squish_kernels::kv::history::SEED).expect("a rotation");
        let ring = recent.div_ceil(PAGE) + n.div_ceil(PAGE) + 2;
        Self { history, mode, recent: recent.div_ceil(PAGE), rotation, ring }
    }

    /// How launches see them.
    pub fn shape(&self) -> PagesShape<'_> {
        let (kv_heads, head_dim) = self.history.shape().expect("heads");
        let all = self.history.len().div_ceil(PAGE);
        let codecs = [self.mode.keys, self.mode.values];
        let rings = codecs.map(|codec| if codec.is_packed() { self.ring } else { all });
        PagesShape { kv_heads, head_dim, recent: self.recent, rings, codecs, rotation: &self.rotation }
    }

    /// A page's keys or values, as they came or packed.
    fn store(&self, side: Side, page: usize, packed: bool) -> Option<&Store> {
        let page = self.history.page(page)?;
        let half = if side == Side::Keys { &page.keys } else { &page.values };
        if packed { half.packed.as_ref() } else { half.exact.as_ref() }
    }

    /// Buffers as a device has them: keys and values as they came, packed keys and values, scales of keys and of values. What is not
    /// held is no number.
    pub fn buffers(&self) -> [Vec<u8>; 6] {
        let (kv_heads, head_dim) = self.history.shape().expect("heads");
        let (all, rings) = (self.history.len().div_ceil(PAGE), self.shape().rings);
        let sides = [(Side::Keys, self.mode.keys, rings[0]), (Side::Values, self.mode.values, rings[1])];
        let mut parts = sides.map(|(side, codec, ring)| {
            let (page, unit) = (kv_heads * head_dim * PAGE, kv_heads * head_dim * codec.unit_bytes());
            let packs = if codec.is_packed() { all } else { 0 };
            let mut exact = vec![0xff; ring * 2 * page];
            let (mut packed, mut scales) =
                (vec![0xff; packs * unit], vec![0xff; packs * 2 * kv_heads * PAGE]);
            for i in all.saturating_sub(ring)..all {
                let store = self.store(side, i, false).expect("all is held");
                let held = &mut exact[i % ring * 2 * page..][..2 * page];
                held.copy_from_slice(store.parts().0);
                // Behind the last position.
                for at in self.history.len().saturating_sub(i * PAGE)..PAGE {
                    for unit in 0..kv_heads * head_dim {
                        match side {
                            Side::Keys => held[(unit * PAGE + at) * 2..][..2].fill(0xff),
                            Side::Values if unit % PAGE == at => {
                                held[unit * PAGE * 2..][..PAGE * 2].fill(0xff)
                            }
                            Side::Values => {}
                        }
                    }
                }
            }
            for i in 0..packs {
                let Some(store) = self.store(side, i, true) else { continue };
                let (units, numbers) = store.parts();
                packed[i * unit..][..unit].copy_from_slice(units);
                let numbers: Vec<u8> = numbers.iter().flat_map(|scale| scale.to_le_bytes()).collect();
                scales[i * numbers.len()..][..numbers.len()].copy_from_slice(&numbers);
            }
            // In the place of buffers that there are not stands another.
            if packs == 0 {
                (packed, scales) = (vec![0xff; 16], vec![0xff; 16]);
            }
            [exact, packed, scales]
        });
        let [k, v] = &mut parts;
        std::array::from_fn(|i| std::mem::take(&mut [&mut *k, &mut *v][i % 2][i / 2]))
    }

    /// Attention of queries `[heads, n, head_dim]`, which have been rotated as keys are, to `[n, heads, head_dim]` in f64.
    pub fn attention(&self, op: &DenseAttention, asked: Asked, q: &[f32]) -> Vec<f64> {
        let (Asked { heads, n }, len) = (asked, self.history.len());
        let (kv_heads, head_dim) = self.history.shape().expect("heads");
        let mut y = Vec::new();
        for i in 0..n {
            let position = len - n + i;
            let seen = op.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1;
            let value = |side, codec: Codec, head, at: usize, channel| {
                let recent = self.history.is_recent(position / PAGE, at / PAGE);
                let store = self.store(side, at / PAGE, codec.is_packed() && !recent).expect("all is held");
                f64::from(store.value(head, at % PAGE, channel))
            };
            for head in 0..heads {
                let (q, kv_head) = (&q[(head * n + i) * head_dim..][..head_dim], head / (heads / kv_heads));
                let score = |at: usize| {
                    let key = |c| value(Side::Keys, self.mode.keys, kv_head, at, c);
                    let dot: f64 = q.iter().enumerate().map(|(c, q)| f64::from(*q) * key(c)).sum();
                    let score = f64::from(op.scale) * dot;
                    op.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
                };
                let weights: Vec<f64> = seen.clone().map(score).collect();
                let sum: f64 = weights.iter().sum();
                let mut mix: Vec<f64> = (0..head_dim)
                    .map(|c| {
                        let mixed = seen.clone().zip(&weights);
                        let value = |at| value(Side::Values, self.mode.values, kv_head, at, c);
                        mixed.map(|(at, weight)| weight * value(at)).sum::<f64>() / sum
                    })
                    .collect();
                if self.mode.values.is_packed() {
                    rotate(&self.rotation, &mut mix, true);
                }
                y.extend(mix);
            }
        }
        y
    }
}

/// `x <- H D x`, or its inverse, in f64.
pub fn rotate(rotation: &Rotation, x: &mut [f64], inverse: bool) {
    let flip = |x: &mut [f64]| {
        for (i, v) in x.iter_mut().enumerate() {
            if rotation.signs()[i / 64] >> (i % 64) & 1 == 1 {
                *v = -*v;
            }
        }
    };
    if !inverse {
        flip(x);
    }
    for block in x.chunks_mut(rotation.block()) {
        let mut distance = 1;
        while distance < block.len() {
            for i in (0..block.len()).filter(|i| i & distance == 0) {
                (block[i], block[i + distance]) =
                    (block[i] + block[i + distance], block[i] - block[i + distance]);
            }
            distance *= 2;
        }
        let norm = (block.len() as f64).sqrt();
        block.iter_mut().for_each(|v| *v /= norm);
    }
    if inverse {
        flip(x);
    }
}

/// Queries as bytes, and as numbers.
pub fn queries(random: &mut Random, count: usize) -> (Vec<f32>, Vec<u8>) {
    let q: Vec<f32> = random.floats(count).iter().map(|v| 2.0 * v).collect();
    let held = bytes(&q);
    (q, held)
}
