//! The list of a batch: TOML, read and checked as a whole.

use super::{obtain::Wish, push};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use squish_quant::Recipe;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The file: what holds for all models, and the models.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    keep_source: bool,
    #[serde(default)]
    certify: Vec<String>,
    text: Option<PathBuf>,
    window: Option<usize>,
    windows: Option<usize>,
    tokens: Option<usize>,
    #[serde(default)]
    private: bool,
    models: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    recipe: Option<String>,
    out: Option<PathBuf>,
    keep_source: Option<bool>,
    certify: Option<Vec<String>>,
    text: Option<PathBuf>,
    window: Option<usize>,
    windows: Option<usize>,
    tokens: Option<usize>,
    push: Option<String>,
    private: Option<bool>,
    licence: Option<String>,
}

/// All that is to be done with one model.
#[derive(Debug)]
pub struct Task {
    pub wish: Wish,
    pub certify: Vec<String>,
    pub text: Option<PathBuf>,
    pub window: usize,
    pub windows: Option<usize>,
    pub tokens: usize,
    pub push: Option<String>,
    pub private: bool,
    pub licence: Option<String>,
}

/// Reads and checks a list. Relative paths are relative to the current directory, as on a command line.
pub fn tasks(file: &Path) -> Result<Vec<Task>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let list: List = toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        let message = e.message().lines().next().unwrap_or_default().to_owned();
        anyhow::anyhow!("{}: line {line}: {message}", file.display())
    })?;
    if list.models.is_empty() {
        bail!("{}: there are no models in it", file.display());
    }
    let mut tasks = Vec::new();
    for (i, entry) in list.models.into_iter().enumerate() {
        let task = Task {
            certify: entry.certify.unwrap_or_else(|| list.certify.clone()),
            text: entry.text.or_else(|| list.text.clone()),
            window: entry.window.or(list.window).unwrap_or(1024),
            windows: entry.windows.or(list.windows),
            tokens: entry.tokens.or(list.tokens).unwrap_or(128),
            push: entry.push.as_deref().map(push::repository).transpose()?,
            private: entry.private.unwrap_or(list.private),
            licence: entry.licence,
            wish: Wish {
                name: entry.name,
                recipe: entry.recipe,
                out: entry.out,
                keep_source: entry.keep_source.unwrap_or(list.keep_source),
            },
        };
        task.check().with_context(|| format!("{}: model {}", file.display(), i + 1)).map_err(one_line)?;
        tasks.push(task);
    }
    Ok(tasks)
}

/// An error with its causes in one line.
fn one_line(error: anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

impl Task {
    fn check(&self) -> Result<()> {
        if let Some(recipe) = &self.wish.recipe {
            Recipe::load(recipe)?;
        }
        if let Some(task) = self.certify.iter().find(|task| !matches!(task.as_str(), "perplexity" | "kl")) {
            bail!("`certify` names `{task}`; there are perplexity and kl");
        }
        match &self.text {
            Some(text) if !self.certify.is_empty() && !text.is_file() => bail!("no text {}", text.display()),
            None if !self.certify.is_empty() => bail!("`certify` needs `text`"),
            _ => {}
        }
        if self.tokens == 0 || self.window < 2 || self.windows == Some(0) {
            bail!("`tokens`, `window` or `windows` is too small");
        }
        Ok(())
    }
}
