//! The bundled model: it talks without anything else on the machine, and it is what the tool makes.

use squish::{Message, Pipeline};
use squish_quant::{Options, Recipe, Silent, compress, inspect};
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

#[test]
fn the_tool_makes_it_byte_for_byte() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/testbed/qwen2.5-tiny");
    if !source.exists() {
        eprintln!("skipped: {} is absent", source.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("made");
    compress(&source, &out, &Options::new(Recipe::load("sqint2").unwrap()), &Silent).unwrap();
    for entry in fs::read_dir(&out).unwrap() {
        let name = entry.unwrap().file_name();
        let (made, bundled) =
            (fs::read(out.join(&name)).unwrap(), fs::read(Path::new(BUNDLED).join(&name)).unwrap());
        assert!(made == bundled, "{name:?} differs from the bundled file: was the bundled model remade?");
    }
}
