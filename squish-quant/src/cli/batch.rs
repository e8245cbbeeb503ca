//! `squish-quant batch`.

use super::{
    batch_list::{Task, tasks},
    eval::Eval,
    named,
    obtain::{Obtained, Wish, obtain},
    print, print_json,
    progress::{Bars, interrupted},
    push,
};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use squish_hub::{Hub, Name, store};
use squish_models::{Checkpoint, Device, Model};
use squish_quant::{Origin, Windows, certificate::hash_file, eval::smoke};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
    time::Instant,
};

/// Pull, squish, test, certify and publish the models of a list; after a failure the next one is taken.
///
/// FILE is TOML: `[[models]]` each with name, and where wanted recipe, out, keep_source, certify (perplexity, kl), text, window, windows,
/// tokens (of an answer of the smoke test), push (hf:organisation/name), private, licence; what stands before the first holds for all. docs/names.md has an example.
/// What is there already is not done again, so that the same list may be called until it passes. Exit code 1 where a model failed.
///
/// With --json: failed (models), models: each name, recipe, dir (null where there is none), passed, steps: each step (pull, smoke,
/// certify, push), status (done, there: nothing was to do, failed, skipped), seconds, detail.
#[derive(Debug, Args)]
pub struct Batch {
    /// The list.
    file: PathBuf,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    name: String,
    recipe: Option<String>,
    dir: Option<PathBuf>,
    passed: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    status: Status,
    seconds: f64,
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Done,
    There,
    Failed,
    Skipped,
}

impl Batch {
    pub fn run(self) -> Result<()> {
        // The whole list is checked before the first, perhaps long, download.
        let tasks = tasks(&self.file)?;
        let (home, hub) = (store::home(), Hub::from_env());
        // Bars of its own for each, whose total begins at nothing.
        let run = |task: &Task| Ok(task.run(&home, &hub, &Bars::new(!self.json)?));
        let outcomes = tasks.iter().map(run).collect::<Result<Vec<_>>>()?;
        let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
        if self.json {
            print_json(&serde_json::json!({"failed": failed, "models": outcomes}))?;
        } else {
            print(&text(&outcomes))?;
        }
        match failed {
            0 => Ok(()),
            _ => bail!("{failed} of {} models failed", outcomes.len()),
        }
    }
}

impl Task {
    /// Does one step after the other; the first failure ends it.
    fn run(&self, home: &Path, hub: &Hub, bars: &Bars) -> Outcome {
        let Wish { name, recipe, .. } = &self.wish;
        let mut outcome = Outcome {
            name: name.clone(),
            recipe: recipe.clone(),
            dir: None,
            passed: true,
            steps: Vec::new(),
        };
        outcome.step("pull", || {
            let Obtained { dir, how } = obtain(&self.wish, home, hub, bars)?;
            let status = if how == super::obtain::How::There { Status::There } else { Status::Done };
            Ok((status, format!("{how:?}").to_lowercase(), Some(dir)))
        });
        let dir = outcome.dir.clone().unwrap_or_default();
        outcome.step("smoke", || {
            let smoke = smoke(&named::model(&dir)?, self.tokens, bars)?;
            match smoke.fault {
                Some(fault) => bail!("{fault}"),
                None => Ok((Status::Done, format!("{:.2} nats per token", smoke.prompt_nll), None)),
            }
        });
        if !self.certify.is_empty() {
            outcome.step("certify", || self.certify(&dir, hub, bars));
        }
        if let Some(repository) = &self.push {
            outcome.step("push", || {
                let licence = self.licence.as_deref();
                let how = push::Conditions { dry_run: false, private: self.private, licence };
                let pushed = push::push(&dir, repository, &how, hub, bars)?;
                let status = if pushed.commit.is_some() { Status::Done } else { Status::There };
                Ok((status, format!("hf:{repository}"), None))
            });
        }
        outcome
    }

    /// Measures what the certificate does not state yet.
    fn certify(&self, dir: &Path, hub: &Hub, bars: &Bars) -> Result<(Status, String, Option<PathBuf>)> {
        let text = self.text.as_deref().context("`certify` needs `text`")?;
        let data = hash_file(text)?;
        let checkpoint = Checkpoint::open(dir)?;
        // The text may have fewer windows than are asked for, and has its own number where none is given.
        let windows = {
            let model = Model::from_checkpoint(&checkpoint, &Device::Cpu)?;
            Windows { size: self.window, count: self.windows }.read(dir, model.config(), text)?.len()
        };
        let stated = |task: &&String| {
            let measurements = checkpoint.certificate().map(|certificate| &certificate.measurements);
            let same = |values: &std::collections::BTreeMap<String, serde_json::Number>| {
                let is = |name: &str, wanted: usize| {
                    values.get(name).and_then(|v| v.as_u64()) == Some(wanted as u64)
                };
                is("window", self.window) && is("windows", windows)
            };
            measurements.into_iter().flatten().any(|m| m.what == **task && m.data == data && same(&m.values))
        };
        let missing: Vec<String> = self.certify.iter().filter(|task| !stated(task)).cloned().collect();
        drop(checkpoint);
        if missing.is_empty() {
            return Ok((Status::There, self.certify.join(", "), None));
        }
        let against = match missing.iter().any(|task| task == "kl") {
            true => Some(self.original(dir, hub, bars)?),
            false => None,
        };
        Eval::to_certify(dir, missing.clone(), text, self.window, self.windows, against).measure(bars)?;
        Ok((Status::Done, missing.join(", "), None))
    }

    /// The original, which stays in the hub's cache.
    fn original(&self, dir: &Path, hub: &Hub, bars: &Bars) -> Result<PathBuf> {
        let (repository, revision) = match (Origin::of(dir), Name::parse(&self.wish.name)?) {
            (Some(origin), _) => (origin.repository, origin.commit),
            (None, Name::Catalog(model, _)) => (model.repository, model.revision),
            (None, Name::Hub { repository, revision }) => (repository, revision),
            _ => bail!("kl needs the original, and nothing says where {} is from", dir.display()),
        };
        Ok(hub.pull(&repository, &revision, bars)?.dir)
    }
}

impl Outcome {
    /// Does a step, unless one before it has failed.
    fn step(&mut self, step: &'static str, work: impl FnOnce() -> Result<(Status, String, Option<PathBuf>)>) {
        let start = Instant::now();
        let result = match self.passed {
            false => Ok((Status::Skipped, String::new(), None)),
            true if interrupted() => Err(anyhow::anyhow!("interrupted")),
            true => work(),
        };
        let (status, detail) = match result {
            Ok((status, detail, dir)) => {
                self.dir = dir.or_else(|| self.dir.take());
                (status, detail)
            }
            Err(error) => {
                self.passed = false;
                (Status::Failed, format!("{error:#}").replace(char::is_control, "\u{fffd}"))
            }
        };
        self.steps.push(Step { step, status, seconds: start.elapsed().as_secs_f64(), detail });
    }
}

/// A line for every step.
fn text(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        let recipe = outcome.recipe.as_ref().map(|recipe| format!(", recipe {recipe}")).unwrap_or_default();
        let _ =
            writeln!(text, "{}{recipe}: {}", outcome.name, if outcome.passed { "passed" } else { "FAILED" });
        for Step { step, status, seconds, detail } in &outcome.steps {
            let status = format!("{status:?}").to_lowercase();
            let _ =
                writeln!(text, "  {}", format!("{step:8} {status:8} {seconds:>8.1} s  {detail}").trim_end());
        }
    }
    text
}
