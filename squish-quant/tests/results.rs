//! What comes of good input: JSON with the documented fields, the same bytes every time, sources of every kind.

mod support;

use safetensors::Dtype;
use serde_json::Value;
use squish_models::{Device, Model};
use std::{fs, path::Path};
use support::*;

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("one JSON object")
}

fn assert_inspection(json: &Value, tensors: usize) {
    for key in ["parameters", "file_bytes", "bits_per_parameter"] {
        assert!(json[key].as_f64().unwrap() > 0.0, "{key}");
    }
    let list = json["tensors"].as_array().unwrap();
    assert_eq!(list.len(), tensors);
    let mut weights = 0;
    for tensor in list {
        assert!(tensor["name"].is_string() && tensor["scheme"].is_string(), "{tensor}");
        assert!(tensor["bits_per_weight"].as_f64().unwrap() > 0.0, "{tensor}");
        weights += tensor["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product::<u64>();
    }
    assert_eq!(json["parameters"], weights);
}

#[test]
fn json_has_the_documented_fields() {
    let source = Source::tiny();
    let sandbox = Sandbox::new(&source);
    fs::write(sandbox.path("source/tokenizer.json"), tokenizer_json(96)).unwrap();
    fs::write(sandbox.path("text"), words(100)).unwrap();

    let report = json(&sandbox.succeeds(&["compress", "source", "--out", "out", "--json"]));
    assert_inspection(&report, source.tensors.len());
    assert!(report["notes"].is_array() && report["seconds"].is_f64());
    assert!(report["peak_memory_bytes"].as_u64().is_none_or(|bytes| bytes > 1 << 20));

    let original = json(&sandbox.succeeds(&["inspect", "source", "--json"]));
    assert_inspection(&original, source.tensors.len());
    let squished = json(&sandbox.succeeds(&["inspect", "out", "--json"]));
    assert_inspection(&squished, source.tensors.len());
    assert_eq!(squished["parameters"], original["parameters"]);
    assert_eq!(
        (&squished["recipe"], &squished["architecture"]),
        (&"sqint2-plan".into(), &"Qwen2ForCausalLM".into())
    );
    let bytes = fs::metadata(sandbox.path("out/model.safetensors")).unwrap().len();
    assert_eq!(squished["file_bytes"], bytes);

    for dir in ["source", "out"] {
        let args = ["perplexity", dir, "--text", "text", "--window", "16", "--windows", "5", "--json"];
        let measured = json(&sandbox.succeeds(&args));
        // Random weights know nothing: close to the logarithm of the vocabulary, 4.56.
        let nll = measured["nll"].as_f64().unwrap();
        assert!((3.0..9.0).contains(&nll), "{nll}");
        assert!((measured["perplexity"].as_f64().unwrap() - nll.exp()).abs() < 1e-6 * nll.exp());
        let numbers = ["tokens", "windows", "window"].map(|key| measured[key].as_u64().unwrap());
        assert_eq!(numbers, [5 * 15, 5, 16]);
        assert!(measured["seconds"].is_f64());
    }
}

#[test]
fn a_pipe_gets_no_colour() {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::write(sandbox.path("source/tokenizer.json"), tokenizer_json(96)).unwrap();
    fs::write(sandbox.path("text"), words(100)).unwrap();
    for args in [
        &["compress", "source", "--out", "out"][..],
        &["inspect", "out"],
        &["inspect", "source"],
        &["perplexity", "out", "--text", "text", "--window", "16"],
        &["recipes"],
        &["recipes", "sqint2"],
    ] {
        let text = sandbox.succeeds(args);
        assert!(!text.is_empty() && !text.contains(['\u{1b}', '\r']), "{args:?}: {text:?}");
    }
}

#[test]
fn the_same_source_gives_the_same_bytes_on_any_number_of_threads() {
    let sandbox = Sandbox::new(&Source::new(&Spec { intermediate: 192, ..Spec::default() }));
    fs::write(sandbox.path("everything.toml"), EVERYTHING).unwrap();
    let compressed = |threads: &str| {
        let args = ["compress", "source", "--out", threads, "--recipe", "everything.toml"];
        let output = sandbox.command(&args).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let dir = sandbox.path(threads);
        let relative = |path: &Path| path.strip_prefix(&dir).unwrap().to_owned();
        files(&dir).into_iter().map(|(path, contents)| (relative(&path), contents)).collect::<Vec<_>>()
    };
    let one = compressed("1");
    assert_eq!(one.len(), 2);
    assert!(one == compressed("2") && one == compressed("5"));
}

/// Logits of a few tokens, at once and then one more.
fn logits(dir: &Path) -> Vec<f32> {
    let mut session = Model::from_dir(dir, &Device::Cpu).unwrap().session();
    let mut logits = session.feed(&[1, 5, 90]).unwrap().to_vec1::<f32>().unwrap();
    logits.extend(session.feed(&[7]).unwrap().to_vec1::<f32>().unwrap());
    assert!(logits.iter().all(|v| v.is_finite()));
    logits
}

#[test]
fn shards_give_the_logits_of_the_single_file() {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::write(sandbox.path("everything.toml"), EVERYTHING).unwrap();
    sandbox.succeeds(&["compress", "source", "--out", "single", "--recipe", "everything.toml"]);
    let expected = logits(&sandbox.path("single"));
    for (out, bytes, shards) in [("two", "60000", 2..4), ("many", "0", 38..39)] {
        let args =
            ["compress", "source", "--out", out, "--recipe", "everything.toml", "--max-shard-bytes", bytes];
        sandbox.succeeds(&args);
        let names: Vec<_> = fs::read_dir(sandbox.path(out)).unwrap().map(|e| e.unwrap().path()).collect();
        let found = names.iter().filter(|path| path.extension().is_some_and(|e| e == "safetensors")).count();
        assert!(shards.contains(&found), "{found} shards");
        assert_eq!(logits(&sandbox.path(out)), expected, "{out}");
        let (one, many) = (["inspect", "single", "--json"], ["inspect", out, "--json"]);
        assert_eq!(json(&sandbox.succeeds(&one))["tensors"], json(&sandbox.succeeds(&many))["tensors"]);
    }
}

#[test]
fn sources_of_every_kind() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        for (tied, shards) in [(true, 1), (false, 1), (false, 3)] {
            let sandbox = Sandbox::new(&Source::new(&Spec { dtype, tied, shards, ..Spec::default() }));
            let args = ["compress", "source", "--out", "out", "--recipe", "int4"];
            sandbox.succeeds(&args);
            let (original, squished) = (logits(&sandbox.path("source")), logits(&sandbox.path("out")));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let cosine =
                dot(&original, &squished) / (dot(&original, &original) * dot(&squished, &squished)).sqrt();
            assert!(cosine > 0.97, "{dtype:?}, tied {tied}, {shards} shards: {cosine}");
            // Loaded from a source of 16 or 32 bits, squished to fewer.
            let bits = json(&sandbox.succeeds(&["inspect", "out", "--json"]))["bits_per_parameter"].as_f64();
            assert!(bits.unwrap() < 12.0, "{bits:?}");
        }
    }
}

