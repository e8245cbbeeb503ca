//! `squish-quant push`, to a stand-in hub.

#[path = "support/from_hub.rs"]
mod from_hub;
mod support;

use from_hub::*;
use std::fs;
use support::*;

fn hub() -> WithHub {
    let hub = WithHub {
        sandbox: Sandbox::new(&Source::new(&Spec { shards: 2, ..Spec::default() })),
        standin: standin::Standin::with(&[]),
    };
    hub.sandbox.succeeds(&[
        "compress",
        "source",
        "--out",
        "out",
        "--recipe",
        "int4",
        "--max-shard-bytes",
        "60000",
    ]);
    hub
}

fn push(hub: &WithHub, args: &[&str]) -> std::process::Output {
    let args = [&["push", "out", "hf:someone/tiny-int4"], args].concat();
    hub.command(&args).env("HF_TOKEN", "secret").output().unwrap()
}

#[test]
fn a_checkpoint_is_published_once_and_can_be_pulled() {
    let hub = hub();
    let said = json(push(&hub, &["--json", "--licence", "mit"]));
    assert_eq!((said["created"].as_bool(), said["commit"].is_string()), (Some(true), true));
    let there = hub.standin.state.lock().unwrap().repositories["someone/tiny-int4"].clone();
    let here = read_dir(&hub.path("out"));
    assert_eq!(there.len(), here.len() + 1);
    assert!(here.iter().all(|(name, bytes)| there[name] == *bytes));
    let page = String::from_utf8(there["README.md"].clone()).unwrap();
    assert!(page.contains("license: mit") && page.contains("recipe `int4`"), "{page}");
    assert!(!hub.path("out/README.md").exists());

    let again = json(push(&hub, &["--json", "--licence", "mit"]));
    assert!(again["commit"].is_null() && again["sent"].as_array().unwrap().is_empty(), "{again}");

    let pulled = hub.json(&["pull", "hf:someone/tiny-int4"]);
    assert_eq!(pulled["how"], "original");
    let dir = std::path::PathBuf::from(pulled["dir"].as_str().unwrap());
    assert!(here.iter().all(|(name, bytes)| fs::read(dir.join(name)).unwrap() == *bytes));
    // What is squished already is not squished again.
    assert_refusal(&hub.call(&["pull", "hf:someone/tiny-int4", "--recipe", "int3"]), &["already squished"]);
}

#[test]
fn a_dry_run_says_what_it_would_do() {
    let hub = hub();
    fs::write(hub.path("out/README.md"), "# my own page\n").unwrap();
    let said = String::from_utf8(push(&hub, &["--dry-run"]).stdout).unwrap();
    for part in ["would send   config.json", "would be created", "# my own page"] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    assert!(hub.standin.state.lock().unwrap().repositories.is_empty());
}

#[test]
fn what_cannot_be_published() {
    let hub = hub();
    assert_refusal(&hub.call(&["push", "out", "hf:someone/tiny"]), &["set HF_TOKEN"]);
    assert_refusal(&hub.call(&["push", "source", "hf:someone/tiny"]), &["not a squished checkpoint"]);
    for address in ["someone/tiny", "hf:someone", "hf:someone/tiny@main"] {
        assert_refusal(&hub.call(&["push", "out", address]), &[address, "hf:organisation/name"]);
    }
    hub.standin.faults.lock().unwrap().uploads.statuses = vec![("/commit/", 403)];
    assert_refusal(&push(&hub, &[]), &["no write access"]);
    fs::write(hub.path("out/more.bin"), b"\x80\x02cposix\nsystem\n.").unwrap();
    let output = push(&hub, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("more.bin"));
}
