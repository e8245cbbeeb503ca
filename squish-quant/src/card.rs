//! The page that a published checkpoint introduces itself with: what its files say of themselves, and nothing else.

use crate::{Inspection, Origin, Result, inspect, inspect::bits};
use squish_models::checkpoint::{Certificate, Measurement, Source};
use std::{collections::BTreeMap, fmt::Write, path::Path};

/// What a card states that is in no file.
#[derive(Debug, Clone, Default)]
pub struct Facts<'a> {
    /// The repository that the card is for, `organisation/name`.
    pub repository: &'a str,
    /// The original's licence, as the hub names it.
    pub licence: Option<&'a str>,
}

/// The card of the checkpoint in a directory, in Markdown with the header that hubs read.
///
/// # Errors
/// As [`inspect()`].
pub fn card(dir: &Path, facts: &Facts) -> Result<String> {
    let (inspection, origin) = (inspect(dir)?, Origin::of(dir));
    Ok(write(&inspection, origin.as_ref(), facts))
}

fn write(inspection: &Inspection, origin: Option<&Origin>, facts: &Facts) -> String {
    let mut out = String::from("---\nlibrary_name: squish\npipeline_tag: text-generation\n");
    if let Some(licence) = facts.licence {
        let _ = writeln!(out, "license: {}", plain(licence));
    }
    if let Some(origin) = origin {
        let _ = writeln!(out, "base_model: {}\nbase_model_relation: quantized", plain(&origin.repository));
    }
    out += "tags:\n- squish\n- quantized\n---\n\n";
    let name = facts.repository.rsplit('/').next().unwrap_or_default();
    let _ = writeln!(out, "# {name}\n");
    let recipe = inspection.recipe.as_deref().unwrap_or("of its own");
    let from = match origin {
        Some(origin) => format!("{} at commit `{}`", plain(&origin.repository), plain(&origin.commit)),
        None => "an original".into(),
    };
    let _ = writeln!(
        out,
        "Made from {from} by the recipe `{}`: {} parameters in {} bytes of weights files, **{:.3} bits per parameter**, everything counted.\n",
        plain(recipe),
        inspection.parameters,
        inspection.file_bytes,
        inspection.bits_per_parameter
    );
    let _ = writeln!(
        out,
        "    squish-quant pull hf:{0}\n    cargo run --release --example chat -- --model hf:{0}\n",
        facts.repository
    );
    schemes(&mut out, inspection);
    if let Some(certificate) = &inspection.certificate {
        certified(&mut out, certificate);
    }
    if let Some(tool) = &inspection.tool {
        let _ = writeln!(out, "Written by {}. `squish-quant inspect` prints every tensor.", plain(tool));
    }
    out
}

/// A line for every scheme.
fn schemes(out: &mut String, inspection: &Inspection) {
    let mut by_scheme: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    for tensor in &inspection.tensors {
        let sum = by_scheme.entry(&tensor.scheme).or_default();
        *sum = (sum.0 + 1, sum.1 + tensor.weights(), sum.2 + tensor.bytes);
    }
    *out += "| scheme | tensors | parameters | bytes | bits |\n| --- | --- | --- | --- | --- |\n";
    for (scheme, (tensors, weights, bytes)) in by_scheme {
        let _ =
            writeln!(out, "| `{scheme}` | {tensors} | {weights} | {bytes} | {:.3} |", bits(bytes, weights));
    }
    out.push('\n');
}

/// What was measured.
fn certified(out: &mut String, certificate: &Certificate) {
    let named = |source: &Source| format!("{} (SHA-256 `{}`)", plain(&source.name), plain(&source.sha256));
    if let Some(calibration) = &certificate.calibration {
        let text = match calibration.source.name.as_str() {
            "self" => "text that the model wrote".into(),
            _ => named(&calibration.source),
        };
        let _ = writeln!(
            out,
            "Calibrated on {} windows of {} tokens of {text}.\n",
            calibration.windows, calibration.window
        );
    }
    if !certificate.measurements.is_empty() {
        *out += "## Measured\n\n";
    }
    for Measurement { what, data, values, .. } in &certificate.measurements {
        let _ = writeln!(out, "`{}` on {}:\n\n| | |\n| --- | --- |", plain(what), named(data));
        for (name, value) in values {
            let _ = writeln!(out, "| {} | {value} |", plain(name));
        }
        out.push('\n');
    }
    if let Some(original) = &certificate.original {
        let _ = writeln!(out, "The original's files: {}.\n", named(original));
    }
}

/// Text from a file, without what could be more than text on a page.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || "<>|`[]&\\".contains(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bundled model's certificate holds a calibration and a measurement.
    #[test]
    fn says_what_the_files_say() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/squish-tiny-sqint2");
        let card = card(&dir, &Facts { repository: "someone/tiny", licence: Some("mit") }).unwrap();
        let inspection = inspect(&dir).unwrap();
        for part in [
            "license: mit\n",
            "# tiny\n",
            "recipe `sqint2`",
            &format!("{} bytes of weights files", inspection.file_bytes),
            &format!("**{:.3} bits per parameter**", inspection.bits_per_parameter),
            "| `tcq2` |",
            "| kl_mean |",
            "windows of 512 tokens",
            "hf:someone/tiny",
        ] {
            assert!(card.contains(part), "no {part:?} in\n{card}");
        }
        assert!(!card.contains("base_model"), "nothing says where it is from");
    }

    #[test]
    fn texts_from_files_stay_texts() {
        assert_eq!(plain("a|b\n<c>"), "a\u{fffd}b\u{fffd}\u{fffd}c\u{fffd}");
    }
}
