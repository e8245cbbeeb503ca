//! A session on disk: what it has read need not be read again.
//!
//! A snapshot is a safetensors file. Its metadata has the key `squish-session`, whose value is a JSON text, [`Header`]; `tokens` are the
//! tokens at the positions, `probe` is what the model makes of the first of them alone, and a tensor for each layer, by its number, holds
//! the pages in order: of each, keys as they came, packed keys, values as they came, packed values, as far as they are there; of each
//! of those the units, then the scales. docs/format.md, section 9, has the layout of a page.
//!
//! A snapshot belongs to the model that made it: one of another shape is refused by its header, one of other weights by the probe.

use crate::{
    Error, Model, ModelConfig, Result, Session,
    kv_cache::{KvCache, LayerCache, SessionOptions},
};
use safetensors::{Dtype, SafeTensors, tensor::View};
use serde::{Deserialize, Serialize};
use squish_kernels::kv::{Codec, History, Mode, PAGE, Page, Side, Store};
use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Version of the snapshot's format.
const FORMAT: u32 = 1;

/// The metadata's key.
const KEY: &str = "squish-session";

/// The probe may differ by this part of its length: instruction sets round differently, other weights differ by far more.
const PROBE_BOUND: f32 = 0.02;

/// What a snapshot says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    /// Name of the mode.
    mode: String,
    /// Positions that are not packed.
    recent: usize,
    /// The session's own limit.
    context: Option<usize>,
    len: usize,
    /// A length that the cache can go back to.
    mark: Option<usize>,
    /// The model's sizes, as JSON.
    config: serde_json::Value,
    layers: Vec<LayerHeader>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LayerHeader {
    window: Option<usize>,
    /// Index of the first page.
    first: usize,
    /// A hexadecimal digit for each page: 1 for keys as they came, 2 for packed keys, 4 and 8 for values.
    pages: String,
}

/// A tensor whose bytes are put together when they are written.
enum Data<'a> {
    Tokens(&'a [u32]),
    Probe(Vec<f32>),
    Layer(&'a History),
}

/// The stores of a page and their places in the digit.
fn stores(page: &Page) -> [(u32, Option<&Store>); 4] {
    let (keys, values) = (&page.keys, &page.values);
    [
        (1, keys.exact.as_ref()),
        (2, keys.packed.as_ref()),
        (4, values.exact.as_ref()),
        (8, values.packed.as_ref()),
    ]
}

impl Data<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Tokens(_) => Dtype::U32,
            Self::Probe(_) => Dtype::F32,
            Self::Layer(_) => Dtype::U8,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Tokens(tokens) => tokens.iter().flat_map(|token| token.to_le_bytes()).collect(),
            Self::Probe(probe) => probe.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::Layer(layer) => {
                let mut bytes = Vec::with_capacity(self.len());
                for (_, store) in layer.pages().1.flat_map(stores) {
                    let Some((units, scales)) = store.map(Store::parts) else { continue };
                    bytes.extend_from_slice(units);
                    bytes.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
                }
                bytes
            }
        }
    }

    /// Number of bytes.
    fn len(&self) -> usize {
        match self {
            Self::Tokens(tokens) => size_of_val(*tokens),
            Self::Probe(probe) => size_of_val(&probe[..]),
            Self::Layer(layer) => {
                let stored =
                    layer.pages().1.flat_map(stores).filter_map(|(_, store)| store.map(Store::parts));
                stored.map(|(units, scales)| units.len() + size_of_val(scales)).sum()
            }
        }
    }
}

/// A tensor of one dimension.
struct Shaped<'a>(Data<'a>, [usize; 1]);

impl<'a> From<Data<'a>> for Shaped<'a> {
    fn from(data: Data<'a>) -> Self {
        let width = if matches!(data, Data::Layer(_)) { 1 } else { 4 };
        let len = data.len() / width;
        Self(data, [len])
    }
}

impl View for Shaped<'_> {
    fn dtype(&self) -> Dtype {
        self.0.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.1
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.0.bytes())
    }

    fn data_len(&self) -> usize {
        self.0.len()
    }
}

