//! `squish-quant scan` as a script calls it.

use std::process::Command;

#[test]
fn exit_codes() {
    let scan = |path: &std::path::Path| {
        Command::new(env!("CARGO_BIN_EXE_squish-quant")).args(["scan", "--json"]).arg(path).output().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert_eq!(scan(dir.path()).status.code(), Some(0));
    std::fs::write(dir.path().join("model.bin"), b"\x80\x02cposix\nsystem\n.").unwrap();
    let output = scan(dir.path());
    assert_eq!(output.status.code(), Some(2));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["safe"], false);
    assert_eq!(json["findings"][0]["globals"][0], "posix.system");
    let missing = scan(&dir.path().join("missing"));
    assert_eq!(missing.status.code(), Some(1));
    assert!(missing.stdout.is_empty());
}
