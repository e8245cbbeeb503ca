//! Divergence, tasks and perplexity on small random checkpoints, and on the testbed where `../shared` is there.

mod support;

use squish_models::{Arithmetic, Checkpoint, Device, Model};
use squish_quant::{
    Divergence, Error, Options, Recipe, Reference, Silent, Windows, compress, divergence,
    eval::{Conditions, Encoder, Fault, Question, Task, log_likelihoods, score, smoke},
    kl,
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use support::*;

fn testbed(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/testbed").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

/// A random checkpoint in `source` with a tokenizer, what `int3` makes of it in `out`, and a text.
fn squished() -> Sandbox {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::write(sandbox.path("source/tokenizer.json"), tokenizer_json(96)).unwrap();
    fs::write(sandbox.path("text"), words(100)).unwrap();
    let options = Options::new(Recipe::load("int3").unwrap());
    compress(&sandbox.path("source"), &sandbox.path("out"), &options, &Silent).unwrap();
    sandbox
}

/// The model in exact arithmetic, as evaluation has it.
fn load(dir: &Path) -> Model {
    let mut checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.set_arithmetic(Arithmetic::F32);
    Model::from_checkpoint(&checkpoint, &Device::Cpu).unwrap()
}

/// Without the time, which is the one thing that differs between two runs.
fn timeless(measured: Divergence) -> Divergence {
    Divergence { seconds: 0.0, ..measured }
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let sandbox = squished();
    let (source, text) = (sandbox.path("source"), sandbox.path("text"));
    let measured =
        kl(&source, &source, &text, Windows { size: 16, count: Some(3) }, Conditions::default(), &Silent)
            .unwrap();
    assert_eq!((measured.kl_mean, measured.kl_max, measured.top1_agreement), (0.0, 0.0, 1.0));
    assert_eq!((measured.nats_lost, measured.tokens, measured.windows), (0.0, 45, 3));
}

#[test]
fn divergence_is_what_its_definition_says() {
    let sandbox = squished();
    let (source, out) = (load(&sandbox.path("source")), load(&sandbox.path("out")));
    let windows = vec![vec![5, 9, 2, 70, 33], vec![1, 2]];
    let measured = divergence(&source, &out, &windows, &Silent).unwrap();

    // The definition, position by position, from probabilities.
    let (mut kls, mut nll, mut agreed) = (Vec::new(), [0.0, 0.0], 0);
    for ids in &windows {
        let mut sessions = [source.session(), out.session()];
        for pair in ids.windows(2) {
            let [p, q] = sessions.each_mut().map(|session| {
                let logits = session.feed(&pair[..1]).unwrap().to_vec1::<f32>().unwrap();
                let sum: f64 = logits.iter().map(|&v| f64::from(v).exp()).sum();
                logits.iter().map(|&v| f64::from(v).exp() / sum).collect::<Vec<_>>()
            });
            kls.push(p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>());
            nll[0] -= p[pair[1] as usize].ln();
            nll[1] -= q[pair[1] as usize].ln();
            let best = |p: &[f64]| (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b]));
            agreed += usize::from(best(&p) == best(&q));
        }
    }
    // Windows of four predictions and of one.
    let means = [kls[..4].iter().sum::<f64>() / 4.0, kls[4]];
    let stderr = (means[0] - means[1]).abs() / 2.0;
    kls.sort_by(f64::total_cmp);
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-5, "{found}, {expected}");
    close(measured.kl_mean, kls.iter().sum::<f64>() / 5.0);
    close(measured.kl_stderr.unwrap(), stderr);
    close(measured.kl_median, kls[2]);
    close(measured.kl_max, kls[4]);
    close(measured.kl_p99, kls[3] + 0.96 * (kls[4] - kls[3]));
    close(measured.reference_nll, nll[0] / 5.0);
    close(measured.nll, nll[1] / 5.0);
    close(measured.nats_lost, (nll[1] - nll[0]) / 5.0);
    close(measured.top1_agreement, f64::from(agreed as u32) / 5.0);
    assert!(measured.kl_mean > 0.0);

    // Kept or computed anew, the reference is the same.
    let reference = Reference::new(&source, windows.clone(), &Silent).unwrap();
    assert_eq!(timeless(reference.divergence(&out, &Silent).unwrap()), timeless(measured));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let sandbox = squished();
    let model = load(&sandbox.path("source"));
    let refuse = |windows: &[Vec<u32>]| divergence(&model, &model, windows, &Silent).unwrap_err();
    assert!(matches!(refuse(&[]), Error::Parameter { .. }));
    assert!(matches!(refuse(&[vec![1, 2], vec![1]]), Error::Parameter { .. }));
    assert!(matches!(refuse(&[vec![1; 129]]), Error::Model(_)));

    let other = Sandbox::new(&Source::new(&Spec { vocab: 80, ..Spec::default() }));
    let error = divergence(&model, &load(&other.path("source")), &[vec![1, 2]], &Silent).unwrap_err();
    assert!(matches!(error, Error::Vocabularies { reference: 96, model: 80 }));

    let mut nan = Source::tiny();
    nan.tensor("model.norm.weight").set(0, f32::NAN);
    let nan = Sandbox::new(&nan);
    let windows = Windows { size: 16, count: None };
    let error = kl(
        &sandbox.path("source"),
        &nan.path("source"),
        &sandbox.path("text"),
        windows,
        Conditions::default(),
        &Silent,
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains(nan.path("source").to_str().unwrap()) && error.contains("window 0"), "{error}");
}

