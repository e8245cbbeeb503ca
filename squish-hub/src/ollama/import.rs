//! A checkpoint directory over the store's blobs: links, no copies of weights.

use super::{GGUF, JSON, Layer, TENSOR, layers, refuse};
use crate::{Error, Result, hub::Silent, name::is_relative_file, scan, store};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

/// Bytes of the header of one tensor's blob.
const MOST_HEADER: u64 = 1 << 20;
/// Bytes of the headers of all tensors of a model, and tensors: many layers may name one blob.
const MOST_HEADERS: u64 = 64 << 20;
const MOST_TENSORS: usize = 200_000;
/// Bytes of a JSON file of a model.
const MOST_JSON: u64 = 256 << 20;

/// The files that a checkpoint would be made of.
#[derive(Debug)]
pub(super) struct Parts {
    /// Name and blob.
    json: Vec<(String, PathBuf)>,
    /// The blob, and the tensors in it.
    weights: Vec<(PathBuf, Vec<String>)>,
}

impl Parts {
    /// Looks at a model's manifest and at the header of each of its blobs.
    ///
    /// # Errors
    /// [`Error::Ollama`], which says why it is not read; [`Error::Io`].
    pub(super) fn read(store: &Path, name: &str) -> Result<Self> {
        let mut parts = Self { json: Vec::new(), weights: Vec::new() };
        let layers = layers(store, name)?;
        if layers.iter().any(|layer| layer.media_type == GGUF) {
            let reason = "it is a GGUF file, rounded once already, which squish does not read; \
                          the catalog has the original models (`squish-quant list --remote`)";
            return Err(refuse(name, reason));
        }
        let blob = |layer: &Layer| layer.blob(store).ok_or_else(|| refuse(name, "a layer without a digest"));
        let (mut count, mut bytes) = (0, 0);
        for layer in &layers {
            match layer.media_type.as_str() {
                TENSOR => {
                    let blob = blob(layer)?;
                    let (tensors, length) = tensors(&blob)?.map_err(|reason| refuse(name, reason))?;
                    count += tensors.len();
                    bytes += length;
                    if count > MOST_TENSORS || bytes > MOST_HEADERS {
                        let most = format!("{MOST_TENSORS} tensors, headers of {MOST_HEADERS} bytes");
                        return Err(refuse(name, format!("more than the {most} that are read")));
                    }
                    parts.weights.push((blob, tensors));
                }
                JSON if is_relative_file(&layer.name) && !layer.name.contains('/') => {
                    parts.json.push((layer.name.clone(), blob(layer)?));
                }
                _ => {}
            }
        }
        if parts.weights.is_empty() {
            return Err(refuse(name, "it holds no weights that squish reads"));
        }
        if !parts.json.iter().any(|(name, _)| name == "config.json") {
            return Err(refuse(name, "it is stored as tensors without a checkpoint's config.json"));
        }
        Ok(parts)
    }
}

/// The names of a blob's tensors and the bytes of its header, or why they are not read.
fn tensors(blob: &Path) -> Result<Result<(Vec<String>, u64), String>> {
    let io = |source| Error::Io { path: blob.into(), source };
    // Looked at before it is opened: opening a pipe would wait for a writer.
    if !fs::metadata(blob).map_err(io)?.is_file() {
        return Ok(Err("a tensor that is no regular file".into()));
    }
    let mut file = File::open(blob).map_err(io)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MOST_HEADER {
        return Ok(Err(format!("a tensor with a header of {length} bytes, at most {MOST_HEADER} are read")));
    }
    let mut text = Vec::new();
    file.take(length).read_to_end(&mut text).map_err(io)?;
    let Ok(header) = serde_json::from_slice::<BTreeMap<String, Value>>(&text) else {
        return Ok(Err("a tensor that is no safetensors file".into()));
    };
    let mut names = Vec::new();
    for (name, info) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let dtype = info["dtype"].as_str().unwrap_or_default();
        if !matches!(dtype, "BF16" | "F16" | "F32") {
            let (name, dtype) = (scan::printable(&name), scan::printable(dtype));
            return Ok(Err(format!(
                "its tensor {name} is of type {dtype}: rounded once already, which squish does not read"
            )));
        }
        names.push(name);
    }
    Ok(Ok((names, length)))
}

