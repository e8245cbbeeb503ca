//! What is measured goes into the checkpoint, whole or not at all, and a loader can ask for it.

mod support;

use serde_json::{Value, json};
use squish_models::{
    Checkpoint,
    checkpoint::{Certificate, CertificateDemand, Source as Named},
};
use squish_quant::{
    certificate::{hash_bytes, hash_checkpoint, hash_file},
    inspect,
};
use std::fs;
use support::*;

const KL: &[&str] = &[
    "eval",
    "out",
    "--task",
    "kl,perplexity",
    "--text",
    "text",
    "--window",
    "16",
    "--windows",
    "3",
    "--against",
    "source",
    "--certify",
];

/// A random checkpoint in `source`, what `int3` makes of it in `out`, a text and questions.
fn sandbox(shards: usize) -> Sandbox {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::write(sandbox.path("source/tokenizer.json"), tokenizer_json(96)).unwrap();
    fs::write(sandbox.path("text"), words(100)).unwrap();
    let questions = json!({"query": "w1 w2", "choices": ["w3", "w4 w5"], "gold": 0});
    fs::write(sandbox.path("piqa.jsonl"), format!("{questions}\n{questions}\n")).unwrap();
    let bytes = if shards == 1 { "5000000000" } else { "40000" };
    let args = ["compress", "source", "--out", "out", "--recipe", "int3", "--max-shard-bytes", bytes];
    sandbox.succeeds(&args);
    sandbox
}

fn certificate(sandbox: &Sandbox) -> Certificate {
    Checkpoint::open(sandbox.path("out")).unwrap().certificate().unwrap().clone()
}

/// Edits the manifest of the single weights file.
fn edit(sandbox: &Sandbox, change: impl FnOnce(&mut Value)) {
    let path = sandbox.path("out/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    edit_manifest(&mut bytes, change);
    fs::write(&path, bytes).unwrap();
}

#[test]
fn measurements_are_written_and_shown() {
    let sandbox = sandbox(1);
    let path = sandbox.path("out/model.safetensors");
    let before = fs::read(&path).unwrap();
    let args = [KL, &["--json"]].concat();
    let printed: Value = serde_json::from_str(&sandbox.succeeds(&args)).unwrap();

    let found = certificate(&sandbox);
    let [kl, perplexity] = &found.measurements[..] else { panic!("{found:?}") };
    assert_eq!((kl.what.as_str(), perplexity.what.as_str()), ("kl", "perplexity"));
    for (measurement, names) in [(kl, 13), (perplexity, 5)] {
        assert_eq!(measurement.values.len(), names);
        for (name, value) in &measurement.values {
            assert_eq!(json!(value), printed[&measurement.what][name], "{name}");
        }
        assert_eq!(measurement.data, hash_file(&sandbox.path("text")).unwrap());
        let command = measurement.command.as_deref().unwrap();
        assert!(command.starts_with("squish-quant eval out --task kl,perplexity --text text"), "{command}");
    }
    assert_eq!(perplexity.against, None);
    let original = Checkpoint::open(sandbox.path("source")).unwrap();
    assert_eq!(kl.against, Some(hash_checkpoint(&original).unwrap()));

    // The bits are true, the weights the same, and nothing is left beside them.
    let after = fs::read(&path).unwrap();
    assert_eq!(found.file_bytes, after.len() as u64);
    let inspection = inspect(&sandbox.path("out")).unwrap();
    assert_eq!((found.parameters, found.file_bytes), (inspection.parameters as u64, after.len() as u64));
    assert!((found.bits_per_parameter - inspection.bits_per_parameter).abs() < 1e-6);
    assert_eq!(split(&before).1, split(&after).1);
    assert_eq!(fs::read_dir(sandbox.path("out")).unwrap().count(), 3);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name| fs::metadata(sandbox.path(name)).unwrap().permissions().mode();
        assert_eq!(mode("out/model.safetensors"), mode("out/config.json"));
    }
    let text = sandbox.succeeds(&["inspect", "out"]);
    for part in ["certificate:", "kl on text", "against source", "kl_mean", &kl.data.sha256] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let json: Value = serde_json::from_str(&sandbox.succeeds(&["inspect", "out", "--json"])).unwrap();
    assert_eq!(json["certificate"], serde_json::to_value(&found).unwrap());

    // The same again is the same file; other data is added, the same data with other windows replaces.
    sandbox.succeeds(&args);
    assert!(fs::read(&path).unwrap() == after, "the second run wrote another file");
    sandbox.succeeds(&["eval", "out", "--task", "piqa", "--data", "piqa.jsonl", "--certify"]);
    sandbox.succeeds(&[
        "eval",
        "out",
        "--task",
        "perplexity",
        "--text",
        "text",
        "--window",
        "8",
        "--certify",
    ]);
    let found = certificate(&sandbox);
    let whats: Vec<_> = found.measurements.iter().map(|m| m.what.as_str()).collect();
    assert_eq!(whats, ["kl", "perplexity", "piqa"]);
    assert_eq!(found.measurements[1].values["window"], 8.into());
    assert_eq!(found.measurements[2].values["questions"], 2.into());
    assert_eq!(found.file_bytes, fs::metadata(&path).unwrap().len());
}