impl Session {
    /// Writes the session to a file, with the tokens at its positions. The file is written beside its place and then
    /// renamed, so that there is no half a snapshot.
    ///
    /// # Errors
    /// [`Error::Snapshot`] where the tokens are not as many as the positions, and when the file cannot be written.
    pub fn save(&self, path: &Path, tokens: &[u32]) -> Result<()> {
        let refuse = |reason: String| Error::Snapshot { path: path.into(), reason };
        let (cache, config) = (self.cache(), self.model().config());
        if tokens.len() != self.len() {
            return Err(refuse(format!("{} tokens for {} positions", tokens.len(), self.len())));
        }
        let histories: Option<Vec<&History>> = cache.layers().iter().map(LayerCache::history).collect();
        let histories =
            histories.ok_or_else(|| refuse("only sessions on the CPU can be saved as yet".into()))?;
        let layer = |layer: &&History| {
            let digit =
                |page| stores(page).into_iter().filter(|(_, s)| s.is_some()).map(|(bit, _)| bit).sum();
            let (first, pages) = layer.pages();
            let pages = pages.map(|page| char::from_digit(digit(page), 16).expect("below 16")).collect();
            LayerHeader { window: layer.window(), first, pages }
        };
        let header = Header {
            format: FORMAT,
            mode: cache.mode().to_string(),
            recent: cache.recent(),
            context: self.options().context,
            len: cache.len(),
            mark: histories.first().and_then(|layer| layer.mark()),
            config: serde_json::to_value(config).map_err(|e| refuse(e.to_string()))?,
            layers: histories.iter().map(layer).collect(),
        };
        let header = serde_json::to_string(&header).map_err(|e| refuse(e.to_string()))?;
        let probe = tokens.first().map_or(Ok(Vec::new()), |&token| probe(self.model(), token))?;
        let mut tensors = vec![
            ("tokens".to_string(), Shaped::from(Data::Tokens(tokens))),
            ("probe".to_string(), Data::Probe(probe).into()),
        ];
        tensors.extend(histories.iter().enumerate().map(|(i, l)| (i.to_string(), Data::Layer(l).into())));

        let mut beside: PathBuf = path.into();
        beside.as_mut_os_string().push(".partial");
        let written =
            safetensors::serialize_to_file(tensors, Some(HashMap::from([(KEY.into(), header)])), &beside)
                .map_err(|e| refuse(e.to_string()))
                .and_then(|()| std::fs::rename(&beside, path).map_err(|e| refuse(e.to_string())));
        if written.is_err() {
            // What could not be finished is of no use; that it cannot be removed adds nothing to the error.
            let _ = std::fs::remove_file(&beside);
        }
        written
    }
}

