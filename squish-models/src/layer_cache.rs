//! Keys and values of one layer: in pages on the CPU; on a GPU in whole tensors or, packed, in tensors of pages.

use candle_core::{DType, Device, Error, Result, Tensor};
use squish_kernels::{
    kv::{
        Codec, DeviceHistory, History, Mode,
        buffers::{copied, grown},
    },
    ops,
};

/// The cache of one layer.
#[derive(Debug, Clone)]
pub enum LayerCache {
    /// On the CPU, packed or not.
    Paged(History),
    /// On a GPU, in f16 or f32.
    Dense(DenseCache),
    /// On a GPU, packed.
    Packed(DeviceHistory),
}

impl Default for LayerCache {
    /// An empty one on the CPU, in f32.
    fn default() -> Self {
        Self::Paged(History::default())
    }
}

impl LayerCache {
    /// An empty one in pages, of whose positions about `recent` are not packed.
    pub fn paged(mode: Mode, recent: usize) -> Self {
        Self::Paged(History::new(mode, recent))
    }

    /// An empty one on a GPU, of whose positions about `recent` are not packed.
    pub fn on_device(mode: Mode, recent: usize) -> Self {
        if mode.is_packed() { Self::Packed(DeviceHistory::new(mode, recent)) } else { Self::dense(mode) }
    }

    /// An empty one in tensors, in the type that `mode` has for what is not packed.
    pub fn dense(mode: Mode) -> Self {
        let dtype = if mode.exact() == Codec::F32 { DType::F32 } else { DType::F16 };
        Self::Dense(DenseCache { dtype, buffers: None, window: None, len: 0 })
    }

    /// Appends `keys` and `values`, `[kv_heads, n, head_dim]` f32. Queries see `window` positions, their own included, and all
    /// before them where that is `None`.
    ///
    /// # Errors
    /// When a tensor operation fails; the cache is then as it was. On a GPU, nothing is packed but by
    /// [`append_heads`](Self::append_heads).
    pub fn append(&mut self, keys: &Tensor, values: &Tensor, window: Option<usize>) -> Result<()> {
        match self {
            Self::Paged(history) => history.append(keys, values, window),
            Self::Dense(cache) => cache.append(keys, values, window),
            Self::Packed(_) => {
                Err(Error::Msg("packed keys and values on a GPU come with their queries".into()).bt())
            }
        }
    }

