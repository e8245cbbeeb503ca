//! Writes the inputs that fuzzing starts from: `seed DIR` makes `DIR/TARGET/*`.

#[path = "../../../squish-hub/tests/samples/mod.rs"]
mod samples;

use std::{fs, io::Result, path::Path};

const TEMPLATES: &str = include_str!("../../../squish-engine/tests/golden/small.json");
const HOSTILE: &str = include_str!("../../../squish-engine/tests/hostile_templates.txt");
const CATALOG: &str = include_str!("../../../squish-hub/catalog.toml");

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).expect("seed DIR");
    let dir = Path::new(&dir);
    let write = |target: &str, bytes: &[u8]| -> Result<()> {
        let dir = dir.join(target);
        fs::create_dir_all(&dir)?;
        // Named by contents, so that a second run adds nothing.
        let hash = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
        fs::write(dir.join(format!("seed-{hash:016x}")), bytes)
    };
    for sample in samples::unsafe_samples().into_iter().chain(samples::benign_samples()) {
        if sample.bytes.len() > 16_000 {
            continue;
        }
        for name in 0u8..16 {
            write("scan", &[&[name][..], &sample.bytes[..]].concat())?;
        }
        if sample.name.ends_with("pkl") || sample.name.ends_with("bin") {
            write("pickle", &sample.bytes)?;
        }
        if sample.name.ends_with("safetensors") {
            write("weights", &sample.bytes)?;
        }
    }
    write("weights", &squished())?;
    let templates: serde_json::Value = serde_json::from_str(TEMPLATES)?;
    for case in templates.as_array().into_iter().flatten() {
        write("template", case["template"].as_str().unwrap_or_default().as_bytes())?;
    }
    HOSTILE.lines().try_for_each(|line| write("template", line.as_bytes()))?;
    for model in CATALOG.split("[[models]]").skip(1) {
        write("catalog", format!("[[models]]{model}").as_bytes())?;
    }
    for name in [
        "qwen2.5:7b",
        "qwen2.5-7b-sqint2",
        "hf:a/b",
        "hf:a/b@refs/pr/1",
        "ollama:x:1b",
        "./dir",
        "a/../b",
        "hf:../b",
        "hf:a/b@..",
        "gemma-3-1b-it-bf16",
        "ollama:../../x",
        "models/x",
    ] {
        write("names", name.as_bytes())?;
    }
    Ok(())
}

/// A squished file of one packed matrix, whose first byte stands for the header's length.
fn squished() -> Vec<u8> {
    let manifest = serde_json::json!({
        "format": 1, "tool": "seed", "recipe": "int4",
        "tensors": { "w": { "shape": [2, 64], "scheme": "int8", "version": 1, "group": 64,
            "rotation": { "block": 64, "seed": 1 } } },
    });
    let header = serde_json::json!({
        "__metadata__": { "squish": manifest.to_string() },
        "w.codes": { "dtype": "I8", "shape": [2, 64], "data_offsets": [0, 128] },
        "w.scales": { "dtype": "F16", "shape": [2, 1], "data_offsets": [128, 132] },
    });
    [&[1][..], header.to_string().as_bytes(), &[0; 132]].concat()
}