#[test]
fn of_shards_the_first_carries_it() {
    let sandbox = sandbox(2);
    let before = files(&sandbox.path("out"));
    sandbox.succeeds(KL);
    let after = files(&sandbox.path("out"));
    let changed: Vec<_> = after.iter().filter(|(path, bytes)| before[*path] != **bytes).collect();
    assert_eq!(before.len(), after.len());
    assert_eq!(changed.len(), 1);
    assert!(changed[0].0.to_str().unwrap().contains("model-00001-of-"), "{:?}", changed[0].0);
    let inspection = inspect(&sandbox.path("out")).unwrap();
    assert_eq!(certificate(&sandbox).file_bytes, inspection.file_bytes as u64);
    Checkpoint::open(sandbox.path("out"))
        .unwrap()
        .require_certificate(&CertificateDemand::default())
        .unwrap();
}

#[cfg(unix)]
#[test]
fn a_linked_file_stays_where_it_is() {
    let sandbox = sandbox(1);
    let (link, blob) = (sandbox.path("out/model.safetensors"), sandbox.path("blob"));
    fs::rename(&link, &blob).unwrap();
    std::os::unix::fs::symlink(&blob, &link).unwrap();
    sandbox.succeeds(KL);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(certificate(&sandbox).file_bytes, fs::metadata(&blob).unwrap().len());
}