    /// Makes queries, keys and values of new positions ready for attention, appends the latter two, and returns the queries `[heads, n,
    /// head_dim]`, as [`attend`](Self::attend) of this cache takes them.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_heads(
        &mut self,
        split: &ops::SplitHeads,
        qkv: [&Tensor; 3],
        window: Option<usize>,
    ) -> Result<Tensor> {
        match self {
            Self::Paged(history) => {
                let [q, k, v] = split.split(qkv)?;
                history.append(&k, &v, window)?;
                Ok(q)
            }
            Self::Dense(cache) => {
                let n = qkv[0].dim(0)?;
                let (k, v) = cache.room((split.kv_heads, n, split.head_dim), qkv[0].device())?;
                let q = split.append(qkv, [&k, &v], cache.len)?;
                (cache.len, cache.window, cache.buffers) = (cache.len + n, window, Some((k, v)));
                Ok(q)
            }
            Self::Packed(history) => split.append_pages(qkv, history, window),
        }
    }

    /// What the queries of the last `n` positions find: `q [heads, n, head_dim]` to `[n, heads * head_dim]`, with scores
    /// multiplied by `scale` and, where there is a `softcap` `c`, made `c tanh(score / c)`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn attend(&self, q: &Tensor, scale: f32, softcap: Option<f32>) -> Result<Tensor> {
        match self {
            Self::Paged(history) => q.apply_op1_no_bwd(&ops::Attention { scale, softcap, history }),
            Self::Dense(cache) => {
                let (k, v) = cache.views()?;
                q.apply_op3_no_bwd(&k, &v, &ops::DenseAttention { scale, softcap, window: cache.window })
            }
            Self::Packed(history) => q.apply_op1_no_bwd(&ops::DeviceAttention { scale, softcap, history }),
        }
    }

    /// [`append`](Self::append) of a single position on the CPU: [`History::append_single`].
    ///
    /// # Errors
    /// When sizes do not fit, and where the cache is not in pages; it is then as it was.
    pub fn append_single(
        &mut self,
        keys: &mut [f32],
        values: &mut [f32],
        head_dim: usize,
        window: Option<usize>,
    ) -> Result<()> {
        match self {
            Self::Paged(history) => history.append_single(keys, values, head_dim, window),
            Self::Dense(_) | Self::Packed(_) => Err(not_in_pages()),
        }
    }

    /// [`attend`](Self::attend) for a single position on the CPU: `q [heads * head_dim]` to `y`, of the same size, with this scale and
    /// soft cap.
    ///
    /// # Errors
    /// When sizes do not fit, and where the cache is not in pages.
    pub fn attend_single(
        &self,
        q: &[f32],
        (scale, softcap): (f32, Option<f32>),
        buffers: &mut ops::AttentionBuffers,
        y: &mut [f32],
    ) -> Result<()> {
        match self {
            Self::Paged(history) => ops::Attention { scale, softcap, history }.single(q, buffers, y),
            Self::Dense(_) | Self::Packed(_) => Err(not_in_pages()),
        }
    }

    /// Drops what no query at the next position or the mark needs: [`History::prune`].
    pub fn prune(&mut self) {
        if let Self::Paged(history) = self {
            history.prune();
        }
    }

    /// Positions that a query sees at most, its own included.
    pub fn window(&self) -> Option<usize> {
        match self {
            Self::Paged(history) => history.window(),
            Self::Dense(cache) => cache.window,
            Self::Packed(history) => history.window(),
        }
    }

    /// Positions seen.
    pub fn len(&self) -> usize {
        match self {
            Self::Paged(history) => history.len(),
            Self::Dense(cache) => cache.len,
            Self::Packed(history) => history.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Paged(history) => history.bytes(),
            Self::Dense(cache) => cache.bytes(),
            Self::Packed(history) => history.bytes(),
        }
    }

    /// The greatest length up to `len` to which [`truncate`](Self::truncate) can go back.
    pub fn reachable(&self, len: usize) -> usize {
        match self {
            Self::Paged(history) => history.reachable(len),
            Self::Dense(cache) => len.min(cache.len),
            Self::Packed(history) => history.reachable(len),
        }
    }

    /// Forgets the positions from `len` on, where `len` is [`reachable`](Self::reachable); otherwise all of them.
    pub fn truncate(&mut self, len: usize) {
        match self {
            Self::Paged(history) => history.truncate(len),
            Self::Dense(cache) => cache.len = cache.len.min(len),
            Self::Packed(history) => history.truncate(len),
        }
    }

    /// Remembers the present length as one to go back to, whatever follows.
    pub fn set_mark(&mut self) {
        match self {
            Self::Paged(history) => history.set_mark(),
            Self::Dense(_) => {}
            Self::Packed(history) => history.set_mark(),
        }
    }

    /// Forgets everything and gives the memory back.
    pub fn reset(&mut self) {
        match self {
            Self::Paged(history) => *history = history.emptied(),
            Self::Dense(cache) => (cache.buffers, cache.len) = (None, 0),
            Self::Packed(history) => *history = history.emptied(),
        }
    }

    /// The pages on the CPU, where it has such.
    pub fn history(&self) -> Option<&History> {
        match self {
            Self::Paged(history) => Some(history),
            Self::Dense(_) | Self::Packed(_) => None,
        }
    }
}

fn not_in_pages() -> Error {
    Error::Msg("keys and values that are not in pages come and go as tensors".into()).bt()
}

/// Positions by which a full cache grows at least.
const GROWTH: usize = 256;

/// Two buffers `[kv_heads, capacity, head_dim]`, of which `len` positions are in use.
#[derive(Debug)]
pub struct DenseCache {
    dtype: DType,
    buffers: Option<(Tensor, Tensor)>,
    window: Option<usize>,
    len: usize,
}

impl DenseCache {
    /// The most bytes that one takes which holds up to `positions`: with what has been grown ahead, and the second buffer of one
    /// that is growing.
    pub fn most_bytes(mode: Mode, (kv_heads, head_dim): (usize, usize), positions: usize) -> usize {
        let capacity = grown(positions, positions, GROWTH);
        3 * kv_heads * capacity * head_dim * mode.exact().bits() / 8
    }

