//! Whatever is changed in a squished checkpoint, reading it ends in an error or a result: never in a panic, in an
//! access out of bounds, or in memory allocated for a number that some file merely claims.
//!
//! Blind damage hardly gets past the header's checks, so most mutations keep the file well-formed and change
//! what it says of itself.

mod support;

use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};
use squish_models::{Device, Model};
use squish_quant::{Options, Recipe, Silent, compress, inspect};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use support::*;

/// The system's allocator, which remembers the largest request: pages that are never touched cost nothing, so
/// that a request out of all proportion would otherwise pass unseen.
struct Watched;

static LARGEST_REQUEST: AtomicUsize = AtomicUsize::new(0);

/// SAFETY: everything is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST_REQUEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST_REQUEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST_REQUEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// A sound squished checkpoint: `config.json` and the weights file. `v_proj` stays as it was.
fn sound() -> &'static (Value, Vec<u8>) {
    static SOUND: OnceLock<(Value, Vec<u8>)> = OnceLock::new();
    SOUND.get_or_init(|| {
        // 192 columns: numbers that are no powers of two divide them, too.
        let sandbox = Sandbox::new(&Source::new(&Spec { intermediate: 192, ..Spec::default() }));
        let (source, out) = (sandbox.path("source"), sandbox.path("out"));
        let options = Options::new(Recipe::parse("everything", EVERYTHING).unwrap());
        compress(&source, &out, &options, &Silent).unwrap();
        let config = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        (config, fs::read(out.join("model.safetensors")).unwrap())
    })
}

