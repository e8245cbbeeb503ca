//! Names of models as a user gives them to the chat example, without a network.

use std::{path::PathBuf, process::Command};

#[test]
fn a_pipeline_takes_a_name() {
    // The environment's home is not touched: both are answered without it.
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/squish-tiny-sqint2");
    assert!(squish_engine::Pipeline::from_name(bundled).is_ok());
    let error = squish_engine::Pipeline::from_name("no such model").unwrap_err();
    assert!(
        matches!(error, squish_engine::Error::Hub(_)) && error.to_string().contains("no model"),
        "{error}"
    );
}

#[test]
fn a_model_that_is_not_here_is_answered_in_three_lines() {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop(); // this test
    path.pop(); // deps
    let examples = path.join("examples");
    let home = tempfile::tempdir().unwrap();
    let answer_of = |example: &str, model: &str, more: &[&str]| {
        let example = examples.join(format!("{example}{}", std::env::consts::EXE_SUFFIX));
        let mut command = Command::new(example);
        command.env("SQUISH_HOME", home.path()).env("HF_HOME", home.path()).env("HF_HUB_OFFLINE", "1");
        let output = command.args(["--model", model]).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    let run = |model: &str| answer_of("chat", model, &["--prompt", "x"]);
    let answer = run("qwen2.5-7b-sqint2");
    let lines: Vec<_> = answer.lines().collect();
    assert_eq!(lines.len(), 3, "{answer}");
    assert!(lines[0].contains("Qwen/Qwen2.5-7B-Instruct") && lines[0].contains("sqint2"), "{answer}");
    assert!(lines[1].contains("2.38 GB") && lines[1].contains("memory"), "{answer}");
    assert!(lines[2].contains("squish-quant pull qwen2.5-7b-sqint2"), "{answer}");
    assert_eq!(run("hf:someone/model").lines().count(), 3);
    assert!(run("no-such-model").starts_with("error: no model"));
    for name in ["qwen2.5-7b-sqint2", "hf:someone/model", "no-such-model"] {
        assert_eq!(answer_of("bench", name, &[]), run(name));
    }
}