#[test]
fn columns_that_cannot_be_packed_are_kept_with_a_note() {
    // Columns of `down_proj` are the intermediate size.
    let sandbox = Sandbox::new(&Source::new(&Spec { intermediate: 100, ..Spec::default() }));
    let report = json(&sandbox.succeeds(&["compress", "source", "--out", "out", "--json"]));
    let notes: Vec<&str> = report["notes"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert_eq!(notes.len(), 3);
    for (layer, note) in notes.iter().enumerate() {
        let name = format!("model.layers.{layer}.mlp.down_proj.weight");
        assert!(note.contains(&name) && note.contains("multiple of 64"), "{note}");
        let tensors = report["tensors"].as_array().unwrap();
        assert_eq!(tensors.iter().find(|t| t["name"] == name).unwrap()["scheme"], "bf16");
    }
    logits(&sandbox.path("out"));
}

#[test]
fn a_head_beside_tied_embeddings_is_dropped_with_a_note() {
    let mut source = Source::new(&Spec { tied: false, ..Spec::default() });
    source.config["tie_word_embeddings"] = true.into();
    let sandbox = Sandbox::new(&source);
    let text = sandbox.succeeds(&["compress", "source", "--out", "out"]);
    assert!(text.contains("note: lm_head.weight: dropped"), "{text}");
    assert!(!sandbox.succeeds(&["inspect", "out"]).contains("lm_head"));
}