#[derive(Debug, Clone)]
enum Corruption {
    /// A bit of the header's length or text.
    HeaderBit(Index, u8),
    /// A digit of the header's text, which stays JSON.
    HeaderDigit(Index, u8),
    /// A bit of some tensor.
    DataBit(Index, u8),
    Truncate(Index),
    Extend(usize),
    /// A number of the manifest below this key.
    ManifestNumber(&'static str, Index, Value),
    /// A field of the manifest, removed.
    ManifestField(Index),
    /// The scheme of a record.
    ManifestScheme(Index, &'static str),
    /// A number of `config.json`.
    ConfigNumber(Index, Value),
    /// What the header says of two tensors, swapped.
    SwapTensors(Index, Index),
    /// A tensor's shape, of as many elements.
    Reshape(Index, usize),
    /// A tensor's element type, of as many bytes.
    Retype(Index, &'static str),
    /// Row offsets and columns of a sparse correction, and scales: two bytes anywhere in them.
    SideData(Index, Index, u16),
}

/// Numbers at which checks begin to hold, and others.
fn number() -> impl Strategy<Value = Value> {
    let edges = [0, 1, 2, 3, 32, 63, 64, 65, 96, 128, 192, 1 << 15, 1 << 16, (1 << 16) + 1, (1 << 31) - 64];
    let huge = [1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, u64::MAX - 63, u64::MAX];
    let edges = prop::sample::select([&edges[..], &huge].concat()).prop_map(Value::from);
    let odd =
        prop::sample::select(vec![json!(-1), json!(0.5), json!(1e300), json!("1"), json!(null), json!([1])]);
    prop_oneof![6 => edges, 2 => any::<u64>().prop_map(Value::from), 1 => odd]
}

fn corruption() -> impl Strategy<Value = Corruption> {
    use Corruption::*;
    let at = any::<Index>;
    let scheme = prop::sample::select(vec!["nf2", "int3", "int4r", "int4", "int8", "bf16", "f16", "f32", ""]);
    let dtype =
        prop::sample::select(vec!["BOOL", "U8", "I8", "F8_E4M3", "U16", "F16", "BF16", "U32", "F32", "F64"]);
    // One kind of number is as likely as another, however many of it there are.
    let keys = vec!["shape", "group", "version", "block", "seed", "rank", "entries", "format", "snr_db"];
    let key = prop::sample::select(keys);
    prop_oneof![
        1 => (at(), 0..8u8).prop_map(|(i, bit)| HeaderBit(i, bit)),
        2 => (at(), b'0'..=b'9').prop_map(|(i, digit)| HeaderDigit(i, digit)),
        1 => (at(), 0..8u8).prop_map(|(i, bit)| DataBit(i, bit)),
        1 => at().prop_map(Truncate),
        1 => (1..99usize).prop_map(Extend),
        6 => (key, at(), number()).prop_map(|(key, i, n)| ManifestNumber(key, i, n)),
        1 => at().prop_map(ManifestField),
        3 => (at(), scheme).prop_map(|(i, s)| ManifestScheme(i, s)),
        3 => (at(), number()).prop_map(|(i, n)| ConfigNumber(i, n)),
        2 => (at(), at()).prop_map(|(i, j)| SwapTensors(i, j)),
        2 => (at(), prop::sample::select(vec![1, 2, 3, 4, 16, 64])).prop_map(|(i, rows)| Reshape(i, rows)),
        2 => (at(), dtype).prop_map(|(i, t)| Retype(i, t)),
        4 => (at(), at(), any::<u16>()).prop_map(|(i, j, v)| SideData(i, j, v)),
    ]
}

/// The places in a JSON value for which `wanted` holds, as JSON pointers.
fn places(value: &Value, at: &str, wanted: &dyn Fn(&Value) -> bool) -> Vec<String> {
    let mut found = if wanted(value) { vec![at.to_string()] } else { vec![] };
    if let Value::Object(map) = value {
        // A flipped bit may have put a separator into a key.
        let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
        found.extend(map.iter().flat_map(|(key, v)| places(v, &format!("{at}/{}", escape(key)), wanted)));
    } else if let Value::Array(list) = value {
        found.extend(list.iter().enumerate().flat_map(|(i, v)| places(v, &format!("{at}/{i}"), wanted)));
    }
    found
}

/// Replaces one of a JSON value's numbers: of those at or below `key`, or of all where it is empty.
fn replace_number(json: &mut Value, key: &str, index: &Index, number: &Value) {
    let mut places = places(json, "", &Value::is_number);
    places.retain(|place| key.is_empty() || place.rsplit('/').take(2).any(|part| part == key));
    if !places.is_empty() {
        *json.pointer_mut(&places[index.index(places.len())]).unwrap() = number.clone();
    }
}

impl Corruption {
    fn apply(&self, config: &mut Value, file: &mut Vec<u8>) {
        use Corruption::*;
        // After damage to the header, mutations that need to read it have nothing to do.
        let header_bytes = 8 + file.first_chunk().map_or(0, |n| u64::from_le_bytes(*n) as usize % (1 << 30));
        let parsed = file.get(8..header_bytes).and_then(|text| serde_json::from_slice::<Value>(text).ok());
        let Some(mut header) = parsed.filter(Value::is_object) else { return };
        let manifest =
            header["__metadata__"]["squish"].as_str().and_then(|text| serde_json::from_str(text).ok());
        let mut manifest: Value = manifest.unwrap_or(json!({}));
        let names: Vec<String> =
            header.as_object().unwrap().keys().filter(|k| *k != "__metadata__").cloned().collect();
        let part_at = |name: &str| {
            let [start, end] = [0, 1].map(|i| header[name]["data_offsets"][i].as_u64().unwrap_or(0) as usize);
            header_bytes.saturating_add(start)..header_bytes.saturating_add(end)
        };
        match self {
            HeaderBit(at, bit) => file[at.index(header_bytes)] ^= 1 << bit,
            HeaderDigit(at, digit) => {
                let digits: Vec<usize> = (8..header_bytes).filter(|&i| file[i].is_ascii_digit()).collect();
                file[*at.get(&digits)] = *digit;
            }
            DataBit(at, bit) => {
                let data = &mut file[header_bytes..];
                if !data.is_empty() {
                    data[at.index(data.len())] ^= 1 << bit;
                }
            }
            Truncate(at) => file.truncate(at.index(file.len())),
            Extend(count) => file.extend(vec![0x55; *count]),
            ConfigNumber(at, number) => replace_number(config, "", at, number),
            SideData(part, at, value) => {
                let suffixes = [".sparse.offsets", ".sparse.columns", ".sparse.values", ".scales", ".mins"];
                let parts: Vec<_> =
                    names.iter().filter(|n| suffixes.iter().any(|s| n.ends_with(s))).collect();
                let range = part_at(parts[part.index(parts.len())]);
                if range.len() >= 2 && range.end <= file.len() {
                    let start = range.start + at.index(range.len() / 2) * 2;
                    file[start..start + 2].copy_from_slice(&value.to_le_bytes());
                }
            }
            ManifestNumber(key, at, number) => replace_number(&mut manifest, key, at, number),
            ManifestField(at) => {
                let places = places(&manifest, "", &|_| true);
                if let Some((parent, key)) = places[at.index(places.len())].rsplit_once('/')
                    && let Some(Value::Object(map)) = manifest.pointer_mut(parent)
                {
                    map.remove(&key.replace("~1", "/").replace("~0", "~"));
                }
            }
            ManifestScheme(at, scheme) => {
                let places = places(&manifest, "", &|v| v.get("scheme").is_some());
                if !places.is_empty() {
                    manifest.pointer_mut(&places[at.index(places.len())]).unwrap()["scheme"] = json!(scheme);
                }
            }
            SwapTensors(i, j) => {
                let (i, j) = (i.get(&names), j.get(&names));
                let (a, b) = (header[i].clone(), header[j].clone());
                (header[i], header[j]) = (b, a);
            }
            Reshape(at, rows) => {
                let shape = &mut header[at.get(&names)]["shape"];
                let sizes = shape.as_array().map(|s| s.iter().filter_map(Value::as_u64).collect::<Vec<_>>());
                let elements = sizes.unwrap_or_default().iter().copied().fold(1, u64::wrapping_mul);
                *shape = json!([rows, elements / *rows as u64]);
            }
            Retype(at, dtype) => {
                let name = at.get(&names);
                let width = |dtype: &str| match dtype {
                    "F64" => 8,
                    "U32" | "F32" => 4,
                    "U16" | "F16" | "BF16" => 2,
                    _ => 1,
                };
                let bytes = part_at(name).len();
                header[name]["dtype"] = json!(dtype);
                header[name]["shape"] = json!([1, bytes / width(dtype)]);
            }
        }
        if matches!(self, ManifestNumber(..) | ManifestField(_) | ManifestScheme(..)) {
            header["__metadata__"]["squish"] = manifest.to_string().into();
        }
        if matches!(
            self,
            SwapTensors(..)
                | Reshape(..)
                | Retype(..)
                | ManifestNumber(..)
                | ManifestField(_)
                | ManifestScheme(..)
        ) {
            *file = join(&header, &file[header_bytes..]);
        }
    }
}

/// Reads a checkpoint in every way. How far it got: inspected, loaded, run.
fn read(config: &Value, file: &[u8]) -> [bool; 3] {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    fs::write(dir.path().join("model.safetensors"), file).unwrap();
    let inspected = inspect(dir.path()).is_ok();
    let model = Model::from_dir(dir.path(), &Device::Cpu);
    let (loaded, mut ran) = (model.is_ok(), false);
    if let Ok(model) = model {
        let mut session = model.session();
        ran = session.feed(&[1, 90, 3]).is_ok() && session.feed(&[4]).is_ok();
    }
    [inspected, loaded, ran]
}

#[test]
fn the_sound_checkpoint_runs() {
    let (config, file) = sound();
    assert_eq!(read(config, file), [true; 3]);
}

proptest! {
    // Failures are printed in full; there is no file to keep them in.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn corruption_never_panics_hangs_or_takes_memory(corruptions in prop::collection::vec(corruption(), 1..4)) {
        let (mut config, mut file) = sound().clone();
        corruptions.iter().for_each(|c| c.apply(&mut config, &mut file));
        LARGEST_REQUEST.store(0, Ordering::Relaxed);
        let start = Instant::now();
        read(&config, &file);
        // The file is a tenth of a megabyte, and a pass takes milliseconds.
        let largest = LARGEST_REQUEST.load(Ordering::Relaxed);
        prop_assert!(largest < 32 << 20, "{largest} bytes were asked for");
        prop_assert!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
    }
}