#[test]
fn the_bundled_model_diverges_as_much_as_it_loses() {
    let (Some(original), Some(text)) = (testbed("qwen2.5-tiny"), testbed("wiki.test.raw")) else { return };
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/squish-tiny-sqint2");
    let measured =
        kl(&original, &bundled, &text, Windows { size: 512, count: Some(2) }, Conditions::default(), &Silent)
            .unwrap();
    println!("{measured:#?}");
    assert!(0.0 < measured.kl_mean && measured.kl_mean < 0.3, "{}", measured.kl_mean);
    assert!(measured.kl_median < measured.kl_mean && measured.kl_mean < measured.kl_p99);
    assert!(measured.top1_agreement > 0.7 && measured.nats_lost > 0.0);
}

/// Accuracy on the first questions, as transformers' float32 logits gave it.
#[test]
fn arc_easy_equals_the_golden_scores() {
    for name in ["qwen2.5-tiny", "qwen3-tiny", "gemma3-tiny"] {
        let (Some(model), Some(data)) = (testbed(name), testbed("eval/arc_easy.jsonl")) else { return };
        let golden = fs::read(testbed(&format!("golden/{name}.json")).unwrap()).unwrap();
        let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        let golden = |key: &str| golden[key].as_f64().unwrap();
        let measured = score(&model, Task::by_name("arc_easy").unwrap(), &data, Some(400), &Silent).unwrap();
        println!("{name}: {measured:?}");
        assert_eq!(measured.questions, 400);
        assert!((measured.acc - golden("arc_easy_acc")).abs() < 1e-9, "{name}");
        assert!((measured.acc_norm - golden("arc_easy_acc_norm")).abs() < 1e-9, "{name}");
        assert_eq!(measured.acc_bytes, measured.acc_norm);
        let p = measured.acc;
        assert_eq!(measured.acc_stderr, Some((p * (1.0 - p) / 399.0).sqrt()));
    }
}

/// A copy of a checkpoint in which the bytes of every matrix of the layers stand in reverse.
fn ruined(source: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = copy.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let (header, data) = split(&bytes);
    let start = bytes.len() - data.len();
    for (name, entry) in header.as_object().unwrap() {
        let codes = name.ends_with("proj.weight") || name.ends_with(".codes");
        if name.starts_with("model.layers.") && codes {
            let [from, to] = [0, 1].map(|i| start + entry["data_offsets"][i].as_u64().unwrap() as usize);
            // Pairs of bytes: a bf16 weight stays one.
            let pairs: Vec<_> = bytes[from..to].chunks(2).rev().flatten().copied().collect();
            bytes[from..to].copy_from_slice(&pairs);
        }
    }
    fs::write(path, bytes).unwrap();
    copy
}

#[test]
fn good_models_pass_the_smoke_test_and_ruined_ones_fail() {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/squish-tiny-sqint2");
    for dir in testbed("qwen2.5-tiny").into_iter().chain([bundled]) {
        let good = smoke(&dir, 64, &Silent).unwrap();
        assert!(good.passed && good.fault.is_none(), "{good:#?}");
        assert_eq!(smoke(&dir, 4, &Silent).unwrap(), smoke(&dir, 4, &Silent).unwrap());
        let bad = smoke(ruined(&dir).path(), 64, &Silent).unwrap();
        println!(
            "{}: {:.2} nats per token of the prompts; ruined: {:?}",
            dir.display(),
            good.prompt_nll,
            bad.fault
        );
        assert!(!bad.passed && matches!(bad.fault, Some(Fault::Gibberish { .. })), "{bad:#?}");
    }
}

