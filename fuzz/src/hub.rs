//! Files and names from anywhere.

use crate::scratch::DIR;
use squish_hub::{
    Catalog, Hub, Name, locate_in,
    scan::{Role, pickle::Pickle, scan_bytes},
};
use std::path::Path;

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
