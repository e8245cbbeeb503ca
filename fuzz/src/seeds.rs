//! The inputs that fuzzing starts from.

#[path = "../../squish-hub/tests/samples/mod.rs"]
mod samples;

const TEMPLATES: &str = include_str!("../../squish-engine/tests/golden/small.json");
const HOSTILE: &str = include_str!("../../squish-engine/tests/hostile_templates.txt");
const CATALOG: &str = include_str!("../../squish-hub/catalog.toml");

/// Targets, and an input of each.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut seed = |target, bytes: &[u8]| seeds.push((target, bytes.to_vec()));
    for sample in samples::unsafe_samples().into_iter().chain(samples::benign_samples()) {
        if sample.bytes.len() > 16_000 {
            continue;
        }
        for name in 0u8..16 {
            seed("scan", &[&[name][..], &sample.bytes[..]].concat());
        }
        if sample.name.ends_with("pkl") || sample.name.ends_with("bin") {
            seed("pickle", &sample.bytes);
        }
        if sample.name.ends_with("safetensors") {
            seed("weights", &sample.bytes);
        }
    }
    seed("weights", &squished());
    let templates: serde_json::Value = serde_json::from_str(TEMPLATES).expect("JSON");
    for case in templates.as_array().into_iter().flatten() {
        seed("template", case["template"].as_str().unwrap_or_default().as_bytes());
    }
    HOSTILE.lines().for_each(|line| seed("template", line.as_bytes()));
    for model in CATALOG.split("[[models]]").skip(1) {
        seed("catalog", format!("[[models]]{model}").as_bytes());
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
        seed("names", name.as_bytes());
    }
    seeds
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