impl Model {
    /// A session as [`Session::save`] wrote it, and the tokens at its positions.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Snapshot`] for a file that is no snapshot, is damaged, or is of another model.
    pub fn restore(&self, path: &Path) -> Result<(Session, Vec<u32>)> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let refuse = |reason: String| Error::Snapshot { path: path.into(), reason };
        let damaged = |e: &dyn std::fmt::Display| refuse(format!("no snapshot of a session: {e}"));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&e))?;
        let header = metadata.metadata().as_ref().and_then(|map| map.get(KEY));
        let header = header.ok_or_else(|| damaged(&format!("no `{KEY}`")))?;
        let value: serde_json::Value = serde_json::from_str(header).map_err(|e| damaged(&e))?;
        if value["format"] != FORMAT {
            return Err(refuse(format!("format {}, this build reads {FORMAT}", value["format"])));
        }
        let header: Header = serde_json::from_value(value).map_err(|e| damaged(&e))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(&e))?;
        let tensor = |name: &str, dtype: Dtype| {
            let tensor = tensors.tensor(name).map_err(|e| damaged(&e))?;
            if tensor.dtype() == dtype {
                Ok(tensor.data())
            } else {
                Err(damaged(&format!("type of `{name}`")))
            }
        };

        if !self.layers().device().is_cpu() {
            return Err(refuse("sessions are restored on the CPU only as yet".into()));
        }
        let config = self.config();
        if serde_json::to_value(config).ok().as_ref() != Some(&header.config) {
            return Err(refuse(format!("of another model: {}", header.config)));
        }
        let words = |name, dtype| Ok::<_, Error>(tensor(name, dtype)?.as_chunks::<4>().0.iter().copied());
        let tokens: Vec<u32> = words("tokens", Dtype::U32)?.map(u32::from_le_bytes).collect();
        let probe: Vec<f32> = words("probe", Dtype::F32)?.map(f32::from_le_bytes).collect();
        let mode: Mode = header.mode.parse().map_err(|e| damaged(&e))?;
        let options = SessionOptions {
            recent: header.recent,
            context: header.context,
            ..SessionOptions::in_mode(mode)
        };
        options.check(config)?;
        if tokens.len() != header.len || header.len > options.context(config) || header.recent > 1 << 24 {
            return Err(damaged(&format!("{} tokens for {} positions", tokens.len(), header.len)));
        }
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= config.vocab_size) {
            return Err(Error::Token { id, vocab_size: config.vocab_size });
        }
        if header.layers.len() != config.num_hidden_layers {
            return Err(damaged(&format!("{} layers", header.layers.len())));
        }
        let layers = header.layers.iter().enumerate().map(|(i, layer)| {
            let bytes = tensor(&i.to_string(), Dtype::U8)?;
            let restored = restored(layer, &header, mode, config, bytes);
            restored
                .map(LayerCache::Paged)
                .ok_or_else(|| damaged(&format!("layer {i} does not fit its header")))
        });
        let layers = layers.collect::<Result<Vec<LayerCache>>>()?;
        if let Some(&first) = tokens.first() {
            self.check_probe(first, &probe).map_err(refuse)?;
        }
        Ok((self.with_cache(KvCache::from_layers(layers, mode, header.recent), options), tokens))
    }

    fn check_probe(&self, token: u32, expected: &[f32]) -> Result<(), String> {
        let found = probe(self, token).map_err(|e| e.to_string())?;
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
        let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        let near = difference <= PROBE_BOUND * norm(&mut found.iter().copied());
        if found.len() == expected.len() && near {
            Ok(())
        } else {
            Err("of a model with other weights".into())
        }
    }
}

/// What the model makes of a token alone: a vector that depends on all weights.
fn probe(model: &Model, token: u32) -> Result<Vec<f32>> {
    let mut cache = model.empty_cache(Mode::F32, 0);
    Ok(model.layers().hidden(&[token], &mut cache)?.flatten_all()?.to_vec1()?)
}

fn restored(
    layer: &LayerHeader,
    header: &Header,
    mode: Mode,
    config: &ModelConfig,
    mut bytes: &[u8],
) -> Option<History> {
    let shape @ (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim);
    // Before anything is allocated for them.
    if layer.pages.len() > header.len.div_ceil(PAGE) {
        return None;
    }
    let mut store = |side, codec: Codec| {
        let scales = if codec.is_packed() { 2 * kv_heads * PAGE } else { 0 };
        let units = Store::size(side, codec, kv_heads, head_dim) - scales;
        let (first, rest) = bytes.split_at_checked(units)?;
        let (second, rest) = rest.split_at_checked(scales)?;
        bytes = rest;
        Store::new(side, codec, kv_heads, head_dim).from_parts(first, second)
    };
    let mut pages = Vec::with_capacity(layer.pages.len());
    for digit in layer.pages.chars() {
        let digit = digit.to_digit(16)?;
        let mut page = Page::default();
        for (bits, side, codec, half) in
            [(0, Side::Keys, mode.keys, &mut page.keys), (2, Side::Values, mode.values, &mut page.values)]
        {
            if digit >> bits & 1 == 1 {
                half.exact = Some(store(side, mode.exact())?);
            }
            if digit >> bits & 2 == 2 {
                half.packed = Some(codec.is_packed().then(|| store(side, codec)).flatten()?);
            }
        }
        pages.push(page);
    }
    let history =
        History::restored(mode, header.recent, shape, layer.window, header.len, layer.first, pages)?;
    (bytes.is_empty() && header.mark.is_none_or(|mark| mark <= header.len))
        .then(|| history.with_mark(header.mark))
}
