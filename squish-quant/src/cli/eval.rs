//! `squish-quant eval`.

use super::{command_line::command_line, named, print, print_json, progress::Bar};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value};
use squish_models::{Checkpoint, KvMode, checkpoint::Measurement};
use squish_quant::{
    Progress, Windows,
    certificate::{Certifier, TOOL, hash_checkpoint, hash_file, numbers},
    eval::{Conditions, TASKS, Task, kl, perplexity, score},
};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

/// Measure what a checkpoint predicts: benchmark questions, nats per token, divergence from the original.
///
/// With --certify, the numbers are written into the checkpoint's certificate, with the names and hashes of what they were
/// measured on; a number measured earlier on the same data is replaced. `inspect` shows it.
///
/// With --json, an object with a field for every task. perplexity: as `squish-quant perplexity --json`.
/// kl: kl_mean, kl_stderr, kl_median, kl_p99, kl_max (of the divergence per predicted token, in nats), top1_agreement (fraction of the tokens
/// for which both find the same one likeliest), reference_nll, nll, nats_lost (nll - reference_nll), nats_lost_stderr, tokens,
/// windows, window, seconds. Questions: acc, acc_norm, acc_bytes, each with a _stderr (standard errors are null for a single question),
/// questions, seconds. docs/evaluation.md defines each number.
#[derive(Debug, Args)]
pub struct Eval {
    /// A checkpoint directory, squished or original, or a name (`list`).
    dir: PathBuf,
    /// What to measure: arc_easy, arc_challenge, piqa, openbook_qa, perplexity, kl; several with commas.
    #[arg(long, value_delimiter = ',', required = true)]
    task: Vec<String>,
    /// A directory with TASK.jsonl for every benchmark, or the file of the only one.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Only the first so many questions of each benchmark.
    #[arg(long)]
    limit: Option<usize>,
    /// A UTF-8 text file, for perplexity and kl.
    #[arg(long)]
    text: Option<PathBuf>,
    /// Tokens of a window of the text; each window is a context of its own.
    #[arg(long, default_value_t = 1024)]
    window: usize,
    /// Number of windows, from the beginning of the text; absent, all of it.
    #[arg(long)]
    windows: Option<usize>,
    /// The original checkpoint, or its name, for kl.
    #[arg(long)]
    against: Option<PathBuf>,
    /// How keys and values are stored, for perplexity and kl: f32, f16, k8v8, k8v4, ... (docs/kv_cache.md).
    #[arg(long, value_name = "MODE", default_value_t = KvMode::F32)]
    kv: KvMode,
    /// Begin each window of the text with the BOS that the checkpoint's prompts begin with, if it has one.
    #[arg(long)]
    bos: bool,
    /// Write what was measured into the certificate of a squished checkpoint.
    #[arg(long)]
    certify: bool,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// A task with all that it needs.
enum Job<'a> {
    Perplexity { text: &'a Path },
    Kl { text: &'a Path, original: &'a Path },
    Questions { task: Task, file: PathBuf },
}

impl Job<'_> {
    /// The file that is read.
    fn data(&self) -> &Path {
        match self {
            Job::Perplexity { text } | Job::Kl { text, .. } => text,
            Job::Questions { file, .. } => file,
        }
    }
}

impl Eval {
    /// The evaluation that writes these tasks on a text into a checkpoint's certificate.
    pub fn to_certify(
        dir: &Path,
        task: Vec<String>,
        text: &Path,
        window: usize,
        windows: Option<usize>,
        against: Option<PathBuf>,
    ) -> Self {
        let (dir, text) = (dir.into(), Some(text.into()));
        let kv = KvMode::F32;
        Self {
            dir,
            task,
            data: None,
            limit: None,
            text,
            window,
            windows,
            against,
            kv,
            bos: false,
            certify: true,
            json: false,
        }
    }

    pub fn run(mut self) -> Result<()> {
        self.dir = named::model(&self.dir)?;
        self.against = self.against.as_deref().map(named::original).transpose()?;
        let bar = Bar::new(!self.json)?;
        let results = self.measure(&bar)?;
        drop(bar);
        if self.json {
            return print_json(&results);
        }
        let mut text = String::new();
        results.iter().for_each(|(task, value)| lines(&mut text, task, value));
        print(&text)
    }

