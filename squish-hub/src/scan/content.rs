//! A file's bytes against its name.

use super::{Danger, Finding, Role, extension, pickle::Pickle, printable, zip::Archive};
use std::io::Read;

/// Archives within archives that are followed.
const MOST_NESTED: usize = 4;
/// Levels of a JSON file.
pub const MOST_JSON_DEPTH: usize = 64;
/// Bytes of a JSON file; the longest tokenizers have some tens of megabytes.
pub const MOST_JSON_BYTES: usize = 256 << 20;
/// Bytes of a safetensors header, as the safetensors library bounds it.
pub const MOST_HEADER_BYTES: usize = 100_000_000;

/// What a file turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// What the loader would take it for.
    pub role: Role,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

/// Looks at a file's bytes. `name` is its path in the repository, `/` between folders.
pub fn scan_bytes(name: &str, bytes: &[u8]) -> Contents {
    let mut findings = Vec::new();
    let role = look(name, name, bytes, 0, &mut findings);
    Contents { role, findings }
}

fn add(findings: &mut Vec<Finding>, file: &str, danger: Danger, detail: impl Into<String>) {
    findings.push(Finding { file: printable(file), danger, detail: detail.into(), globals: Vec::new() });
}

/// The kinds that are known by their first bytes and are no business of a model's loader.
fn magic(bytes: &[u8]) -> Option<(&'static str, Option<Danger>)> {
    let known: &[(&[u8], &str, Option<Danger>)] = &[
        (b"\x7fELF", "an ELF program", Some(Danger::Executable)),
        (b"MZ", "a Windows program", Some(Danger::Executable)),
        (b"\xcf\xfa\xed\xfe", "a Mach-O program", Some(Danger::Executable)),
        (b"\xce\xfa\xed\xfe", "a Mach-O program", Some(Danger::Executable)),
        (b"\xca\xfe\xba\xbe", "Java or Mach-O code", Some(Danger::Executable)),
        (b"BZh", "bzip2", Some(Danger::Opaque)),
        (b"\xfd7zXZ\0", "xz", Some(Danger::Opaque)),
        (b"\x28\xb5\x2f\xfd", "zstandard", Some(Danger::Opaque)),
        (b"\x04\x22\x4d\x18", "lz4", Some(Danger::Opaque)),
        (b"7z\xbc\xaf\x27\x1c", "7-zip", Some(Danger::Opaque)),
        (b"Rar!", "rar", Some(Danger::Opaque)),
        (b"GGUF", "GGUF", None),
        (b"\x89PNG\r\n\x1a\n", "PNG", None),
        (b"\xff\xd8\xff", "JPEG", None),
        (b"GIF8", "GIF", None),
        (b"RIFF", "RIFF", None),
        (b"%PDF", "PDF", None),
        (b"PAR1", "Parquet", None),
        (b"OggS", "Ogg", None),
        (b"fLaC", "FLAC", None),
    ];
    known.iter().find(|(m, _, _)| bytes.starts_with(m)).map(|(_, what, danger)| (*what, *danger))
}

fn look(name: &str, shown: &str, bytes: &[u8], depth: usize, findings: &mut Vec<Finding>) -> Role {
    let extension = extension(name);
    let before = findings.len();
    let named = super::PICKLED.contains(&extension.as_str())
        || extension == "data"
        || extension.is_empty() && depth > 0;
    let expected = match extension.as_str() {
        "safetensors" => Some(Role::Safetensors),
        "json" => Some(Role::Json),
        "txt" | "md" | "jinja" | "gitattributes" | "gitignore" | "yaml" | "yml" | "toml" | "py" | "cff"
        | "jsonl" => Some(Role::Text),
        _ => None,
    };
    if let Some(archive) = Archive::open(bytes) {
        members(name, shown, &archive, depth, findings);
        // An archive begins with an opcode, too.
        if findings.len() == before
            && let Some(pickle) = Pickle::detect(bytes, named).filter(|pickle| !pickle.globals.is_empty())
        {
            add_pickle(findings, shown, pickle);
        }
        if expected.is_some() && findings.len() == before {
            add(findings, shown, Danger::Mismatch, "holds a zip archive, which its name does not say");
        }
        return expected.unwrap_or(Role::Ignored);
    }
    if expected != Some(Role::Safetensors)
        && let Some(pickle) = Pickle::detect(bytes, named)
    {
        add_pickle(findings, shown, pickle);
        return expected.unwrap_or(Role::Ignored);
    }
    match expected {
        Some(Role::Safetensors) => {
            if let Err((danger, reason)) = safetensors(bytes, bytes.len()) {
                match Pickle::detect(bytes, true) {
                    Some(pickle) => add_pickle(findings, shown, pickle),
                    None => add(findings, shown, danger, format!("not safetensors: {reason}")),
                }
            }
            return Role::Safetensors;
        }
        Some(Role::Json) => {
            if let Err((danger, reason)) = json(bytes) {
                add(findings, shown, danger, format!("not JSON: {reason}"));
            }
            return Role::Json;
        }
        Some(_) => {
            if std::str::from_utf8(bytes).is_err() || bytes.contains(&0) {
                add(findings, shown, Danger::Mismatch, "not text");
            }
            return Role::Text;
        }
        None => {}
    }
    other(name, shown, bytes, &extension, depth, findings);
    Role::Ignored
}

