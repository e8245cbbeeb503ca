//! The bundled model: it talks without anything else on the machine, and it is what the tool makes.

use squish::{Message, Pipeline};
use squish_quant::{
    certificate::{hash_checkpoint, hash_file},
    inspect,
};
use std::{fs, path::Path};

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/squish-tiny-sqint2");

#[test]
fn answers_the_same_for_the_same_seed() {
    let pipeline = Pipeline::from_dir(BUNDLED).unwrap();
    let options = pipeline.options().clone().max_tokens(24).seed(5);
    let pipeline = pipeline.with_options(options);
    let question = [Message::user("Tell me about the sea.")];
    let answer = pipeline.chat(&question).unwrap();
    assert!(answer.text.split_whitespace().count() > 3, "{:?}", answer.text);
    assert!(!answer.text.contains("<|"), "{:?}", answer.text);
    assert_eq!(answer.text, pipeline.chat(&question).unwrap().text);
    // Streaming gives the same text in more than one piece.
    let pieces: Vec<String> = pipeline.chat_stream(&question).unwrap().map(Result::unwrap).collect();
    assert!(pieces.len() > 1);
    assert_eq!(pieces.concat(), answer.text);
}

#[test]
fn its_readme_states_its_true_size() {
    let readme = fs::read_to_string(Path::new(BUNDLED).join("README.md")).unwrap();
    let inspection = inspect(Path::new(BUNDLED)).unwrap();
    let bytes = inspection.file_bytes.to_string();
    let grouped = format!("{},{},{} bytes", &bytes[..2], &bytes[2..5], &bytes[5..]);
    assert!(readme.contains(&grouped), "README.md does not say {grouped}");
    let bits = format!("{:.3}", inspection.bits_per_parameter);
    assert!(readme.contains(&bits), "README.md does not say {bits}");
    assert_eq!(inspection.recipe.as_deref(), Some("sqint2"));
}

/// Calibration sums activations in f32, in an order that the processor's instructions decide: another machine may
/// make other bytes. What it was made from is certain.
#[test]
fn its_certificate_names_what_it_was_made_from() {
    let testbed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/testbed");
    let certificate = inspect(Path::new(BUNDLED)).unwrap().certificate.expect("a certificate");
    let calibration = certificate.calibration.expect("a calibration");
    assert_eq!((calibration.windows, calibration.window), (128, 512));
    let kl =
        certificate.measurements.iter().find(|m| m.what == "kl").expect("a divergence from the original");
    let readme = fs::read_to_string(Path::new(BUNDLED).join("README.md")).unwrap();
    let mean = format!("{:.4}", kl.values["kl_mean"].as_f64().unwrap());
    assert!(readme.contains(&mean), "README.md does not say {mean}");
    if !testbed.exists() {
        eprintln!("skipped: {} is absent", testbed.display());
        return;
    }
    let original = squish_models::Checkpoint::open(testbed.join("qwen2.5-tiny")).unwrap();
    assert_eq!(certificate.original, Some(hash_checkpoint(&original).unwrap()));
    assert_eq!(calibration.source, hash_file(&testbed.join("calibration.txt")).unwrap());
}