/// Where a model's checkpoint directory is: neither `@` nor `+` is part of a name.
fn directory(home: &Path, name: &str) -> Result<PathBuf> {
    let (model, tag) = super::parts(name)?;
    Ok(home.join("ollama").join(format!("{}@{tag}", model.replace('/', "+"))))
}

/// Makes a checkpoint directory of a model of the store, `home/ollama/NAME@TAG`: links to its weights, copies of its JSON files.
/// What was there is replaced where it differs, since a name of the store may stand for something else by now.
///
/// # Errors
/// [`Error::Ollama`], which says why it is not read; [`Error::Unsafe`], [`Error::Io`].
pub fn import(store: &Path, name: &str, home: &Path) -> Result<PathBuf> {
    let parts = Parts::read(store, name)?;
    let dir = directory(home, name)?;
    let io = |source| Error::Io { path: dir.clone(), source };
    let parent = dir.parent().unwrap_or(home);
    fs::create_dir_all(parent).map_err(io)?;
    let work = tempfile::tempdir_in(parent).map_err(io)?;
    for (file, blob) in &parts.json {
        let io = |source| Error::Io { path: blob.clone(), source };
        if fs::metadata(blob).map_err(io)?.len() > MOST_JSON {
            return Err(refuse(name, format!("{file} is longer than the {MOST_JSON} bytes that are read")));
        }
        scan::check_file(file, blob)?;
        fs::copy(blob, work.path().join(file)).map_err(io)?;
    }
    let (count, mut map) = (parts.weights.len(), BTreeMap::new());
    for (at, (blob, tensors)) in parts.weights.iter().enumerate() {
        let shard = format!("model-{:05}-of-{count:05}.safetensors", at + 1);
        link(blob, &work.path().join(&shard)).map_err(io)?;
        map.extend(tensors.iter().map(|tensor| (tensor, shard.clone())));
    }
    let index = json!({ "weight_map": map }).to_string();
    fs::write(work.path().join("model.safetensors.index.json"), index).map_err(io)?;
    let made = contents(work.path()).map_err(io)?;
    let is_there = || contents(&dir).is_ok_and(|found| found == made);
    if !is_there() {
        replace(&dir, work.path(), is_there)?;
    }
    Ok(dir)
}

/// Puts a directory in the place of another, unless another process has done so.
fn replace(dir: &Path, work: &Path, is_there: impl Fn() -> bool) -> Result<()> {
    let io = |source| Error::Io { path: dir.into(), source };
    let _lock = store::lock(dir, &Silent)?;
    if !is_there() {
        let old = store::beside(dir, "old");
        store::clear_away(&old).map_err(io)?;
        if dir.exists() {
            fs::rename(dir, &old).map_err(io)?;
        }
        fs::rename(work, dir).map_err(io)?;
        store::clear_away(&old).map_err(io)?;
    }
    fs::remove_file(store::beside(dir, "lock")).map_err(io)
}

/// The files of an imported directory: where its links lead, what its JSON files hold, how long other weights are.
fn contents(dir: &Path) -> std::io::Result<BTreeMap<std::ffi::OsString, Vec<u8>>> {
    let of = |path: &Path| match fs::read_link(path) {
        Ok(target) => Ok(target.into_os_string().into_encoded_bytes()),
        Err(_) if path.extension().is_some_and(|extension| extension == "safetensors") => {
            Ok(fs::metadata(path)?.len().to_string().into_bytes())
        }
        Err(_) => fs::read(path),
    };
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.file_name(), of(&entry.path())?))
    };
    fs::read_dir(dir)?.map(file).collect()
}