/// Files that nothing here loads: dangerous for others, or ignored.
pub(super) fn other(
    name: &str,
    shown: &str,
    bytes: &[u8],
    extension: &str,
    depth: usize,
    findings: &mut Vec<Finding>,
) {
    if bytes.starts_with(b"\x93NUMPY") {
        let header = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]);
        let descr = header.split("descr").nth(1).unwrap_or_default();
        let descr = descr.split("fortran_order").next().unwrap_or_default();
        if descr.contains('O') || !header.contains("descr") || !header.contains("fortran_order") {
            add(
                findings,
                shown,
                Danger::ObjectArray,
                "a NumPy array of Python objects, or with a damaged header",
            );
        }
    } else if bytes.starts_with(b"\x89HDF\r\n\x1a\n") {
        if contains(bytes, b"\"Lambda\"") {
            add(findings, shown, Danger::Lambda, "a Keras model with a Lambda layer");
        }
    } else if bytes.starts_with(b"\x1f\x8b") {
        inflated(name, shown, flate2::read::MultiGzDecoder::new(bytes), depth, findings);
    } else if matches!(bytes, [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..]) {
        inflated(name, shown, flate2::read::ZlibDecoder::new(bytes), depth, findings);
    } else if bytes.get(257..262) == Some(b"ustar") {
        tar(shown, bytes, depth, findings);
    } else if let Some((what, danger)) = magic(bytes) {
        match danger {
            Some(danger) => add(findings, shown, danger, what),
            None if super::PICKLED.contains(&extension) => {
                add(findings, shown, Danger::Mismatch, format!("holds {what}, which its name does not say"));
            }
            None => {}
        }
    } else if super::PICKLED.contains(&extension) {
        // Padded or damaged: what the usual loaders find behind the padding is searched for.
        let at = bytes.windows(2).position(|w| w[0] == 0x80 && (2..=5).contains(&w[1]));
        match at.and_then(|at| Pickle::detect(&bytes[at..], true)) {
            Some(pickle) if pickle.calls || !pickle.globals.is_empty() => add_pickle(findings, shown, pickle),
            _ => add(
                findings,
                shown,
                Danger::Opaque,
                "a name for pickled data, and contents that are not known",
            ),
        }
    }
}

/// What a pickle is, for a person.
pub(super) fn describe(pickle: &Pickle) -> String {
    match (pickle.globals.is_empty(), pickle.complete) {
        (false, true) => format!("a pickle that imports {}", pickle.globals.join(", ")),
        (false, false) => format!("a damaged pickle that imports {}", pickle.globals.join(", ")),
        (true, true) => "a pickle".into(),
        (true, false) => "a damaged pickle".into(),
    }
}

fn add_pickle(findings: &mut Vec<Finding>, shown: &str, pickle: Pickle) {
    let detail = describe(&pickle);
    findings.push(Finding {
        file: printable(shown),
        danger: Danger::Pickle,
        detail,
        globals: pickle.globals,
    });
}

fn members(name: &str, shown: &str, archive: &Archive, depth: usize, findings: &mut Vec<Finding>) {
    if depth >= MOST_NESTED {
        return add(findings, shown, Danger::Bounds, format!("archives nested deeper than {MOST_NESTED}"));
    }
    if !archive.complete {
        add(findings, shown, Danger::Opaque, "a damaged zip archive");
    }
    let mut budget = super::zip::MOST_INFLATED * 4;
    for member in &archive.members {
        let inner = format!("{shown}!{}", member.name);
        if member.name.ends_with('/') {
            continue;
        }
        let Some(contents) = archive.contents(member) else {
            add(
                findings,
                &inner,
                Danger::Opaque,
                "a zip member that cannot be read: encrypted, damaged or an unknown method",
            );
            continue;
        };
        let Some(left) = budget.checked_sub(contents.len()) else {
            return add(findings, shown, Danger::Bounds, "inflates to more than is looked through");
        };
        budget = left;
        let keras = extension(name) == "keras" && extension(&member.name) == "json";
        if keras && contains(&contents, b"\"Lambda\"") {
            add(findings, &inner, Danger::Lambda, "a Keras model with a Lambda layer");
        }
        // A torch archive's tensor bytes (`archive/data/0`) are data, and may look like anything.
        if !is_tensor_data(&member.name) {
            look(&member.name, &inner, &contents, depth + 1, findings);
        }
        if findings.len() > 64 {
            return;
        }
    }
}

/// `NAME/data/NUMBER`, as torch stores a tensor's bytes.
fn is_tensor_data(name: &str) -> bool {
    let mut parts = name.rsplit('/');
    let number = parts.next().is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    number && parts.next() == Some("data")
}

