//! Keys and values of the positions that a session has seen.

use crate::ModelConfig;
use candle_core::{Result, Tensor};

/// Positions by which a full cache grows at least.
const GROWTH: usize = 256;

/// A full cache grows by one part in so many, at least: that much of it may be empty, and a position is copied
/// about as many times.
const GROWTH_SHARE: usize = 8;

/// The cache of all layers.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

impl KvCache {
    /// An empty cache.
    pub fn new(num_layers: usize) -> Self {
        Self { layers: vec![LayerCache::default(); num_layers] }
    }

    /// The most bytes that a cache takes which holds up to `positions`: with what has been grown ahead, and the second buffer of
    /// a layer that is growing.
    pub fn most_bytes(config: &ModelConfig, positions: usize) -> usize {
        let capacity = positions.next_multiple_of(GROWTH).max(positions + positions / GROWTH_SHARE);
        let buffer = config.num_key_value_heads * capacity * config.head_dim * size_of::<f32>();
        (2 * config.num_hidden_layers + 1) * buffer
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len)
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.len = layer.len.min(len);
        }
    }

    /// Forgets everything and gives the memory back.
    pub fn reset(&mut self) {
        self.layers.fill(LayerCache::default());
    }

    /// The cache of one layer.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }
}

/// The cache of one layer: two buffers `[kv_heads, capacity, head_dim]`, of which `len` positions are in use.
#[derive(Debug, Default)]
pub struct LayerCache {
    buffers: Option<(Tensor, Tensor)>,
    len: usize,
}

impl LayerCache {
    /// Appends `keys` and `values`, `[kv_heads, n, head_dim]`, and returns views of all positions.
    ///
    /// # Errors
    /// When a tensor operation fails; the cache is then as it was.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let needed = self.len + keys.dim(1)?;
        let (k, v) = match &self.buffers {
            Some((k, v)) if k.dim(1)? >= needed => (k.clone(), v.clone()),
            Some((k, v)) => (grown(Some(k), keys, self.len)?, grown(Some(v), values, self.len)?),
            None => (grown(None, keys, 0)?, grown(None, values, 0)?),
        };
        k.slice_set(&keys.contiguous()?, 1, self.len)?;
        v.slice_set(&values.contiguous()?, 1, self.len)?;
        self.len = needed;
        let views = (k.narrow(1, 0, needed)?, v.narrow(1, 0, needed)?);
        self.buffers = Some((k, v));
        Ok(views)
    }
}

impl Clone for LayerCache {
    /// A copy with buffers of its own: appending to one does not show in the other.
    fn clone(&self) -> Self {
        let buffers = self.buffers.as_ref().and_then(|(k, v)| Some((k.copy().ok()?, v.copy().ok()?)));
        Self { len: if buffers.is_some() { self.len } else { 0 }, buffers }
    }
}

/// A larger buffer that holds the first `len` positions of `held`, and room for `next` after them.
fn grown(held: Option<&Tensor>, next: &Tensor, len: usize) -> Result<Tensor> {
    let (heads, n, head_dim) = next.dims3()?;
    // Growing by a share of what is held keeps the copying per position constant.
    let capacity = (len + n).next_multiple_of(GROWTH).max(len + len / GROWTH_SHARE);
    let buffer = Tensor::zeros((heads, capacity, head_dim), next.dtype(), next.device())?;
    if let Some(held) = held.filter(|_| len > 0) {
        buffer.slice_set(&held.narrow(1, 0, len)?.contiguous()?, 1, 0)?;
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn takes_no_more_than_it_says() {
        let config = ModelConfig {
            architecture: String::new(),
            vocab_size: 1,
            context_length: 5000,
            hidden_size: 2,
            num_hidden_layers: 3,
            num_key_value_heads: 2,
            head_dim: 1,
        };
        for n in [1, 255, 256, 257, 1000] {
            let mut cache = KvCache::new(config.num_hidden_layers);
            let mut held = 0;
            while held < 4500 {
                for layer in 0..config.num_hidden_layers {
                    cache.layer(layer).append(&positions(0..n), &positions(0..n)).unwrap();
                }
                held += n as usize;
                let buffers = cache.layers.iter().filter_map(|layer| layer.buffers.as_ref());
                let bytes: usize = buffers.map(|(k, v)| 4 * (k.elem_count() + v.elem_count())).sum();
                let most = KvCache::most_bytes(&config, held);
                assert!(bytes <= most && most < 2 * bytes + 8192, "{held}: {bytes} {most}");
            }
        }
    }

    fn positions(range: std::ops::Range<u32>) -> Tensor {
        let n = range.len();
        let values: Vec<f32> =
            [0.0, 1000.0].iter().flat_map(|h| range.clone().map(move |p| h + p as f32)).collect();
        Tensor::from_vec(values, (2, n, 1), &Device::Cpu).unwrap()
    }

    #[test]
    fn appends_grows_truncates_and_clones() {
        let mut cache = KvCache::new(1);
        let mut seen = 0;
        for n in [3, 1, 252, 1, 700, 1] {
            let next = positions(seen..seen + n);
            seen += n;
            let (k, v) = cache.layer(0).append(&next, &next.neg().unwrap()).unwrap();
            assert_eq!(k.to_vec3::<f32>().unwrap(), positions(0..seen).to_vec3::<f32>().unwrap());
            assert_eq!(
                v.to_vec3::<f32>().unwrap(),
                positions(0..seen).neg().unwrap().to_vec3::<f32>().unwrap()
            );
        }
        let mut copy = cache.clone();
        cache.truncate(2);
        let (k, _) = cache.layer(0).append(&positions(9..10), &positions(9..10)).unwrap();
        assert_eq!(k.to_vec3::<f32>().unwrap()[1], [[1000.0], [1001.0], [1009.0]]);
        let (k, _) = copy.layer(0).append(&positions(seen..seen + 1), &positions(0..1)).unwrap();
        assert_eq!(k.to_vec3::<f32>().unwrap(), positions(0..seen + 1).to_vec3::<f32>().unwrap());
        cache.reset();
        assert!(cache.is_empty());
    }
}
