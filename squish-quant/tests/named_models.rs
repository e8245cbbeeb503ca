//! Every command takes a model by its name, and answers alike where it is not here or not safe.

#[path = "support/home.rs"]
mod home;

use home::at_home;
use std::{
    path::{Path, PathBuf},
    process::Output,
};

fn run(home: &Path, args: &[&str]) -> Output {
    at_home(home, args).current_dir(home).output().unwrap()
}

/// Each command with the model in its place.
fn commands(model: &str) -> Vec<Vec<&str>> {
    vec![
        vec!["inspect", model],
        vec!["smoke", model],
        vec!["perplexity", model, "--text", "text"],
        vec!["eval", model, "--task", "perplexity", "--text", "text"],
        vec!["compress", model, "--out", "out"],
        vec!["synth", "--config", model, "--out", "out"],
    ]
}

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/squish-tiny-sqint2")
}

/// The bundled model under another name in a home, with one file replaced.
fn copy(home: &Path, name: &str, replaced: Option<(&str, &[u8])>) {
    let dir = home.join("models").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    for file in std::fs::read_dir(bundled()).unwrap().flatten() {
        std::fs::copy(file.path(), dir.join(file.file_name())).unwrap();
    }
    if let Some((file, bytes)) = replaced {
        std::fs::write(dir.join(file), bytes).unwrap();
    }
}

#[test]
fn what_is_not_here_is_three_lines() {
    let home = tempfile::tempdir().unwrap();
    for args in commands("qwen2.5-0.5b-int4").into_iter().chain(commands("hf:org/name")) {
        let output = run(home.path(), &args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stdout.is_empty() && error.lines().count() == 3, "{args:?}: {error}");
        assert!(error.contains("squish-quant pull"), "{args:?}: {error}");
    }
    // Where an original is wanted, a name without a variant stands for it.
    let error = |args: &[&str]| String::from_utf8(run(home.path(), args).stderr).unwrap();
    assert!(error(&["compress", "qwen2.5:0.5b", "--out", "out"]).contains("pull qwen2.5-0.5b-bf16"));
    assert!(error(&["inspect", "qwen2.5:0.5b"]).contains("pull qwen2.5:0.5b;"));
}

#[test]
fn what_nothing_is_called_is_one_line() {
    let home = tempfile::tempdir().unwrap();
    for args in commands("nonesuch").into_iter().chain(commands("ollama:nonesuch")) {
        let output = run(home.path(), &args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            error.starts_with("error: ") && error.lines().count() == 1 && error.contains("nonesuch"),
            "{error}"
        );
    }
    assert!(!home.path().join("out").exists());
}

#[test]
fn a_name_stands_for_its_directory() {
    let home = tempfile::tempdir().unwrap();
    copy(home.path(), "my-model", None);
    let by_name = run(home.path(), &["inspect", "my-model", "--json"]);
    assert!(by_name.status.success(), "{}", String::from_utf8_lossy(&by_name.stderr));
    let by_path = run(home.path(), &["inspect", bundled().to_str().unwrap(), "--json"]);
    assert_eq!(by_name.stdout, by_path.stdout);
    let listed = String::from_utf8(run(home.path(), &["list"]).stdout).unwrap();
    assert!(listed.contains("my-model"), "{listed}");
    assert!(run(home.path(), &["rm", "my-model"]).status.success());
    assert_eq!(run(home.path(), &["inspect", "my-model"]).status.code(), Some(1));
}

#[test]
fn what_is_not_safe_to_open_ends_with_2() {
    let home = tempfile::tempdir().unwrap();
    let pickle = b"\x80\x04cposix\nsystem\n.";
    for (name, file) in [("a", "tokenizer.json"), ("b", "config.json"), ("c", "model.safetensors")] {
        copy(home.path(), name, Some((file, pickle)));
        for args in commands(name) {
            let output = run(home.path(), &args);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
            assert!(error.contains(file) && error.contains("posix.system"), "{args:?}: {error}");
        }
    }
}