#[test]
fn the_smoke_test_has_an_exit_code() {
    let sandbox = squished();
    let output = sandbox.command(&["smoke", "out", "--tokens", "8", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.starts_with("error: out: the prompts cost the model") && stderr.lines().count() == 1,
        "{stderr}"
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["passed"], &report["fault"]["kind"]), (&false.into(), &"gibberish".into()));
    assert_eq!(report["answers"].as_array().unwrap().len(), 5);

    sandbox.refuses(&["smoke", "out", "--tokens", "0"], &["--tokens"]);
    sandbox.refuses(&["smoke", "nonesuch"], &["nonesuch", "no model"]);
    let mut nan = Source::tiny();
    nan.tensor("model.norm.weight").set(0, f32::NAN);
    let nan = Sandbox::new(&nan);
    fs::write(nan.path("source/tokenizer.json"), tokenizer_json(96)).unwrap();
    nan.refuses(&["smoke", "source"], &["source", "prompt 1", "not finite"]);
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let sandbox = squished();
    let eval = |options: &[&'static str]| [&["eval", "source", "--task"], options].concat();
    sandbox.refuses(&eval(&["hellaswag"]), &["hellaswag", "arc_easy", "kl"]);
    sandbox.refuses(&eval(&["perplexity"]), &["--text"]);
    sandbox.refuses(&eval(&["kl", "--text", "text"]), &["--against"]);
    sandbox.refuses(&eval(&["piqa"]), &["--data"]);
    sandbox.refuses(&eval(&["piqa,arc_easy", "--data", "text"]), &["directory"]);
    sandbox.refuses(&eval(&["piqa", "--data", "."]), &["piqa.jsonl", "No such file"]);
    sandbox.refuses(&eval(&["piqa", "--data", "text", "--limit", "0"]), &["--limit"]);
    sandbox.refuses(&eval(&["piqa", "--data", "text"]), &["text: line 1"]);
    for (line, reason) in [
        ("", "no question"),
        (r#"{"query": "a", "choices": ["b", "c"]}"#, "gold"),
        (r#"{"query": "a", "choices": ["b", "c"], "gold": 2}"#, "`gold` is 2"),
        (r#"{"query": "a", "choices": ["b", "c"], "gold": -1}"#, "-1"),
        (r#"{"query": "a", "choices": ["b"], "gold": 0}"#, "1 choices"),
        (r#"{"query": "a", "choices": ["b", ""], "gold": 0}"#, "empty"),
        (r#"{"query": " ", "choices": ["b", "c"], "gold": 0}"#, "`query` is empty"),
    ] {
        fs::write(sandbox.path("q.jsonl"), line).unwrap();
        sandbox.refuses(&eval(&["piqa", "--data", "q.jsonl"]), &["q.jsonl", reason]);
    }
    // A choice that does not fit the context, and a prompt of which only the end does.
    let question = |query: usize, choice: usize| {
        let json = serde_json::json!({"query": words(query), "choices": ["w1", words(choice)], "gold": 0});
        fs::write(sandbox.path("q.jsonl"), json.to_string()).unwrap();
    };
    question(5, 200);
    sandbox.refuses(&eval(&["openbook_qa", "--data", "q.jsonl"]), &["choice", "context"]);
    question(200, 5);
    sandbox.succeeds(&eval(&["openbook_qa", "--data", "q.jsonl"]));
}

#[test]
fn scores_are_sums_over_the_continuation() {
    let sandbox = squished();
    let line = serde_json::json!({"query": "w5 w9", "choices": ["w3", "w4 w2 w7", "w3 w8"], "gold": 1});
    fs::write(sandbox.path("q.jsonl"), line.to_string()).unwrap();
    let questions = Question::read(&sandbox.path("q.jsonl"), None).unwrap();
    let model = load(&sandbox.path("source"));
    let encoder = Encoder::from_dir(&sandbox.path("source")).unwrap();
    let task = Task::by_name("openbook_qa").unwrap();
    let found = log_likelihoods(&model, &encoder, task, &questions, &Silent).unwrap();
    for (choice, found) in [[3].as_slice(), &[4, 2, 7], &[3, 8]].into_iter().zip(&found[0]) {
        let mut session = model.session();
        let mut logits = session.feed(&[5, 9]).unwrap();
        let mut expected = 0.0;
        for &token in choice {
            let row = logits.to_vec1::<f32>().unwrap();
            let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
            expected += f64::from(row[token as usize]) - sum.ln();
            logits = session.feed(&[token]).unwrap();
        }
        assert!((found - expected).abs() < 1e-5, "{choice:?}: {found}, {expected}");
    }
}
