//! What is asked for of a good checkpoint, and cannot be had, is refused with one clear line and an exit code.

mod support;

use std::fs;
use support::*;

// Recipes.

#[test]
fn an_unknown_recipe() {
    let args = ["compress", "source", "--out", "out", "--recipe", "q5_k"];
    Sandbox::new(&Source::tiny()).refuses(&args, &["`q5_k`", "sqint2, sqint2-plan, int3, int4"]);
}

#[test]
fn a_malformed_recipe() {
    let sandbox = Sandbox::new(&Source::tiny());
    let rule = "name = 'r'\n[[rules]]\ntensors = ['*']\nscheme = ";
    for (text, reason) in [
        ("name = ".to_string(), "line 1"),
        ("name = 'r'\nspeed = 3".into(), "speed"),
        (format!("{rule}'nf1'"), "rule 1: unknown scheme `nf1`"),
        (format!("{rule}'nf2'\nrank = -1"), "line 5"),
        (format!("{rule}'nf2'\nsparse = nan"), "sparse"),
        (format!("{rule}'nf2'\ngroup = 0"), "group"),
    ] {
        fs::write(sandbox.path("r.toml"), text).unwrap();
        sandbox.refuses(
            &["compress", "source", "--out", "out", "--recipe", "r.toml"],
            &["recipe r.toml", reason],
        );
    }
    fs::write(sandbox.path("r.toml"), [0xff; 9]).unwrap();
    sandbox.refuses(&["compress", "source", "--out", "out", "--recipe", "r.toml"], &["r.toml", "UTF-8"]);
    sandbox.refuses(&["compress", "source", "--out", "out", "--sparse", "nan"], &["--sparse is NaN"]);
}

// Measurements.

#[test]
fn windows_that_cannot_be() {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::write(sandbox.path("source/tokenizer.json"), tokenizer_json(96)).unwrap();
    fs::write(sandbox.path("text"), words(100)).unwrap();
    let refuses = |options: &[&str], expected: &[&str]| {
        let args = [&["perplexity", "source", "--text", "text"], options].concat();
        sandbox.refuses(&args, expected);
    };
    for window in ["0", "1", "129", "18446744073709551615"] {
        refuses(&["--window", window], &["the window is", window, "context length"]);
    }
    refuses(&["--window", "8", "--windows", "0"], &["the number of windows is 0", "at least 1"]);
    refuses(&["--window", "101"], &["text", "100 tokens", "one window of 101"]);
}

#[test]
fn a_text_that_cannot_be_read() {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::write(sandbox.path("source/tokenizer.json"), tokenizer_json(96)).unwrap();
    let args = ["perplexity", "source", "--text", "text", "--window", "8"];
    sandbox.refuses(&args, &["text: No such file"]);
    fs::write(sandbox.path("text"), [0xff; 999]).unwrap();
    sandbox.refuses(&args, &["text", "UTF-8"]);
    fs::write(sandbox.path("text"), "").unwrap();
    sandbox.refuses(&args, &["text", "0 tokens"]);
}

#[test]
fn a_tokenizer_that_is_missing_garbage_or_of_another_model() {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::write(sandbox.path("text"), words(100)).unwrap();
    let args = ["perplexity", "source", "--text", "text", "--window", "8"];
    sandbox.refuses(&args, &["source/tokenizer.json: No such file"]);
    for text in ["", "{}", "[1, 2", "{\"model\": {\"type\": \"Unknown\"}}"] {
        fs::write(sandbox.path("source/tokenizer.json"), text).unwrap();
        sandbox.refuses(&args, &["source/tokenizer.json"]);
    }
    fs::write(sandbox.path("source/tokenizer.json"), tokenizer_json(500)).unwrap();
    fs::write(sandbox.path("text"), "w1 w499 ".repeat(50)).unwrap();
    sandbox.refuses(&args, &["token id 499", "96"]);
}

#[test]
fn a_checkpoint_whose_logits_are_not_numbers() {
    let mut source = Source::tiny();
    source.tensor("model.embed_tokens.weight").set(64, f32::NAN);
    let sandbox = Sandbox::new(&source);
    fs::write(sandbox.path("source/tokenizer.json"), tokenizer_json(96)).unwrap();
    fs::write(sandbox.path("text"), words(100)).unwrap();
    sandbox.refuses(&["perplexity", "source", "--text", "text", "--window", "8"], &["source", "not finite"]);
}