#[test]
fn a_loader_can_demand_one() {
    let sandbox = sandbox(1);
    let demand = |max_kl: Option<f64>, max_nats_lost: Option<f64>| {
        let demand = CertificateDemand { max_kl, max_nats_lost, text_sha256: None };
        let checkpoint = Checkpoint::open(sandbox.path("out")).unwrap();
        checkpoint.require_certificate(&demand).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(demand(None, None), Ok(()));
    assert!(demand(Some(1.0), None).is_err(), "nothing was measured yet");
    edit(&sandbox, |manifest| drop(manifest.as_object_mut().unwrap().remove("certificate")));
    let error = demand(None, None).unwrap_err();
    assert!(error.ends_with("out/model.safetensors: the weights carry no certificate"), "{error}");
    sandbox.succeeds(KL);
    let kl = certificate(&sandbox).measurements[0].values["kl_mean"].as_f64().unwrap();
    assert_eq!(demand(None, None), Ok(()));
    assert_eq!(demand(Some(kl), Some(10.0)), Ok(()));
    assert!(demand(Some(kl / 2.0), None).unwrap_err().contains("kl_mean is"));
    assert!(demand(None, Some(-10.0)).unwrap_err().contains("nats_lost is"));
    // Bytes that were added to the file are not what was counted.
    edit(&sandbox, |manifest| manifest["note"] = "x".repeat(200).into());
    assert!(demand(None, None).unwrap_err().contains("the certificate counts"));
}

#[test]
fn what_was_not_measured_is_not_certified() {
    let sandbox = sandbox(1);
    let source = [&["eval", "source"], &KL[2..]].concat();
    sandbox.refuses(&source, &["source", "not a squished checkpoint"]);
    let long = ["eval", "out", "--task", "perplexity", "--text", "text", "--window", "120", "--certify"];
    sandbox.refuses(&long, &["text", "fewer than one window"]);
    fs::write(sandbox.path("text"), "").unwrap();
    sandbox.refuses(KL, &["text", "fewer than one window"]);
    fs::write(sandbox.path("text"), [0xff, 0xfe, 0]).unwrap();
    sandbox.refuses(KL, &["text", "UTF-8"]);
    fs::write(sandbox.path("text"), words(100)).unwrap();
    // One good measurement and one that fails: neither is written.
    let args = ["eval", "out", "--task", "perplexity,piqa", "--text", "text", "--window", "8", "--data", "."];
    fs::write(sandbox.path("piqa.jsonl"), "{}").unwrap();
    sandbox.refuses(&[&args[..], &["--certify"]].concat(), &["piqa.jsonl: line 1", "query"]);

    // Infinite scales: the logits are not numbers.
    let path = sandbox.path("out/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let (header, _) = split(&bytes);
    let name = "model.layers.0.mlp.up_proj.weight.scales";
    let offset = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let data = bytes.len() - split(&bytes).1.len();
    bytes[data + offset..][..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    sandbox.refuses(KL, &["out", "window 0", "not finite"]);
}

#[test]
fn another_original_is_refused() {
    let sandbox = sandbox(1);
    let original = hash_checkpoint(&Checkpoint::open(sandbox.path("source")).unwrap()).unwrap();
    let set = |original: Named| {
        edit(&sandbox, |manifest| {
            let certificate = Certificate { original: Some(original), ..Certificate::new(1, 1) };
            manifest["certificate"] = serde_json::to_value(certificate).unwrap();
        });
    };
    set(Named { name: "elsewhere".into(), sha256: "0".repeat(64) });
    sandbox.refuses(KL, &["out/model.safetensors", "made from `elsewhere`", "`source`"]);
    set(original.clone());
    sandbox.succeeds(KL);
    assert_eq!(certificate(&sandbox).original, Some(original));
}

#[test]
fn a_certificate_that_is_malformed() {
    for value in [json!(3), json!({"parameters": -1}), json!({"measurements": {}})] {
        let sandbox = sandbox(1);
        edit(&sandbox, |manifest| manifest["certificate"] = value);
        sandbox.refuses(&["inspect", "out"], &["out/model.safetensors", "malformed"]);
        sandbox.refuses(KL, &["out/model.safetensors", "malformed"]);
    }
}

#[test]
fn names_are_hashes() {
    // The hash of `abc` is a test vector of FIPS 180.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(hash_bytes("self", b"abc"), Named { name: "self".into(), sha256: abc.into() });
    let sandbox = Sandbox::new(&Source::tiny());
    fs::write(sandbox.path("abc"), "abc").unwrap();
    assert_eq!(hash_file(&sandbox.path("abc")).unwrap().sha256, abc);
    // A checkpoint is the hash of what sha256sum prints.
    let lines = ["config.json", "model.safetensors"]
        .map(|name| format!("{}  {name}\n", hash_file(&sandbox.path("source").join(name)).unwrap().sha256));
    let named = hash_checkpoint(&Checkpoint::open(sandbox.path("source")).unwrap()).unwrap();
    assert_eq!(named, hash_bytes("source", lines.concat().as_bytes()));
}
