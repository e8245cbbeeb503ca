//! Data for the unit tests.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A folder with real configuration files, if `../shared` is there.
pub(crate) fn real_dir(name: &str) -> Option<PathBuf> {
    let shared = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared");
    let dir = PathBuf::from(shared).join("real").join(name);
    if PathBuf::from(shared).is_dir() {
        return Some(dir);
    }
    eprintln!("skipped: needs {}", dir.display());
    None
}

/// A byte-level tokenizer without merges: token b is the byte b, and 256 the special `<|end|>`.
pub(crate) fn tiny_tokenizer_dir() -> TempDir {
    // The byte-level alphabet: printable bytes stand for themselves, the others for U+0100 on.
    let mut unprintable = 0x100u32..;
    let alphabet = (0..=255u32).map(|b| match b {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => b,
        _ => unprintable.next().unwrap(),
    });
    let vocabulary: Map<String, Value> =
        (0u32..).zip(alphabet).map(|(id, c)| (char::from_u32(c).unwrap().to_string(), json!(id))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 256, "content": "<|end|>", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}
