//! `squish-quant batch`, with a stand-in hub.

#[path = "support/from_hub.rs"]
mod from_hub;
mod support;

use from_hub::*;
use std::fs;
use support::*;

/// A hub with a model that cannot write: it has no tokenizer.
fn hub() -> WithHub {
    let sandbox = Sandbox::new(&Source::new(&Spec { shards: 2, ..Spec::default() }));
    let files = read_dir(&sandbox.path("source"));
    let files = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    WithHub { standin: standin::Standin::with(&[("someone/mute", files)]), sandbox }
}

fn batch(hub: &WithHub, list: &str) -> std::process::Output {
    fs::write(hub.path("list.toml"), list).unwrap();
    hub.command(&["batch", "list.toml", "--json"]).env("HF_TOKEN", "secret").output().unwrap()
}

/// The status of each step of each model.
fn statuses(output: &std::process::Output) -> Vec<Vec<String>> {
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let steps = |model: &serde_json::Value| {
        let steps = model["steps"].as_array().unwrap().iter();
        steps.map(|s| format!("{} {}", s["step"].as_str().unwrap(), s["status"].as_str().unwrap())).collect()
    };
    json["models"].as_array().unwrap().iter().map(steps).collect()
}

#[test]
fn a_failure_does_not_keep_the_next_model_from_passing() {
    let (hub, dir) =
        (hub(), std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/squish-tiny-sqint2"));
    let english = "The sea is wide and deep. ".repeat(200);
    fs::write(hub.path("english"), english).unwrap();
    let list = format!(
        r#"
        tokens = 16
        [[models]]
        name = "hf:someone/mute"
        recipe = "int4"
        push = "hf:me/mute"
        [[models]]
        name = "{}"
        certify = ["perplexity"]
        text = "english"
        window = 64
        windows = 2
        push = "hf:me/tiny"
        "#,
        copy(&dir, &hub)
    );
    let output = batch(&hub, &list);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 of 2 models failed"));
    // A model that does not pass the smoke test is not published.
    assert_eq!(
        statuses(&output),
        [
            vec!["pull done", "smoke failed", "push skipped"],
            vec!["pull there", "smoke done", "certify done", "push done"],
        ]
    );
    let state = hub.standin.state.lock().unwrap();
    assert!(state.repositories.contains_key("me/tiny") && !state.repositories.contains_key("me/mute"));
    let page = String::from_utf8(state.repositories["me/tiny"]["README.md"].clone()).unwrap();
    assert!(page.contains("squish-tiny-sqint2"), "its own page");
    drop(state);
    // Again: nothing of what is done is done again.
    assert_eq!(
        statuses(&batch(&hub, &list))[1],
        vec!["pull there", "smoke done", "certify there", "push there"]
    );
    // What the certificate states of two windows says nothing of all of them; more than there are is all of them.
    for (windows, certify) in [("", "certify done"), ("windows = 10000", "certify there")] {
        let list = list.replace("windows = 2", windows);
        assert_eq!(statuses(&batch(&hub, &list))[1][2], certify);
    }
}

/// The bundled model, copied to where it may be certified.
fn copy(dir: &std::path::Path, hub: &WithHub) -> String {
    fs::create_dir(hub.path("tiny")).unwrap();
    for (name, bytes) in read_dir(dir) {
        fs::write(hub.path("tiny").join(name), bytes).unwrap();
    }
    "tiny".into()
}

#[test]
fn a_wrong_list_is_refused_before_anything_is_fetched() {
    let hub = hub();
    for (list, expected) in [
        ("models = []", "no models"),
        ("[[models]]\nnme = 'x'", "nme"),
        ("[[models]]\nname = 'x'\nrecipe = 'nonesuch'", "nonesuch"),
        ("[[models]]\nname = 'x'\npush = 'me'", "hf:organisation/name"),
        ("[[models]]\nname = 'x'\ncertify = ['kl']", "needs `text`"),
        ("[[models]]\nname = 'x'\ncertify = ['piqa']", "piqa"),
        ("[[models]]\nname = 'x'\ncertify = ['kl']\ntext = 'absent'", "absent"),
        ("[[models]]\nname = 'x'\ntokens = 0", "too small"),
    ] {
        assert_refusal(&batch(&hub, list), &[expected]);
    }
    assert_refusal(&hub.call(&["batch", "absent.toml"]), &["absent.toml"]);
    assert!(hub.standin.log.lock().unwrap().is_empty());
}

#[test]
fn a_name_that_nobody_knows_fails_alone() {
    let hub = hub();
    let output = batch(&hub, "[[models]]\nname = 'nonesuch'\n[[models]]\nname = 'ollama:x'");
    assert_eq!(
        statuses(&output),
        [vec!["pull failed", "smoke skipped"], vec!["pull failed", "smoke skipped"]]
    );
}