    fn append(&mut self, keys: &Tensor, values: &Tensor, window: Option<usize>) -> Result<()> {
        let needed = self.len + keys.dim(1)?;
        let (keys, values) =
            (keys.to_dtype(self.dtype)?.contiguous()?, values.to_dtype(self.dtype)?.contiguous()?);
        let (k, v) = self.room(keys.dims3()?, keys.device())?;
        k.slice_set(&keys, 1, self.len)?;
        v.slice_set(&values, 1, self.len)?;
        (self.len, self.window, self.buffers) = (needed, window, Some((k, v)));
        Ok(())
    }

    /// The buffers, or larger ones, with room for `next` `[kv_heads, n, head_dim]` behind the positions in use.
    fn room(&self, next: (usize, usize, usize), device: &Device) -> Result<(Tensor, Tensor)> {
        let larger = |held| larger(held, next, self.len, self.dtype, device);
        match &self.buffers {
            Some((k, v)) if k.dim(1)? >= self.len + next.1 => Ok((k.clone(), v.clone())),
            Some((k, v)) => Ok((larger(Some(k))?, larger(Some(v))?)),
            None => Ok((larger(None)?, larger(None)?)),
        }
    }

    /// The positions in use.
    fn views(&self) -> Result<(Tensor, Tensor)> {
        let none = || Error::Msg("attention over an empty cache".into()).bt();
        let (k, v) = self.buffers.as_ref().ok_or_else(none)?;
        Ok((k.narrow(1, 0, self.len)?, v.narrow(1, 0, self.len)?))
    }

    fn bytes(&self) -> usize {
        let buffers = self.buffers.iter().flat_map(|(k, v)| [k, v]);
        buffers.map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
    }
}

impl Clone for DenseCache {
    /// A copy with buffers of its own: appending to one does not show in the other.
    fn clone(&self) -> Self {
        let buffers = self.buffers.as_ref().and_then(|(k, v)| Some((copied(k).ok()?, copied(v).ok()?)));
        Self { len: if buffers.is_some() { self.len } else { 0 }, buffers, ..*self }
    }
}

/// A larger buffer that holds the first `len` positions of `held`, and room for `next` after them.
fn larger(
    held: Option<&Tensor>,
    (heads, n, head_dim): (usize, usize, usize),
    len: usize,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let buffer = Tensor::zeros((heads, grown(len, len + n, GROWTH), head_dim), dtype, device)?;
    if let Some(held) = held.filter(|_| len > 0) {
        buffer.slice_set(&held.narrow(1, 0, len)?.contiguous()?, 1, 0)?;
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use squish_kernels::kv::RECENT;

    fn random(heads: usize, n: usize) -> Tensor {
        Tensor::randn(0f32, 1.0, (heads, n, 8), &Device::Cpu).unwrap()
    }

    /// Both ways of holding them find the same, in whatever portions positions come, and after going back.
    #[test]
    fn dense_equals_paged() {
        let mut dense = LayerCache::dense(Mode::F32);
        let mut paged = LayerCache::paged(Mode::F32, RECENT);
        let mut at = 0;
        for n in [3, 1, 252, 1, 700, 1] {
            let (q, k, v) = (random(4, n), random(2, n), random(2, n));
            let found = [&mut dense, &mut paged].map(|cache| {
                cache.append(&k, &v, Some(300)).unwrap();
                cache.attend(&q, 0.3, None).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            });
            at += n;
            assert!(dense.len() == at && paged.len() == at);
            assert!(found[0].iter().zip(&found[1]).all(|(a, b)| (a - b).abs() < 1e-5), "{at}");
        }
        let copy = dense.clone();
        for cache in [&mut dense, &mut paged] {
            assert_eq!(cache.reachable(900), 900);
            cache.truncate(900);
            assert_eq!(cache.len(), 900);
        }
        assert_eq!(copy.len(), at);
        dense.reset();
        assert!(dense.is_empty() && dense.bytes() == 0 && dense.history().is_none());
        assert!(dense.attend(&random(4, 1), 1.0, None).is_err());
    }

    #[test]
    fn dense_takes_no_more_than_it_says() {
        for mode in [Mode::F32, Mode::F16] {
            for n in [1, 255, 256, 257, 1000] {
                let mut cache = LayerCache::dense(mode);
                while cache.len() < 4500 {
                    cache.append(&random(2, n), &random(2, n), None).unwrap();
                    let most = DenseCache::most_bytes(mode, (2, 8), cache.len());
                    let bytes = cache.bytes();
                    assert!(bytes <= most && most < 2 * bytes + 8192, "{}: {bytes} {most}", cache.len());
                }
            }
        }
    }
}
