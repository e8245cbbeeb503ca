//! Nats per token of the testbed's model, original and squished, as README.md states them.

use squish_quant::{Options, Recipe, Silent, Windows, compress, eval::Conditions, perplexity};
use std::path::{Path, PathBuf};

/// The testbed's own value for the original, by transformers.
const GOLDEN: f64 = 3.764364;

fn testbed(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/testbed").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn nll(dir: &Path, text: &Path) -> f64 {
    let measured =
        perplexity(dir, text, Windows { size: 1024, count: Some(16) }, Conditions::default(), &Silent)
            .unwrap();
    assert_eq!((measured.tokens, measured.windows), (16 * 1023, 16));
    println!("{}: {:.4} nats per token", dir.display(), measured.nll);
    measured.nll
}

#[test]
fn the_originals_equal_transformers() {
    for (name, golden) in [("qwen2.5-tiny", GOLDEN), ("qwen3-tiny", 4.123800), ("gemma3-tiny", 3.873422)] {
        let (Some(model), Some(text)) = (testbed(name), testbed("wiki.test.raw")) else { return };
        let found = nll(&model, &text);
        assert!((found - golden).abs() <= 0.002, "{name}: {found}");
    }
}

#[test]
fn int4_loses_less_than_0_03_nats() {
    let (Some(model), Some(text)) = (testbed("qwen2.5-tiny"), testbed("wiki.test.raw")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int4");
    compress(&model, &out, &Options::new(Recipe::load("int4").unwrap()), &Silent).unwrap();
    let found = nll(&out, &text);
    assert!(found - GOLDEN <= 0.03, "{found}");
}

/// The number beside it, reported as it is.
#[test]
fn the_bundled_model_loses_what_its_readme_says() {
    let Some(text) = testbed("wiki.test.raw") else { return };
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/squish-tiny-sqint2");
    let found = nll(&bundled, &text);
    let readme = std::fs::read_to_string(bundled.join("README.md")).unwrap();
    assert!(readme.contains(&format!("{found:.4}")), "README.md does not say {found:.4}");
}
