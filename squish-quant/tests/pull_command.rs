//! From a name of the catalog to a squished model, from a stand-in hub.

#[path = "../../squish-hub/tests/standin/mod.rs"]
mod standin;
mod support;

use std::{fs, process::Command};
use support::*;

#[test]
fn a_name_is_pulled_squished_listed_and_removed() {
    let sandbox = Sandbox::new(&Source::tiny());
    let read =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let source: Vec<_> = fs::read_dir(sandbox.path("source")).unwrap().map(|e| read(e.unwrap())).collect();
    let source: Vec<_> = source.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let standin = standin::Standin::new(&source);
    let call = |args: &[&str], offline: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_squish-quant"));
        command.args(args).env("SQUISH_HOME", sandbox.path("home")).env("HF_HOME", sandbox.path("hf"));
        command.env("HF_ENDPOINT", &standin.address).env("HF_HUB_OFFLINE", offline).env_remove("HF_TOKEN");
        command.env("OLLAMA_MODELS", sandbox.path("none")).env_remove("HF_HUB_CACHE");
        command.output().unwrap()
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let name = "qwen2.5:0.5b-int4";

    let offline = call(&["pull", name], "1");
    assert_eq!(offline.status.code(), Some(1));
    assert!(text(offline.stderr).contains("HF_HUB_OFFLINE"));

    let pulled = call(&["pull", name, "--keep-source"], "0");
    assert!(pulled.status.success(), "{}", text(pulled.stderr));
    let dir = text(pulled.stdout);
    assert!(dir.trim_end().ends_with("models/qwen2.5-0.5b-int4"), "{dir}");
    let inspected = text(call(&["inspect", dir.trim_end(), "--json"], "1").stdout);
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["recipe"], "int4");

    // The second time nothing is asked for.
    let asked = standin.log.lock().unwrap().len();
    assert_eq!(text(call(&["pull", name], "0").stdout), dir);
    assert_eq!(standin.log.lock().unwrap().len(), asked);

    let listed = text(call(&["list"], "1").stdout);
    assert!(listed.contains("qwen2.5-0.5b-int4") && listed.contains("qwen2.5-0.5b-bf16"), "{listed}");
    assert!(call(&["rm", name], "1").status.success());
    assert!(!text(call(&["list"], "1").stdout).contains("qwen2.5-0.5b-int4"));
    assert_eq!(call(&["rm", name], "1").status.code(), Some(1));
}

#[test]
fn a_repository_of_pickles_is_refused_with_exit_code_2() {
    let sandbox = Sandbox::new(&Source::tiny());
    let pickle = b"\x80\x02cposix\nsystem\n.".to_vec();
    let standin = standin::Standin::new(&[("config.json", b"{}".to_vec()), ("pytorch_model.bin", pickle)]);
    for subcommand in ["pull", "scan"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_squish-quant"));
        command.env("SQUISH_HOME", sandbox.path("home")).env("HF_HOME", sandbox.path("hf"));
        command.env("HF_ENDPOINT", &standin.address).env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE");
        let output =
            command.env_remove("HF_HUB_CACHE").args([subcommand, "hf:someone/model"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stderr).unwrap().contains("pytorch_model.bin"));
    }
}

/// A model of Ollama's store with a pickle for a tokenizer.
#[test]
fn what_is_not_safe_in_another_store_ends_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let blob = |at: u8, bytes: &[u8]| {
        let digest = format!("{at:064x}");
        fs::create_dir_all(dir.path().join("blobs")).unwrap();
        fs::write(dir.path().join(format!("blobs/sha256-{digest}")), bytes).unwrap();
        format!("sha256:{digest}")
    };
    let header = r#"{"w":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]}}"#;
    let tensor = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let layer = |kind: &str, name: &str, digest| serde_json::json!({"mediaType": format!("application/vnd.ollama.image.{kind}"), "name": name, "digest": digest});
    let layers = [
        layer("json", "config.json", blob(0, b"{}")),
        layer("json", "tokenizer.json", blob(1, b"\x80\x04cposix\nsystem\n.")),
        layer("tensor", "w", blob(2, &tensor)),
    ];
    let manifests = dir.path().join("manifests/registry.ollama.ai/library/evil");
    fs::create_dir_all(&manifests).unwrap();
    fs::write(manifests.join("latest"), serde_json::json!({ "layers": layers }).to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_squish-quant"));
    command.env("SQUISH_HOME", dir.path().join("home")).env("OLLAMA_MODELS", dir.path());
    let output = command.args(["pull", "ollama:evil"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_catalog_is_shown_with_its_guards() {
    let show =
        |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_squish-quant")).args(args).output().unwrap().stdout;
    let json: serde_json::Value = serde_json::from_slice(&show(&["show", "gemma3:1b", "--json"])).unwrap();
    assert_eq!(json["variants"].as_array().unwrap().len(), 4);
    assert_eq!(json["guards"].as_array().unwrap().len(), 1);
    let guarded = String::from_utf8(show(&["show", "qwen3-4b"])).unwrap();
    assert!(guarded.contains("int3, nf2, tcq2 without calibration is refused"), "{guarded}");
    let list = String::from_utf8(show(&["list", "--remote"])).unwrap();
    assert!(list.lines().count() > 30, "{list}");
}

#[test]
fn doctor() {
    let sandbox = Sandbox::new(&Source::tiny());
    let run = |isa: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_squish-quant"));
        command.env("SQUISH_HOME", sandbox.path("home")).env("HF_HUB_OFFLINE", "1").env("SQUISH_ISA", isa);
        command.args(["doctor", "--json"]).output().unwrap()
    };
    let output = run("scalar");
    assert!(output.status.success());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((json["isa"].as_str(), json["hub"]["offline"].as_bool()), (Some("scalar"), Some(true)));
    assert!(json["hub"]["error"].is_string() && json["disk_free_bytes"].is_number());
    assert_eq!(run("mmx").status.code(), Some(1));
}
