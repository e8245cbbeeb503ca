//! The chat example as a user runs it, on the bundled model.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// The chat example's binary, which cargo builds beside this test's own.
fn chat() -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop(); // this test
    path.pop(); // deps
    let mut command =
        Command::new(path.join("examples").join(format!("chat{}", std::env::consts::EXE_SUFFIX)));
    command.env_remove("SQUISH_HOME").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    chat().args(args).output().unwrap()
}

#[test]
fn a_prompt_prints_the_answer_and_nothing_else() {
    let args = ["--prompt", "What is the sea?", "--max-tokens", "16", "--seed", "1"];
    let (first, second) = (run(&args), run(&args));
    assert!(first.status.success());
    assert_eq!(first.stdout, second.stdout, "the same seed gives the same answer");
    let text = String::from_utf8(first.stdout).unwrap();
    assert!(
        text.len() > 1 && text.ends_with('\n') && !text.contains('\x1b') && !text.contains("<|"),
        "{text:?}"
    );
    assert_eq!(String::from_utf8(first.stderr).unwrap(), "");
}

#[test]
fn json_reports_the_numbers() {
    let output = run(&["--prompt", "Hello", "--max-tokens", "4", "--temperature", "0", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["text"].is_string());
    assert!(json["generated_tokens"].as_u64().unwrap() <= 4);
    assert!(json["tokens_per_second"].is_number() && json["time_to_first_token_seconds"].is_number());
}

#[test]
fn questions_come_in_by_a_pipe() {
    let mut child =
        chat().args(["--max-tokens", "4"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"Hello\nAnd again\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(!output.stdout.is_empty() && !output.stdout.contains(&0x1b));
}

#[test]
fn keys_and_values_are_stored_as_asked() {
    let ask = ["--prompt", "What is the sea?", "--max-tokens", "8", "--temperature", "0"];
    for (kv, context) in [("f32", "4096"), ("k8v4", "256"), ("auto", "256")] {
        let output = run(&[&ask[..], &["--kv", kv, "--context", context]].concat());
        assert!(output.status.success() && output.stdout.len() > 1, "{kv}");
    }
    for (args, said) in [(["--kv", "k9v9"], "k9v9"), (["--context", "99999999"], "99999999")] {
        let output = run(&[&ask[..], &args].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty() && error.contains(said), "{error}");
    }
}

#[test]
fn a_wrong_model_is_one_clear_line() {
    let output = run(&["--model", "no-such-model", "--prompt", "Hello"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.starts_with("error: ") && error.contains("no-such-model") && error.lines().count() == 1,
        "{error}"
    );
    assert!(output.stdout.is_empty());
}
