//! The scanner against generated files; the outcome is the table of docs/security.md.

mod samples;

use samples::{Sample, benign_samples, unsafe_samples};
use squish_hub::scan::{pickle::Pickle, scan_bytes, scan_path};
use std::{fmt::Write, path::Path};

fn row(table: &mut String, sample: &Sample) -> bool {
    let contents = scan_bytes(&sample.name, &sample.bytes);
    let verdict = match contents.findings.first() {
        Some(finding) => format!("refused: {}", finding.detail),
        None => format!("passes as {:?}", contents.role).to_lowercase(),
    };
    let _ = writeln!(table, "| {} | `{}` | {} |", sample.what, sample.name, verdict);
    contents.findings.is_empty()
}

#[test]
fn every_dangerous_sample_is_refused_and_every_control_passes() {
    let mut table = String::from("| sample | named | outcome |\n| --- | --- | --- |\n");
    let (bad, good) = (unsafe_samples(), benign_samples());
    let missed: Vec<_> = bad.iter().filter(|s| row(&mut table, s)).map(|s| (&s.what, &s.name)).collect();
    let alarms: Vec<_> = good.iter().filter(|s| !row(&mut table, s)).map(|s| (&s.what, &s.name)).collect();
    assert!(bad.len() >= 60, "{}", bad.len());
    assert!(missed.is_empty() && alarms.is_empty(), "missed {missed:#?}\nfalse alarms {alarms:#?}");

    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let text = std::fs::read_to_string(&docs).unwrap();
    let (before, after) = text.split_once("<!-- samples -->\n").unwrap();
    let (_, after) = after.split_once("<!-- end of samples -->").unwrap();
    let counted = format!("{} dangerous, {} harmless.\n\n", bad.len(), good.len());
    let wanted = format!("{before}<!-- samples -->\n{counted}{table}<!-- end of samples -->{after}");
    if std::env::var_os("SQUISH_BLESS").is_some() {
        std::fs::write(&docs, &wanted).unwrap();
    } else {
        assert!(text == wanted, "docs/security.md: set SQUISH_BLESS=1 to write the table anew");
    }
}

#[test]
fn globals_are_named() {
    for protocol in 0..=5 {
        let pickle = Pickle::read(&samples::pickle(protocol, "posix", "system"));
        assert_eq!(pickle.globals, ["posix.system"], "protocol {protocol}");
        assert!(pickle.complete && pickle.calls, "protocol {protocol}");
    }
}

#[test]
fn a_directory_is_reported_file_by_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("original")).unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("model.safetensors"), samples::safetensors(&vec![0; 4 << 20])).unwrap();
    assert!(scan_path(dir.path()).unwrap().is_safe());
    // The end of a long file is looked at, too.
    let zipped = samples::zip(&[("a.pkl", b"\x80\x02N.")], false, false);
    let long = [vec![0; 4 << 20], zipped].concat();
    std::fs::write(dir.path().join("original/model.safetensors"), samples::safetensors(&long)).unwrap();
    let report = scan_path(dir.path()).unwrap();
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert_eq!(report.findings[0].file, "original/model.safetensors");
}

#[test]
fn the_bundled_model_is_safe() {
    let report = scan_path(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets")).unwrap();
    assert!(report.is_safe(), "{report:?}");
}

proptest::proptest! {
    /// Whatever the bytes and the name: an answer, not a panic.
    #[test]
    fn any_bytes(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600),
        magic in 0usize..12,
        name in 0usize..8,
    ) {
        let magics: [&[u8]; 12] = [
            b"", b"\x80\x04", b"PK\x03\x04", b"\x93NUMPY\x01\0", b"\x1f\x8b\x08\0", b"\x78\x9c",
            b"c\n", b"(", b"\x10\0\0\0\0\0\0\0{", b"{", b"PK\x05\x06", b"\x89HDF\r\n\x1a\n",
        ];
        let names = ["a.safetensors", "a.json", "a.txt", "a.bin", "a", "a.gz", "a.npz", "a.keras"];
        let _ = scan_bytes(names[name], &[magics[magic], &bytes[..]].concat());
    }

    /// Damaged samples: an answer, not a panic.
    #[test]
    fn damaged_samples(which in 0usize..100, at in 0usize..10_000, to in 0u8..=255, cut in 0usize..10_000) {
        let samples = unsafe_samples();
        let sample = &samples[which % samples.len()];
        let mut bytes = sample.bytes.clone();
        if !bytes.is_empty() {
            let length = bytes.len();
            bytes[at % length] = to;
            bytes.truncate(length - cut % length / 4);
        }
        let _ = scan_bytes(&sample.name, &bytes);
    }
}
