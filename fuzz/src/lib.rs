//! What is fuzzed, as functions of bytes. Each must return, within bounds of time and memory, whatever the bytes are; what an
//! answer promises is asserted. `docs/security.md` has the results of long runs.

use squish_engine::{ChatRequest, ChatTemplate, Error, Message};
use squish_hub::{
    Catalog, Hub, Name, locate_in,
    scan::{Role, pickle::Pickle, scan_bytes},
};
use squish_models::Checkpoint;
use std::{path::Path, sync::LazyLock};
use tempfile::TempDir;

/// A directory for what has to be a file; in memory where the system has such a place.
static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    dir.expect("a temporary directory")
});

/// A configuration that names what the weights are checked against.
const CONFIG: &str = r#"{"architectures": ["Qwen2ForCausalLM"], "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": true}"#;

/// A weights file: header, manifest, and every packed tensor over the mapped bytes. A first byte of 1 stands for the length of
/// the header up to the last brace, which no mutation would guess.
pub fn weights(data: &[u8]) {
    let dir = DIR.path();
    let file = match data.split_first() {
        Some((1, rest)) => {
            let header = rest.iter().rposition(|b| *b == b'}').map_or(0, |end| end + 1);
            [&(header as u64).to_le_bytes()[..], rest].concat()
        }
        _ => data.to_vec(),
    };
    std::fs::write(dir.join("config.json"), CONFIG).expect("room for a file");
    std::fs::write(dir.join("model.safetensors"), &file).expect("room for a file");
    let safe = scan_bytes("model.safetensors", &file).findings.is_empty();
    let Ok(checkpoint) = Checkpoint::open(dir) else { return };
    for shard in checkpoint.shards() {
        for entry in shard.entries().values() {
            assert!(entry.range.start <= entry.range.end && entry.range.end <= file.len());
            assert_eq!(shard.bytes(entry).len(), entry.range.len());
        }
    }
    let tensors = checkpoint.tensors("");
    for (name, record) in checkpoint.manifest().iter().flat_map(|m| &m.tensors) {
        let [rows, cols] = record.shape;
        if let Ok(weight) = tensors.weight(name, rows, cols) {
            assert_eq!((weight.rows(), weight.cols()), (rows, cols));
        }
    }
    // Whatever loads has passed the scanner, unless it has another file's marks within its bytes.
    assert!(safe || !scan_bytes("model.safetensors", &file).findings.is_empty());
    let _ = squish_models::Model::from_checkpoint(&checkpoint, &squish_models::Device::Cpu);
}

/// A pickle stream.
pub fn pickle(data: &[u8]) {
    let read = Pickle::read(data);
    assert!(read.opcodes <= data.len());
    assert!(read.globals.iter().all(|global| !global.contains(char::is_control)));
    for named in [false, true] {
        if let Some(found) = Pickle::detect(data, named) {
            assert_eq!(found, read);
        }
    }
    // A stream that imports something and comes to its end is never taken for anything else.
    if read.complete && !read.globals.is_empty() {
        for name in ["model.bin", "model.pkl", "config.json", "notes.txt", "model"] {
            assert!(!scan_bytes(name, data).findings.is_empty(), "{name}");
        }
    }
}

/// Any file; the first byte chooses its name.
pub fn scan(data: &[u8]) {
    const NAMES: [&str; 16] = [
        "model.safetensors",
        "config.json",
        "vocab.txt",
        "model.bin",
        "model.pt",
        "model.zip",
        "model.gz",
        "model.tar",
        "x.npy",
        "x.npz",
        "x.keras",
        "x.h5",
        "LICENSE",
        "model.tar.gz",
        "chat_template.jinja",
        "model.joblib",
    ];
    let Some((first, bytes)) = data.split_first() else { return };
    let name = NAMES[usize::from(*first) % NAMES.len()];
    let contents = scan_bytes(name, bytes);
    assert!(
        contents.findings.iter().all(|f| !f.detail.contains(char::is_control) && f.file.starts_with(name))
    );
    // What passes as something that is parsed for loading is that.
    if contents.findings.is_empty() {
        match contents.role {
            Role::Json => assert!(serde_json::from_slice::<serde_json::Value>(bytes).is_ok()),
            Role::Text => assert!(std::str::from_utf8(bytes).is_ok()),
            Role::Safetensors | Role::Ignored => {}
        }
    }
}

/// A chat template.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let Ok(template) = ChatTemplate::new(source) else { return };
    let messages =
        [Message::system("Be brief."), Message::user("What is the sea?"), Message::assistant("Water.")];
    let tools = [serde_json::json!({ "name": "clock", "parameters": { "zone": ["UTC", "CET"] } })];
    match template.render(&ChatRequest::new(&messages).tools(tools)) {
        Ok(text) => assert!(text.len() <= 80 << 20),
        Err(Error::Template { .. } | Error::TemplateLimit) => {}
        Err(error) => panic!("{error}"),
    }
}

/// A catalog.
pub fn catalog(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(catalog) = Catalog::parse(text) else { return };
    for model in &catalog.models {
        for name in std::iter::once(&model.name).chain(&model.aliases) {
            assert_eq!(catalog.find(name).map(|(found, _)| found), Some(model));
        }
        for variant in squish_hub::catalog::Variant::ALL {
            assert_eq!(catalog.find(&format!("{}-{variant}", model.name)), Some((model, variant)));
            let _ = (model.bytes(variant), model.memory(variant));
        }
    }
}

/// A name as a person types it: what it stands for stays below the directories that are looked in.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(Name::Hub { repository, revision }) = Name::parse(text) {
        let path = format!("{repository}/{revision}");
        assert!(!path.split('/').any(|part| part == ".." || part == "." || part.is_empty()), "{path}");
        assert!(path.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b)), "{path}");
    }
    let home = DIR.path();
    let hub = Hub { offline: true, ..Hub::new("http://127.0.0.1:9", home.join("hub")) };
    if !Path::new(text).exists() {
        let found = locate_in(Path::new(text), home, &hub);
        assert!(found.is_err(), "{found:?}");
    }
    if let Some(name) = text.strip_prefix("ollama:") {
        let _ = squish_hub::ollama::refusal(home, name);
    }
}