    /// Measures all tasks, and certifies them where that is asked for; returns their numbers by task.
    pub fn measure(&self, bar: &dyn Progress) -> Result<Map<String, Value>> {
        // What is asked for is checked before the first, perhaps long, measurement.
        let jobs = self.jobs()?;
        let certifier = self.certify.then(|| Certifier::open(&self.dir)).transpose()?;
        let original = match &self.against {
            Some(dir) if self.certify => Some(hash_checkpoint(&Checkpoint::open(dir)?)?),
            _ => None,
        };
        if let (Some(certifier), Some(original)) = (&certifier, &original) {
            certifier.check_original(original)?;
        }
        let mut results = Map::new();
        let mut measurements = Vec::new();
        for (name, job) in self.task.iter().zip(jobs) {
            let value = self.measure_one(&job, bar)?;
            if self.certify {
                measurements.push(Measurement {
                    what: name.clone(),
                    data: hash_file(job.data())?,
                    against: original.clone().filter(|_| matches!(job, Job::Kl { .. })),
                    values: numbers(&value),
                    tool: TOOL.into(),
                    command: Some(command_line(&[])),
                });
            }
            results.insert(name.clone(), value);
        }
        if let Some(certifier) = certifier {
            certifier.finish(measurements)?;
        }
        Ok(results)
    }

    fn measure_one(&self, job: &Job, bar: &dyn Progress) -> Result<Value> {
        let windows = Windows { size: self.window, count: self.windows };
        let conditions = Conditions { decode: false, kv: self.kv, bos: self.bos };
        Ok(match job {
            Job::Perplexity { text } => {
                serde_json::to_value(perplexity(&self.dir, text, windows, conditions, bar)?)
            }
            Job::Kl { text, original } => {
                serde_json::to_value(kl(original, &self.dir, text, windows, conditions, bar)?)
            }
            Job::Questions { task, file } => {
                serde_json::to_value(score(&self.dir, *task, file, self.limit, bar)?)
            }
        }?)
    }

    fn jobs(&self) -> Result<Vec<Job<'_>>> {
        let text =
            |name: &str| self.text.as_deref().with_context(|| format!("task {name} needs --text FILE"));
        let job = |name: &String| match name.as_str() {
            "perplexity" => Ok(Job::Perplexity { text: text(name)? }),
            "kl" => {
                let original = self.against.as_deref().context("task kl needs --against ORIGINAL_DIR")?;
                Ok(Job::Kl { text: text(name)?, original })
            }
            _ => {
                let Some(task) = Task::by_name(name) else {
                    let known: Vec<_> = TASKS.iter().map(|task| task.name).collect();
                    bail!("no task `{name}`; there are {}, perplexity and kl", known.join(", "));
                };
                let data = self.data.as_ref().with_context(|| format!("task {name} needs --data PATH"))?;
                let file = if data.is_dir() { data.join(format!("{name}.jsonl")) } else { data.clone() };
                Ok(Job::Questions { task, file })
            }
        };
        if self.limit == Some(0) {
            bail!("--limit is 0, expected at least 1");
        }
        let jobs: Vec<_> = self.task.iter().map(job).collect::<Result<_>>()?;
        let questions = jobs.iter().filter(|job| matches!(job, Job::Questions { .. })).count();
        if questions > 1 && self.data.as_ref().is_some_and(|data| !data.is_dir()) {
            bail!("--data must be a directory for several benchmarks");
        }
        Ok(jobs)
    }
}

/// A line for every number of a task.
fn lines(out: &mut String, task: &str, value: &Value) {
    let _ = writeln!(out, "{task}");
    for (name, value) in value.as_object().into_iter().flatten() {
        let value = match value {
            Value::Number(n) if n.is_f64() => format!("{:.4}", n.as_f64().unwrap_or(f64::NAN)),
            Value::Null => continue,
            other => other.to_string(),
        };
        let _ = writeln!(out, "  {name:16} {value:>12}");
    }
}
