//! Keys and values of the positions that a session has seen.

pub use crate::layer_cache::{DenseCache, LayerCache};
use crate::{Error, ModelConfig, Result, model::PREFILL_CHUNK};
use candle_core::Device;
use squish_kernels::kv::{Codec, History, Mode, PAGE, RECENT};
use std::{fmt, str::FromStr};

/// How the positions of a session are stored: a [`Mode`], or the one that suits the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvPolicy {
    /// By the planned context: [`KvPolicy::mode`].
    #[default]
    Auto,
    /// This one.
    Fixed(Mode),
}

/// Positions that are planned for where nothing is said of them.
pub const PLANNED_CONTEXT: usize = 8192;

impl KvPolicy {
    /// The mode for sessions of up to `context` positions.
    ///
    /// Automatically: f16 up to 8,192 positions, `k8v8` up to 16,384, `k8v4` beyond; f16 as well where heads have
    /// a width that cannot be packed. docs/kv_cache.md has what each loses.
    pub fn mode(self, config: &ModelConfig, context: usize) -> Mode {
        match self {
            Self::Fixed(mode) => mode,
            Self::Auto => {
                let mode = match context {
                    0..=8192 => Mode::F16,
                    8193..=16384 => Mode::K8V8,
                    _ => Mode::K8V4,
                };
                let fits = History::check(mode, config.num_key_value_heads, config.head_dim).is_ok();
                if fits { mode } else { Mode::F16 }
            }
        }
    }
}

impl fmt::Display for KvPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Fixed(mode) => mode.fmt(f),
        }
    }
}

impl FromStr for KvPolicy {
    type Err = squish_kernels::Error;

    /// `auto`, or the name of a mode.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name == "auto" { Ok(Self::Auto) } else { name.parse().map(Self::Fixed) }
    }
}

/// What a session may hold, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// How keys and values are stored.
    pub kv: KvPolicy,
    /// About so many latest positions are not packed: whole pages of 64, so up to 63 more.
    pub recent: usize,
    /// The most positions; absent, the model's own.
    pub context: Option<usize>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { kv: KvPolicy::default(), recent: RECENT, context: None }
    }
}

impl SessionOptions {
    /// Stored in this mode, up to the model's own context.
    pub fn in_mode(mode: Mode) -> Self {
        Self { kv: KvPolicy::Fixed(mode), ..Self::default() }
    }

    /// The most positions of a session of this model.
    pub fn context(&self, config: &ModelConfig) -> usize {
        self.context.unwrap_or(config.context_length)
    }

    /// How a session of this model stores them: what is planned for, where no context is given, are 8,192 positions.
    pub fn mode(&self, config: &ModelConfig) -> Mode {
        let planned = self.context.unwrap_or(PLANNED_CONTEXT.min(config.context_length));
        self.kv.mode(config, planned)
    }

    /// Whether a model can have such sessions.
    ///
    /// # Errors
    /// [`Error::Context`] where it has fewer positions, or there are none; [`Error::Kv`] where its heads cannot be stored so.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let (asked, limit) = (self.context(config), config.context_length);
        if !(1..=limit).contains(&asked) {
            return Err(Error::Context { asked, limit });
        }
        Ok(History::check(self.mode(config), config.num_key_value_heads, config.head_dim)?)
    }
}

/// The cache of all layers.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    mode: Mode,
    recent: usize,
}

impl KvCache {
    /// An empty cache on a device, of whose positions about `recent` are not packed.
    pub fn new(num_layers: usize, mode: Mode, recent: usize, device: &Device) -> Self {
        let layer = match device.is_cpu() {
            true => LayerCache::paged(mode, recent),
            false => LayerCache::on_device(mode, recent),
        };
        Self { layers: vec![layer; num_layers], mode, recent }
    }

    /// One of these layers, which hold equally many positions.
    pub(crate) fn from_layers(layers: Vec<LayerCache>, mode: Mode, recent: usize) -> Self {
        debug_assert!(layers.iter().all(|layer| layer.len() == layers[0].len()));
        Self { layers, mode, recent }
    }

    /// The most bytes that a cache takes which holds up to `positions`.
    pub fn most_bytes(config: &ModelConfig, mode: Mode, recent: usize, positions: usize) -> usize {
        let shape = (config.num_key_value_heads, config.head_dim);
        let layer = |window| History::most_bytes(mode, recent, shape, window, positions, PREFILL_CHUNK);
        let sliding = config.num_sliding_layers;
        (config.num_hidden_layers - sliding) * layer(None) + sliding * layer(config.sliding_window)
    }

