//! What the commands print for a person.

use squish_models::checkpoint::{Calibration, Certificate, Measurement, Source};
use squish_quant::{
    Inspection, Perplexity, Recipe, Report, Result,
    inspect::{TensorInspection, bits},
};
use std::{collections::BTreeMap, fmt::Write, path::Path};

/// Every tensor, then a line per scheme, then the whole.
pub fn inspection(inspection: &Inspection) -> String {
    let mut out = String::new();
    let width = inspection.tensors.iter().map(|t| t.name.len()).max().unwrap_or(6).max(6);
    let _ =
        writeln!(out, "{:width$}  {:6}  {:>14}  {:>7}  {:>7}", "tensor", "scheme", "shape", "bits", "SNR dB");
    for tensor in &inspection.tensors {
        let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
        let snr = tensor.snr_db.map(|snr| format!("{snr:.2}")).unwrap_or_default();
        let line = format!(
            "{:width$}  {:6}  {shape:>14}  {:7.3}  {snr:>7}{}",
            tensor.name,
            tensor.scheme,
            tensor.bits_per_weight,
            corrections(tensor)
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out.push('\n');
    out += &summary(inspection);
    out + &inspection.certificate.as_ref().map(certificate).unwrap_or_default()
}

fn corrections(tensor: &TensorInspection) -> String {
    let low_rank = tensor.low_rank.as_ref().map(|l| format!("  rank {} {:+.2} dB", l.rank, l.gain_db));
    let sparse = tensor.sparse.map(|s| format!("  {} sparse {:+.2} dB", s.entries, s.gain_db));
    low_rank.into_iter().chain(sparse).collect()
}

/// A line per scheme, then the whole.
fn summary(inspection: &Inspection) -> String {
    let mut by_scheme: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    for tensor in &inspection.tensors {
        let sum = by_scheme.entry(&tensor.scheme).or_default();
        *sum = (sum.0 + 1, sum.1 + tensor.weights(), sum.2 + tensor.bytes);
    }
    let mut out =
        format!("{:6}  {:>7}  {:>13}  {:>13}  {:>7}\n", "scheme", "tensors", "parameters", "bytes", "bits");
    for (scheme, (tensors, weights, bytes)) in by_scheme {
        let bits = bits(bytes, weights);
        let _ = writeln!(out, "{scheme:6}  {tensors:>7}  {weights:>13}  {bytes:>13}  {bits:7.3}");
    }
    let recipe = inspection.recipe.as_ref().map(|r| format!(", recipe {r}")).unwrap_or_default();
    let _ = writeln!(
        out,
        "\n{}{recipe}: {} parameters in {} bytes of weights files, {:.3} bits per parameter, everything counted",
        inspection.architecture, inspection.parameters, inspection.file_bytes, inspection.bits_per_parameter
    );
    out
}

/// What the checkpoint says was measured of it.
fn certificate(certificate: &Certificate) -> String {
    let mut out = format!(
        "\ncertificate: {} parameters in {} bytes, {:.3} bits per parameter\n",
        certificate.parameters, certificate.file_bytes, certificate.bits_per_parameter
    );
    // Text from a file must not paint over the terminal.
    let plain = |text: &str| text.replace(char::is_control, "\u{fffd}");
    let named = |source: &Source| format!("{} (SHA-256 {})", plain(&source.name), plain(&source.sha256));
    if let Some(original) = &certificate.original {
        let _ = writeln!(out, "  made from {}", named(original));
    }
    if let Some(command) = &certificate.command {
        let _ = writeln!(out, "  by {}", plain(command));
    }
    if let Some(Calibration { source, windows, window }) = &certificate.calibration {
        let _ = writeln!(out, "  calibrated on {}, {windows} windows of {window} tokens", named(source));
    }
    for Measurement { what, data, against, values, tool, .. } in &certificate.measurements {
        let against = against.iter().map(|original| format!(" against {}", named(original)));
        let (what, tool) = (plain(what), plain(tool));
        let _ = writeln!(out, "  {what} on {}{}, by {tool}", named(data), against.collect::<String>());
        let values = values.iter().map(|(name, value)| match value.as_f64() {
            Some(v) if value.is_f64() => format!("{} {v:.4}", plain(name)),
            _ => format!("{} {value}", plain(name)),
        });
        let _ = writeln!(out, "    {}", values.collect::<Vec<_>>().join(", "));
    }
    out
}

/// What came of a compression.
pub fn compression(report: &Report, out: &Path) -> String {
    let mut text = summary(&report.inspection);
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    if let Some(memory) = report.memory {
        let megabytes = |bytes: usize| bytes.div_ceil(1_000_000);
        let _ = writeln!(
            text,
            "runs in {} MB at {} positions: weights {}, keys and values {} (as {}), working memory {}",
            megabytes(memory.total()),
            memory.context,
            megabytes(memory.weights_bytes),
            megabytes(memory.kv_cache_bytes),
            memory.kv,
            megabytes(memory.working_bytes),
        );
    }
    let peak = squish_quant::peak_memory().map(|b| format!(", peak memory {} MB", b / 1_000_000));
    let _ = writeln!(text, "wrote {} in {:.1} s{}", out.display(), report.seconds, peak.unwrap_or_default());
    text
}

/// Nats per token.
pub fn perplexity(measured: &Perplexity) -> String {
    format!(
        "{:.4} nats per token, perplexity {:.2}, over {} tokens in {} windows of {} ({:.1} s)\n",
        measured.nll,
        measured.perplexity,
        measured.tokens,
        measured.windows,
        measured.window,
        measured.seconds
    )
}

/// The built-in recipes.
pub fn recipes() -> Result<String> {
    Recipe::names().map(|name| Ok(format!("{name:13}{}\n", Recipe::load(name)?.description))).collect()
}