fn inflated(name: &str, shown: &str, stream: impl Read, depth: usize, findings: &mut Vec<Finding>) {
    if depth >= MOST_NESTED {
        return add(findings, shown, Danger::Bounds, format!("archives nested deeper than {MOST_NESTED}"));
    }
    let mut contents = Vec::new();
    let read = stream.take(super::zip::MOST_INFLATED as u64 + 1).read_to_end(&mut contents);
    if contents.len() > super::zip::MOST_INFLATED {
        return add(findings, shown, Danger::Bounds, "inflates to more than is looked through");
    }
    if read.is_err() {
        add(findings, shown, Danger::Opaque, "damaged compressed data");
    }
    let inner = name.strip_suffix(".gz").unwrap_or(name);
    look(inner, &format!("{shown}!"), &contents, depth + 1, findings);
}

fn tar(shown: &str, bytes: &[u8], depth: usize, findings: &mut Vec<Finding>) {
    if depth >= MOST_NESTED {
        return add(findings, shown, Danger::Bounds, format!("archives nested deeper than {MOST_NESTED}"));
    }
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + 512).filter(|h| h[0] != 0) {
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&header[range]).trim_matches(['\0', ' ']).to_string()
        };
        let (name, size) = (printable(&text(0..100)), usize::from_str_radix(&text(124..136), 8));
        let Ok(size) = size else {
            return add(findings, shown, Danger::Opaque, "a damaged tar archive");
        };
        let end = (at + 512).saturating_add(size);
        let contents = &bytes[at + 512..end.min(bytes.len()).max(at + 512).min(bytes.len())];
        if matches!(header[156], 0 | b'0') {
            look(&name, &format!("{shown}!{name}"), contents, depth + 1, findings);
        }
        if end > bytes.len() {
            return add(findings, shown, Danger::Opaque, "a truncated tar archive");
        }
        at = end.next_multiple_of(512);
        if findings.len() > 64 {
            return;
        }
    }
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle)
}

/// Checks a safetensors header against the length of its file. `bytes` need only hold the header.
pub(super) fn safetensors(bytes: &[u8], file: usize) -> Result<(), (Danger, String)> {
    let mismatch = |reason: String| (Danger::Mismatch, reason);
    let length: [u8; 8] =
        bytes.get(..8).and_then(|b| b.try_into().ok()).ok_or_else(|| mismatch("too short".into()))?;
    let header = u64::from_le_bytes(length);
    if header > MOST_HEADER_BYTES as u64 {
        return Err((
            Danger::Bounds,
            format!("a header of {header} bytes, at most {MOST_HEADER_BYTES} are read"),
        ));
    }
    let end = header as usize + 8;
    let Some(text) = bytes.get(8..end) else { return Err(mismatch("cut off within its header".into())) };
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes[..end]).or_else(|e| match e {
        // The header is judged by the library; the length of the data, which is not in `bytes`, below.
        safetensors::SafeTensorError::MetadataIncompleteBuffer => {
            let metadata = serde_json::from_slice(text).map_err(|e| mismatch(e.to_string()))?;
            Ok((end, metadata))
        }
        e => Err(mismatch(e.to_string())),
    })?;
    let data = metadata.data_len();
    if end.checked_add(data) != Some(file) {
        return Err(mismatch(format!("{file} bytes, but the header speaks of {end} + {data}")));
    }
    Ok(())
}

/// Whether bytes are one JSON value within bounds.
fn json(bytes: &[u8]) -> Result<(), (Danger, String)> {
    if bytes.len() > MOST_JSON_BYTES {
        return Err((Danger::Bounds, format!("{} bytes, at most {MOST_JSON_BYTES} are read", bytes.len())));
    }
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for b in bytes {
        match (quoted, b) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => quoted = !quoted,
            (false, b'[' | b'{') => depth += 1,
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MOST_JSON_DEPTH {
            return Err((Danger::Bounds, format!("nested deeper than {MOST_JSON_DEPTH}")));
        }
    }
    // What is skipped over is not looked at by the parser: strings may hold anything.
    let text = std::str::from_utf8(bytes).map_err(|e| (Danger::Mismatch, e.to_string()))?;
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map(|_| ())
        .map_err(|e| (Danger::Mismatch, e.to_string()))
}

/// What fuzzing found.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_json_are_utf_8() {
        assert!(scan_bytes("config.json", b"{\"a\": \"\xc3\xa9\"}").findings.is_empty());
        for bytes in [&b"{\"a\": \"\xff\"}"[..], b"{\"\xda\": {}}", b"[\"\xe7_\"]"] {
            assert_eq!(scan_bytes("config.json", bytes).findings[0].danger, Danger::Mismatch);
        }
    }

    #[test]
    fn a_pickle_behind_the_record_of_an_empty_archive() {
        let import = b"\niposix\nsystem\n.";
        let record = [&b"PK\x05\x06"[..], &[0; 18]].concat();
        assert!(scan_bytes("empty.zip", &record).findings.is_empty());
        for name in ["model.bin", "model.zip", "config.json", "model"] {
            let findings = scan_bytes(name, &[&record[..], import].concat()).findings;
            assert_eq!(findings[0].globals, ["posix.system"], "{name}");
        }
    }
}