    /// How positions are stored.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// About so many latest positions are not packed.
    pub fn recent(&self) -> usize {
        self.recent
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::bytes).sum()
    }

    /// Positions seen.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether no position was seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the positions from `len` on, and as many before it as must be read again: where a layer has dropped what was outside its
    /// window, or packed what was recent, a cache goes back only to where it can do so exactly. Returns the positions left.
    pub fn truncate(&mut self, len: usize) -> usize {
        let mut len = len.min(self.len());
        loop {
            // Each layer's answer is at most `len`; once all can go to the same, none is smaller.
            let reached = self.layers.iter().map(|layer| layer.reachable(len)).min().unwrap_or(0);
            if reached == len {
                break;
            }
            len = reached;
        }
        // Layers of which some have gone on, after an error in their midst, are cut to the same length.
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
        len
    }

    /// Remembers the present length, so that [`truncate`](Self::truncate) can come back to it exactly whatever follows.
    pub fn set_mark(&mut self) {
        self.layers.iter_mut().for_each(LayerCache::set_mark);
    }

    /// Forgets everything and gives the memory back.
    pub fn reset(&mut self) {
        self.layers.iter_mut().for_each(LayerCache::reset);
    }

    /// The cache of one layer.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }

    /// All of them.
    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }
}

const _: () = assert!(PREFILL_CHUNK.is_multiple_of(PAGE) && Codec::F32.bits() == 32);

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Tensor};

    fn config(layers: usize, sliding: usize, window: Option<usize>) -> ModelConfig {
        ModelConfig {
            architecture: String::new(),
            vocab_size: 1,
            context_length: 50_000,
            hidden_size: 2,
            num_hidden_layers: layers,
            num_key_value_heads: 2,
            head_dim: 64,
            sliding_window: window,
            num_sliding_layers: sliding,
        }
    }

    fn feed(cache: &mut KvCache, n: usize, windows: &[Option<usize>]) {
        let next = Tensor::zeros((2, n, 64), DType::F32, &Device::Cpu).unwrap();
        for (i, window) in windows.iter().enumerate() {
            let layer = cache.layer(i);
            layer.append(&next, &next, *window).unwrap();
            layer.prune();
        }
    }

    #[test]
    fn takes_no_more_than_it_says() {
        for mode in Mode::NAMED {
            for n in [1, 63, 512] {
                let windows = [None, Some(200), Some(200)];
                let config = config(3, 2, Some(200));
                let mut cache = KvCache::new(3, mode, 128, &Device::Cpu);
                while cache.len() < 3000 {
                    feed(&mut cache, n, &windows);
                    if cache.len() > 700 && cache.layers()[0].reachable(600) != 600 {
                        cache.set_mark();
                    }
                    let most = KvCache::most_bytes(&config, mode, 128, cache.len());
                    assert!(cache.bytes() <= most, "{mode} {n} {}: {} {most}", cache.len(), cache.bytes());
                }
                let most = KvCache::most_bytes(&config, mode, 128, cache.len());
                assert!(most < 4 * cache.bytes(), "{mode} {n}: {} {most}", cache.bytes());
            }
        }
    }

    #[test]
    fn layers_go_back_together() {
        let windows = [None, Some(100)];
        for mode in [Mode::F16, Mode::K8V4] {
            let mut cache = KvCache::new(2, mode, 128, &Device::Cpu);
            feed(&mut cache, 400, &windows);
            cache.set_mark();
            feed(&mut cache, 600, &windows);
            let copy = cache.clone();
            assert_eq!(cache.truncate(990), 990);
            // What the window has left behind is not there: back to the mark, or the end of its page.
            assert!((400..=448).contains(&cache.truncate(700)));
            assert_eq!(cache.truncate(100), 0);
            assert!(cache.is_empty() && cache.bytes() == 0);
            assert_eq!(copy.len(), 1000);
            cache.reset();
            assert!(cache.is_empty());
        }
    }

    #[test]
    fn automatic_modes() {
        let narrow = ModelConfig { head_dim: 80, ..config(1, 0, None) };
        for (context, mode) in
            [(4096, Mode::F16), (8192, Mode::F16), (16384, Mode::K8V8), (32768, Mode::K8V4)]
        {
            assert_eq!(KvPolicy::Auto.mode(&config(1, 0, None), context), mode);
            assert_eq!(KvPolicy::Auto.mode(&narrow, context), Mode::F16);
        }
        assert_eq!("auto".parse(), Ok(KvPolicy::Auto));
        assert_eq!("k8v4".parse(), Ok(KvPolicy::Fixed(Mode::K8V4)));
        let options = SessionOptions { kv: KvPolicy::Fixed(Mode::K8V4), ..SessionOptions::default() };
        assert!(matches!(options.check(&narrow), Err(Error::Kv(_))));
        let long = SessionOptions { context: Some(50_001), ..SessionOptions::default() };
        assert!(matches!(long.check(&narrow), Err(Error::Context { asked: 50_001, limit: 50_000 })));
    }
}
