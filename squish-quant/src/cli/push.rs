//! `squish-quant push`.

use super::{named, print, print_json, progress::Bars, scan::Refused};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use squish_hub::{Catalog, Hub, Name, hub::LocalFile, scan::scan_path, store::gigabytes};
use squish_models::Checkpoint;
use squish_quant::{
    Origin,
    card::{Facts, card},
};
use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

const CARD: &str = "README.md";

/// Publish a squished checkpoint on the hub, with a page made of its certificate.
///
/// Files that are there already are not sent; large files that arrived before an interruption are not sent again; all files appear in one
/// commit. A README.md in DIR is taken as it is. HF_TOKEN needs write access.
///
/// With --json: repository, created, commit (null where nothing was to do, and with --dry-run), sent (each name, bytes), same, removed (names), sent_bytes, seconds.
#[derive(Debug, Args)]
pub struct Push {
    /// A directory with a squished checkpoint, or its name (`list`).
    dir: PathBuf,
    /// hf:organisation/name
    to: String,
    /// Say what would be sent, and print the page; nothing is written.
    #[arg(long)]
    dry_run: bool,
    /// Make a new repository private.
    #[arg(long)]
    private: bool,
    /// The licence that the page states; absent, the catalog's where the original is in it.
    #[arg(long)]
    licence: Option<String>,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// What was published, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct Pushed {
    repository: String,
    created: bool,
    /// The commit, where one was made.
    pub commit: Option<String>,
    sent: Vec<Sent>,
    same: Vec<String>,
    removed: Vec<String>,
    sent_bytes: u64,
    seconds: f64,
    #[serde(skip)]
    card: String,
}

#[derive(Debug, Clone, Serialize)]
struct Sent {
    name: String,
    bytes: u64,
}

impl Push {
    pub fn run(self) -> Result<()> {
        let repository = repository(&self.to)?;
        let bars = Bars::new(!self.json)?;
        let how =
            Conditions { dry_run: self.dry_run, private: self.private, licence: self.licence.as_deref() };
        let pushed = push(&named::model(&self.dir)?, &repository, &how, &Hub::from_env(), &bars)?;
        drop(bars);
        if self.json { print_json(&pushed) } else { print(&pushed.text(self.dry_run)) }
    }
}

/// The repository of an address.
pub fn repository(to: &str) -> Result<String> {
    match Name::parse(to) {
        Ok(Name::Hub { repository, revision }) if revision == "main" && !to.contains('@') => Ok(repository),
        _ => bail!("`{to}` is not hf:organisation/name"),
    }
}

/// How to publish.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conditions<'a> {
    pub dry_run: bool,
    pub private: bool,
    pub licence: Option<&'a str>,
}

/// Publishes a directory.
pub fn push(dir: &Path, repository: &str, how: &Conditions, hub: &Hub, bars: &Bars) -> Result<Pushed> {
    let start = std::time::Instant::now();
    if Checkpoint::open(dir)?.manifest().is_none() {
        return Err(squish_quant::Error::NotSquished(dir.into()).into());
    }
    let report = scan_path(dir).with_context(|| format!("cannot scan {}", dir.display()))?;
    if let Some(finding) = report.findings.first() {
        let (file, detail) = (&finding.file, &finding.detail);
        return Err(Refused(format!("{}: {file} is not safe to load: {detail}", dir.display())).into());
    }
    let known = Catalog::built_in();
    let origin = Origin::of(dir);
    let model = known.models.iter().find(|m| origin.as_ref().is_some_and(|o| o.repository == m.repository));
    let licence = how.licence.or(model.map(|model| model.licence.as_str()));

    let mut files = files(dir)?;
    let made = tempfile::tempdir()?;
    let page = if files.iter().any(|file| file.name == CARD) {
        fs::read_to_string(dir.join(CARD)).unwrap_or_default()
    } else {
        let page = card(dir, &Facts { repository, licence })?;
        let path = made.path().join(CARD);
        fs::write(&path, &page)?;
        files.push(LocalFile { name: CARD.into(), path });
        page
    };
    let plan = hub.plan_push(repository, &files)?;
    let sent: Vec<_> = plan.sent().map(|(name, bytes)| Sent { name: name.into(), bytes }).collect();
    let summary = "Squished weights";
    let commit = if how.dry_run { None } else { hub.push(&plan, how.private, summary, bars)? };
    Ok(Pushed {
        repository: repository.into(),
        created: plan.create,
        commit,
        sent_bytes: sent.iter().map(|file| file.bytes).sum(),
        sent,
        same: plan.same,
        removed: plan.removed,
        seconds: start.elapsed().as_secs_f64(),
        card: page,
    })
}

/// The files of a directory that are published: no hidden ones, and nothing below.
fn files(dir: &Path) -> Result<Vec<LocalFile>> {
    let io = |source| squish_quant::Error::Io { path: dir.into(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let (name, path) =
            entry.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())).map_err(io)?;
        if path.is_file() && !name.starts_with('.') {
            files.push(LocalFile { name, path });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

impl Pushed {
    fn text(&self, dry_run: bool) -> String {
        let mut text = String::new();
        let (send, remove) = if dry_run { ("would send", "would remove") } else { ("sent", "removed") };
        for Sent { name, bytes } in &self.sent {
            let _ = writeln!(text, "{send:12} {name} ({})", gigabytes(*bytes));
        }
        for name in &self.removed {
            let _ = writeln!(text, "{remove:12} {name}");
        }
        let _ = match (&self.commit, dry_run) {
            (Some(commit), _) => writeln!(text, "hf:{} is at commit {commit}", self.repository),
            (None, true) if self.created => writeln!(text, "hf:{} would be created", self.repository),
            (None, true) => writeln!(
                text,
                "hf:{} is there, with {} files as they are here",
                self.repository,
                self.same.len()
            ),
            (None, false) => writeln!(text, "hf:{} has all of it already", self.repository),
        };
        if dry_run {
            let _ = write!(text, "\n{}", self.card);
        }
        text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
    }
}
