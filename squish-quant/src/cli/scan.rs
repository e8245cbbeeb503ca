//! `squish-quant scan`.

use super::{print, print_json};
use anyhow::{Context, Result};
use clap::Args;
use squish_hub::{
    Hub, Name,
    scan::{Report, scan_path},
};
use std::{fmt::Write, path::Path};

/// Report what is dangerous in a file or a directory, without loading anything.
///
/// Exit code 0 where nothing is wrong, 2 where something is, 1 where it could not look. docs/security.md says what is refused.
///
/// With --json, of a repository: safe, refused (why, or null), unlisted (why there is no list of its files, or null), would_fetch, never_fetched (names). Of a path: safe, files (each name and role: safetensors, json, text or ignored), findings: each file (members of archives after a
/// `!`), danger (pickle, object_array, lambda, executable, opaque, mismatch, bounds), detail, globals (what a pickle would import).
#[derive(Debug, Args)]
pub struct Scan {
    /// A file or a directory; or hf:organisation/name[@revision], whose list of files is looked at (no file is fetched).
    path: String,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// Something that must not be loaded: exit code 2.
#[derive(Debug)]
pub struct Refused(pub String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// What is not safe to load has an exit code of its own.
pub fn refused(error: squish_hub::Error) -> anyhow::Error {
    match error {
        squish_hub::Error::Unsafe { .. } => Refused(error.to_string()).into(),
        error => error.into(),
    }
}

impl Scan {
    pub fn run(self) -> Result<()> {
        if self.path.starts_with("hf:") {
            return self.listing();
        }
        let report =
            scan_path(Path::new(&self.path)).with_context(|| format!("cannot scan {}", self.path))?;
        if self.json {
            let files: Vec<_> = report
                .files
                .iter()
                .map(|(name, role)| serde_json::json!({ "name": name, "role": role }))
                .collect();
            print_json(&serde_json::json!({
                "safe": report.is_safe(), "files": files, "findings": report.findings,
            }))?;
        } else {
            print(&text(&report))?;
        }
        match report.findings.len() {
            0 => Ok(()),
            1 => Err(Refused(format!("{}: 1 file is not safe to load", self.path)).into()),
            n => Err(Refused(format!("{}: {n} things are not safe to load", self.path)).into()),
        }
    }

    /// The first layer: what a repository offers, by its files' names.
    fn listing(&self) -> Result<()> {
        let Name::Hub { repository, revision } = Name::parse(&self.path)? else {
            anyhow::bail!("{} is no repository", self.path);
        };
        let (listing, refused) = match Hub::from_env().listing(&repository, &revision) {
            Ok(listing) => (Some(listing), None),
            Err(e @ squish_hub::Error::Unsafe { .. }) => (None, Some(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        let names =
            |l: &squish_hub::hub::Listing| l.fetched.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
        let fetched = listing.as_ref().map(names).unwrap_or_default();
        let unlisted = listing.as_ref().and_then(|l| l.unlisted.clone());
        let pickled = listing.map(|l| l.pickled).unwrap_or_default();
        if self.json {
            print_json(&serde_json::json!({
                "safe": refused.is_none(), "refused": refused, "unlisted": unlisted, "would_fetch": fetched, "never_fetched": pickled,
            }))?;
        } else {
            let mut text = String::new();
            for (what, names) in [("fetched", &fetched), ("never", &pickled)] {
                for name in names {
                    let _ = writeln!(text, "{what:8} {name}");
                }
            }
            print(&text)?;
            unlisted
                .iter()
                .for_each(|why| eprintln!("warning: {}", why.replace(char::is_control, "\u{fffd}")));
        }
        refused.map_or(Ok(()), |reason| Err(Refused(reason).into()))
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(text, "refused  {}: {}", finding.file, finding.detail);
    }
    let _ = writeln!(text, "{} files looked at, {} findings", report.files.len(), report.findings.len());
    text
}
