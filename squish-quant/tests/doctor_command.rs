//! `squish-quant doctor` as a script calls it.

#[path = "support/home.rs"]
mod home;

use home::at_home;
use std::process::Output;

fn doctor(home: &std::path::Path, set: &[(&str, &str)]) -> Output {
    let mut command = at_home(home, &["doctor", "--json"]);
    command.env_remove("SQUISH_ISA").envs(set.iter().copied()).output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn it_reports_the_machine_the_models_and_what_runs() {
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("models/some-model");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    let blobs = home.path().join("hub/models--org--name/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join("0"), [0; 1000]).unwrap();

    let output = doctor(home.path(), &[]);
    let found = json(&output);
    assert_eq!(output.status.code(), Some(0), "{found}");
    assert_eq!(found["problems"], serde_json::json!([]));
    assert!(found["isas"].as_array().unwrap().contains(&found["isa"]), "{found}");
    assert_eq!(found["models"], serde_json::json!([{ "name": "some-model", "bytes": 2 }]));
    assert_eq!(found["cache"]["repositories"], serde_json::json!([{ "name": "org/name", "bytes": 1000 }]));
    // Offline: reported, and no failure.
    assert_eq!(found["hub"]["offline"], true);
    assert!(found["hub"]["error"].is_string());
    if let Some(available) = found["memory_available_bytes"].as_u64() {
        for runs in found["runs"].as_array().unwrap() {
            assert!(runs["bytes"].as_u64() < runs["memory_bytes"].as_u64(), "{runs}");
            assert!(runs["memory_bytes"].as_u64().unwrap() <= available, "{runs}");
        }
    }
}

#[test]
fn what_keeps_models_from_running_is_exit_code_1() {
    let home = tempfile::tempdir().unwrap();
    let output = doctor(home.path(), &[("SQUISH_ISA", "z80")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(json(&output)["problems"][0].as_str().unwrap().contains("z80"));
    // A file where the home would be: nothing can be written below it.
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = doctor(&file, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(json(&output)["problems"][0].as_str().unwrap().contains("written"));
}