/// A second name for a blob, or a copy where links cannot be made.
fn link(blob: &Path, path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::symlink(std::path::absolute(blob)?, path);
    #[cfg(not(unix))]
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::super::{list, refusal};
    use super::*;

    struct Store(tempfile::TempDir);

    impl Store {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn blob(&self, at: u8, bytes: &[u8]) -> String {
            let digest = format!("{at:064x}");
            std::fs::create_dir_all(self.0.path().join("blobs")).unwrap();
            std::fs::write(self.0.path().join(format!("blobs/sha256-{digest}")), bytes).unwrap();
            format!("sha256:{digest}")
        }

        fn model(&self, name: &str, layers: Value) {
            let dir = self.0.path().join("manifests/registry.ollama.ai/library").join(name);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("latest"), json!({ "layers": layers }).to_string()).unwrap();
        }
    }

    fn tensor(name: &str, dtype: &str) -> Vec<u8> {
        let mut info = serde_json::Map::new();
        info.insert(name.into(), json!({ "dtype": dtype, "shape": [2], "data_offsets": [0, 4] }));
        let header = Value::Object(info).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()
    }

    #[test]
    fn tensors_with_a_configuration_are_imported_and_nothing_else() {
        let store = Store::new();
        let layer = |kind: &str, name: &str, digest: &str| json!({ "mediaType": kind, "name": name, "digest": digest });
        let config = layer(JSON, "config.json", &store.blob(0, b"{}"));
        let good = layer(TENSOR, "a", &store.blob(1, &tensor("model.norm.weight", "BF16")));
        let packed = layer(TENSOR, "b", &store.blob(2, &tensor("model.norm.weight", "U32")));
        let broken = layer(TENSOR, "c", &store.blob(3, b"\xff\0\0\0\0\0\0\0nonsense"));
        let more = layer(TENSOR, "m", &store.blob(6, &tensor("model.more.weight", "BF16")));
        // As long as a header may be, and empty.
        let padded = [&(1u64 << 20).to_le_bytes()[..], b"{}", &[b' '; (1 << 20) - 2]].concat();
        let full = layer(TENSOR, "f", &store.blob(7, &padded));
        let outside = layer(JSON, "../config.json", &store.blob(4, b"{}"));
        let evil = layer(JSON, "tokenizer.json", &store.blob(5, b"\x80\x04cposix\nsystem\n."));
        store.model("good", json!([config, good, outside]));
        store.model("gguf", json!([{ "mediaType": GGUF, "digest": "sha256:0" }]));
        store.model("packed", json!([config, packed]));
        store.model("broken", json!([config, broken]));
        store.model("bare", json!([good]));
        store.model("evil", json!([config, good, evil]));
        store
            .model("lost", json!([config, { "mediaType": TENSOR, "digest": format!("sha256:{:064x}", 99) }]));
        store.model(
            "forged",
            json!([config, { "mediaType": TENSOR, "digest": "sha256:../../../etc/passwd" }]),
        );
        store.model("many", json!([vec![config.clone()], vec![full; 70]].concat()));
        assert_eq!(list(store.0.path()).len(), 9);

        let home = tempfile::tempdir().unwrap();
        let import = |name: &str| import(store.0.path(), name, home.path());
        for _ in 0..2 {
            let dir = import("good").unwrap();
            let index: Value =
                serde_json::from_slice(&std::fs::read(dir.join("model.safetensors.index.json")).unwrap())
                    .unwrap();
            let shard = index["weight_map"]["model.norm.weight"].as_str().unwrap();
            assert_eq!(std::fs::read(dir.join(shard)).unwrap(), tensor("model.norm.weight", "BF16"));
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 3);
            crate::scan::glance(&dir).unwrap();
        }
        assert_eq!(refusal(store.0.path(), "good"), None);
        // One model under two names is one directory, and what is there is left as it is.
        let dir = import("good").unwrap();
        let before = std::fs::metadata(&dir).unwrap().modified().unwrap();
        assert_eq!(import("good:latest").unwrap(), dir);
        assert_eq!(std::fs::metadata(&dir).unwrap().modified().unwrap(), before);
        // What has changed in the store is replaced.
        store.model("good", json!([config, good, more]));
        let index = std::fs::read_to_string(import("good").unwrap().join("model.safetensors.index.json"));
        assert!(index.unwrap().contains("model.more.weight"));
        let at = |name: &str| directory(home.path(), name).unwrap();
        assert!(at("a/b") != at("a-b") && at("a-b:c") != at("a:b-c") && at("a/b:c") != at("a:c"));
        for (name, words) in [
            ("gguf", "GGUF"),
            ("packed", "U32"),
            ("broken", "no safetensors"),
            ("bare", "config.json"),
            ("evil", "posix.system"),
            ("lost", "No such file"),
            ("forged", "digest"),
            ("other:1b", "no such model"),
            ("../../x", "not a name"),
            ("x:../../y", "not a name"),
            ("many", "more than"),
        ] {
            let error = import(name).unwrap_err().to_string();
            assert!(error.contains(words), "{name}: {error}");
        }
        // Nothing that failed has left anything behind.
        assert_eq!(std::fs::read_dir(home.path().join("ollama")).unwrap().count(), 1);
    }
}
