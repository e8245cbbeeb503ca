//! Names of models as a user gives them to the chat example, without a network.

use std::{path::PathBuf, process::Command};

#[test]
fn a_model_that_is_not_here_is_answered_in_three_lines() {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop(); // this test
    path.pop(); // deps
    let chat = path.join("examples").join(format!("chat{}", std::env::consts::EXE_SUFFIX));
    let home = tempfile::tempdir().unwrap();
    let run = |model: &str| {
        let mut command = Command::new(&chat);
        command.env("SQUISH_HOME", home.path()).env("HF_HOME", home.path()).env("HF_HUB_OFFLINE", "1");
        let output = command.args(["--model", model, "--prompt", "x"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    let answer = run("qwen2.5-7b-sqint2");
    let lines: Vec<_> = answer.lines().collect();
    assert_eq!(lines.len(), 3, "{answer}");
    assert!(lines[0].contains("Qwen/Qwen2.5-7B-Instruct") && lines[0].contains("sqint2"), "{answer}");
    assert!(lines[1].contains("2.38 GB") && lines[1].contains("memory"), "{answer}");
    assert!(lines[2].contains("squish-quant pull qwen2.5-7b-sqint2"), "{answer}");
    assert_eq!(run("hf:someone/model").lines().count(), 3);
    assert!(run("no-such-model").starts_with("error: no model"));
}
