//! Compression with calibration: what it gains, what it refuses, and that it can be interrupted.

mod support;

use serde_json::Value;
use squish_quant::{
    Options, Progress, Recipe, Silent,
    calibrate::text::{Amount, Text},
    compress, inspect,
};
use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};
use support::*;

/// A checkpoint with sizes that 128 does not divide, and a vocabulary that 16 does not; and a text.
fn odd() -> Sandbox {
    let spec = Spec { hidden: 192, intermediate: 336, layers: 2, vocab: 97, ..Spec::default() };
    let sandbox = Sandbox::new(&Source::new(&spec));
    fs::write(sandbox.path("source/tokenizer.json"), tokenizer_json(97)).unwrap();
    fs::write(sandbox.path("text"), words(400)).unwrap();
    sandbox
}

/// Flags of a quick calibration.
const QUICK: &[&str] = &["--calibration-window", "16", "--calibration-windows", "4", "--target-bpw", "0"];

fn arguments<'a>(out: &'a str, text: &'a str) -> Vec<&'a str> {
    let mut arguments = vec!["compress", "source", "--recipe", "sqint2", "--out", out, "--calibrate", text];
    arguments.extend(QUICK);
    arguments
}

#[test]
fn the_same_text_gives_the_same_bytes_and_says_so() {
    let sandbox = odd();
    for text in ["text", "self"] {
        sandbox.succeeds(&arguments("a", text));
        sandbox.succeeds(&arguments("b", text));
        let [a, b] = ["a", "b"].map(|out| fs::read(sandbox.path(out).join("model.safetensors")).unwrap());
        assert!(a == b, "{text}");
        let json: Value = serde_json::from_str(&sandbox.succeeds(&["inspect", "a", "--json"])).unwrap();
        let calibration = &json["certificate"]["calibration"];
        assert_eq!(calibration["name"], text);
        assert_eq!((&calibration["windows"], &calibration["window"]), (&4.into(), &16.into()));
        assert!(json["tensors"].as_array().unwrap().iter().any(|t| t["scheme"] == "tcq2"));
        // Nothing but the output is left.
        for out in ["a", "b"] {
            fs::remove_dir_all(sandbox.path(out)).unwrap();
        }
        let left: Vec<_> = fs::read_dir(sandbox.path(".")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}

#[test]
fn a_text_that_cannot_calibrate_is_refused() {
    let sandbox = odd();
    fs::write(sandbox.path("empty"), "").unwrap();
    fs::write(sandbox.path("short"), words(15)).unwrap();
    fs::write(sandbox.path("binary"), [0xff, 0xfe, 0, 1, 2, 3].repeat(1000)).unwrap();
    sandbox.refuses(&arguments("out", "empty"), &["empty", "0 tokens", "16"]);
    sandbox.refuses(&arguments("out", "short"), &["short", "15 tokens", "16"]);
    sandbox.refuses(&arguments("out", "binary"), &["binary", "UTF-8"]);
    sandbox.refuses(&arguments("out", "absent"), &["absent", "No such file"]);
    // Another language, all of it unknown words, is a text like any other.
    fs::write(sandbox.path("foreign"), "слово ".repeat(100)).unwrap();
    sandbox.succeeds(&arguments("out", "foreign"));
}

#[test]
fn bits_are_allocated_within_the_target() {
    let sandbox = odd();
    let target = |bits: &'static str| {
        let mut arguments = arguments("out", "text");
        *arguments.last_mut().unwrap() = bits;
        arguments
    };
    let mut before = 0.0;
    for bits in ["3.5", "4.0", "5.0"] {
        let json: Value =
            serde_json::from_str(&sandbox.succeeds(&[&target(bits)[..], &["--json"]].concat())).unwrap();
        let found = json["bits_per_parameter"].as_f64().unwrap();
        assert!(found <= bits.parse().unwrap() && found > before, "{bits}: {found}");
        before = found;
        fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
    sandbox.refuses(&target("1.5"), &["1.5 bits per parameter cannot be reached"]);
    sandbox.refuses(&target("nan"), &["--target-bpw is NaN"]);
    sandbox.refuses(
        &["compress", "source", "--recipe", "int4", "--out", "out", "--target-bpw", "4"],
        &["int4", "no choices"],
    );
}

#[test]
fn a_memory_is_filled_and_not_overfilled() {
    let sandbox = odd();
    let config = fs::read_to_string(sandbox.path("source/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = 1024.into();
    fs::write(sandbox.path("source/config.json"), config.to_string()).unwrap();
    let with = |memory: &str, context: &str, more: &[&str]| -> Vec<String> {
        let mut arguments = arguments("out", "text");
        arguments.truncate(arguments.len() - 2);
        arguments.extend(["--fit", memory, "--context", context]);
        arguments.iter().chain(more).map(|s| s.to_string()).collect()
    };
    // Bytes of the weights, and of the session.
    let fitted = |limit: u64, context: &str| {
        let arguments = with(&limit.to_string(), context, &["--json"]);
        let json = sandbox.succeeds(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let json: Value = serde_json::from_str(&json).unwrap();
        fs::remove_dir_all(sandbox.path("out")).unwrap();
        let [weights, kv, working] = ["weights_bytes", "kv_cache_bytes", "working_bytes"]
            .map(|part| json["memory"][part].as_u64().unwrap());
        assert_eq!(weights, json["file_bytes"].as_u64().unwrap());
        assert_eq!(json["memory"]["context"].to_string(), context);
        assert!(weights + kv + working <= limit, "{limit}: {weights} {kv} {working}");
        (weights, kv + working)
    };
    let refused = |limit: u64, context: &str, expected: &[&str]| {
        let arguments = with(&limit.to_string(), context, &[]);
        sandbox.refuses(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    };
    let ((most, session), (_, longer)) = (fitted(1_000_000_000, "32"), fitted(1_000_000_000, "300"));
    // Of one memory, a longer context leaves less to the weights.
    let limit = longer + most - 20_000;
    let (at_32, at_300) = (fitted(limit, "32").0, fitted(limit, "300").0);
    assert!(
        session < longer && at_300 < at_32 && at_32 == most,
        "{session} {longer}: {at_300} {at_32} {most}"
    );
    refused(session + 1000, "32", &["do not hold", "32 positions", "the recipe's smallest weights"]);
    refused(1000, "32", &["1000 bytes do not hold this model"]);
    refused(1_000_000_000, "0", &["context is 0"]);
    refused(1_000_000_000, "1000000", &["context is 1000000", "this model has"]);
}

/// Stops after so many questions whether to go on.
struct StopAfter(AtomicUsize);

impl Progress for StopAfter {
    fn at(&self, _done: usize, _total: usize, _what: &str) {}

    fn interrupted(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }
}

#[test]
fn an_interrupted_calibration_goes_on_where_it_was() {
    let sandbox = odd();
    let mut recipe = Recipe::load("sqint2").unwrap();
    recipe.target_bits = None;
    let options = Options {
        calibration: Some(Text::File(sandbox.path("text"))),
        amount: Amount { window: 16, windows: 4 },
        ..Options::new(recipe)
    };
    let (source, out) = (sandbox.path("source"), sandbox.path("out"));
    compress(&source, &sandbox.path("whole"), &options, &Silent).unwrap();

    let kept = sandbox.path(".out.resume");
    let finished = || fs::read_dir(&kept).map_or(0, |entries| entries.count());
    let mut most = 0;
    for stop in [12, 14, 16, 18, 20] {
        let Err(error) = compress(&source, &out, &options, &StopAfter(stop.into())) else { break };
        assert!(error.to_string().contains("the same command goes on"), "{error}");
        assert!(!out.exists());
        assert!(finished() >= most, "finished work was lost");
        most = finished();
    }
    assert!(most > 2, "nothing was kept");
    if !out.exists() {
        compress(&source, &out, &options, &Silent).unwrap();
    }
    assert!(!kept.exists());
    let contents = |dir| files(&sandbox.path(dir)).into_values();
    assert!(contents("out").eq(contents("whole")), "resumed work differs");
}

/// On the testbed's model, on text that it was not calibrated on: error feedback is what makes 2 bits bearable.
#[test]
fn error_feedback_halves_the_loss_of_two_bits() {
    let testbed = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/testbed");
    if !testbed.exists() {
        eprintln!("skipped: {} is absent", testbed.display());
        return;
    }
    let (source, text) = (testbed.join("qwen2.5-tiny"), testbed.join("calibration.txt"));
    let dir = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::load("sqint2").unwrap();
    recipe.target_bits = None;
    let kl = |name: &str, calibration: Option<Text>| {
        let out = dir.path().join(name);
        let amount = Amount { window: 512, windows: 16 };
        let options = Options { calibration, amount, ..Options::new(recipe.clone()) };
        compress(&source, &out, &options, &Silent).unwrap();
        assert!(inspect(&out).unwrap().bits_per_parameter < 2.31);
        let windows = squish_quant::Windows { size: 512, count: Some(4) };
        squish_quant::kl(&source, &out, &testbed.join("wiki.test.raw"), windows, Default::default(), &Silent)
            .unwrap()
            .kl_mean
    };
    let (rounded, calibrated) = (kl("rounded", None), kl("calibrated", Some(Text::File(text))));
    println!("KL at 2.3 bits per parameter: {rounded:.4} rounded, {calibrated:.4} with error feedback");
    assert!(calibrated < 0.6 * rounded && calibrated < 0.25, "{rounded} {calibrated}");
}
