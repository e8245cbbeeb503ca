//! `squish-quant list`, `show`, `rm` and `pull`.

use super::{print, print_json, scan::Refused};
use anyhow::{Result, bail};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use squish_hub::{
    Catalog, Hub, Name,
    catalog::{CONTEXT, Model, Variant},
    hub::Transfer,
    ollama,
    store::{self, Resolution, gigabytes, resolve},
};
use squish_quant::{Options, Recipe, compress};
use std::{collections::HashMap, fmt::Write, path::Path, sync::Mutex};

/// List the models on this machine: squished ones, originals in the hub's cache, and those of Ollama's store.
#[derive(Debug, Args)]
pub struct List {
    /// List the catalog instead, with predicted sizes.
    #[arg(long)]
    remote: bool,
}

impl List {
    pub fn run(self) -> Result<()> {
        let (catalog, mut text) = (Catalog::built_in(), String::new());
        if self.remote {
            let _ = writeln!(
                text,
                "{:22} {:>10} {:>10} {:>10} {:>10}  licence",
                "name", "sqint2", "int3", "int4", "bf16"
            );
            for model in &catalog.models {
                let [a, b, c, d] = Variant::ALL.map(|variant| gigabytes(model.bytes(variant)));
                let _ =
                    writeln!(text, "{:22} {a:>10} {b:>10} {c:>10} {d:>10}  {}", model.name, model.licence);
            }
            return print(&text);
        }
        let mut line = |name: &str, what: &str| {
            let _ = writeln!(text, "{:40} {what}", name.replace(char::is_control, "\u{fffd}"));
        };
        for (name, bytes) in store::list(&store::home()) {
            line(&name, &gigabytes(bytes));
        }
        let hub = Hub::from_env();
        for model in &catalog.models {
            if let Some(dir) = hub.cached(&model.repository, &model.revision) {
                line(&format!("{}-bf16", model.name), &dir.display().to_string());
            }
        }
        if let Some(store) = ollama::store() {
            for name in ollama::list(&store) {
                let what = ollama::refusal(&store, &name);
                line(&format!("ollama:{name}"), what.as_deref().unwrap_or("can be used by this name"));
            }
        }
        print(&text)
    }
}

/// Print what is known of a model of the catalog; sizes are predicted from its shape.
#[derive(Debug, Args)]
pub struct Show {
    /// A name or alias, with or without a variant.
    name: String,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

impl Show {
    pub fn run(self) -> Result<()> {
        let catalog = Catalog::built_in();
        let Some((model, _)) = catalog.find(&self.name) else {
            bail!("no model {:?} in the catalog; `squish-quant list --remote` lists it", self.name);
        };
        let variants: Vec<_> = Variant::ALL.iter().map(|v| (*v, model.bytes(*v), model.memory(*v))).collect();
        let guards = guards(model);
        if self.json {
            let variants: Vec<_> = variants
                .iter()
                .map(|(v, bytes, memory)| serde_json::json!({ "name": v, "bytes": bytes, "memory_bytes": memory }))
                .collect();
            let mut json = serde_json::to_value(model)?;
            json["variants"] = variants.into();
            json["guards"] = guards.into();
            return print_json(&json);
        }
        let mut text = String::new();
        let _ = writeln!(text, "{} (also {})", model.name, model.aliases.join(", "));
        let _ = writeln!(text, "hf:{}@{}, licence {}", model.repository, model.revision, model.licence);
        for (variant, bytes, memory) in variants {
            let (bytes, memory) = (gigabytes(bytes), gigabytes(memory));
            let _ = writeln!(
                text,
                "  {:8} {bytes:>10} of weights, {memory:>10} to run {CONTEXT} positions",
                variant.name()
            );
        }
        for note in model.note.iter().chain(&guards) {
            let _ = writeln!(text, "  note: {note}");
        }
        print(&text)
    }
}

/// What the guards say of a model.
fn guards(model: &Model) -> Vec<String> {
    let sizes = [("hidden_size", model.shape.hidden), ("num_hidden_layers", model.shape.layers)];
    let is_about = |guard: &squish_quant::guard::Guard| {
        guard.architectures.contains(&model.architecture)
            && guard.sizes.iter().all(|(key, value)| sizes.contains(&(key.as_str(), *value)))
    };
    let about = squish_quant::guard::Guard::all().into_iter().filter(is_about);
    about.map(|g| format!("{} without calibration is refused: {}", g.schemes.join(", "), g.reason)).collect()
}

/// Remove a squished model from this machine.
#[derive(Debug, Args)]
pub struct Remove {
    /// Its name, as `list` prints it.
    name: String,
}

impl Remove {
    pub fn run(self) -> Result<()> {
        let freed = store::remove(&store::home(), &self.name)?;
        print(&format!("{} freed\n", gigabytes(freed)))
    }
}

/// Download a model, check every byte, and squish it; prints the directory.
///
/// What was interrupted goes on where it was. A model that is there already is left as it is. HF_ENDPOINT, HF_HOME, HF_TOKEN and
/// HF_HUB_OFFLINE are those of Hugging Face's own tools. Exit code 2 where the repository is not safe to load.
#[derive(Debug, Args)]
pub struct Pull {
    /// A name of the catalog, or hf:organisation/name[@revision] for the original.
    name: String,
}

impl Pull {
    pub fn run(self) -> Result<()> {
        let (home, hub) = (store::home(), Hub::from_env());
        let plan = match resolve(&self.name, &home, &hub)? {
            Resolution::Ready(dir) => return print(&format!("{}\n", dir.display())),
            Resolution::Absent(plan) => plan,
        };
        let (repository, revision, squished) = match Name::parse(&self.name)? {
            Name::Hub { repository, revision } => (repository, revision, None),
            Name::Catalog(model, variant) => {
                let out = store::directory(&home, &model, variant);
                let squished = variant.recipe().map(|recipe| (recipe, out));
                (model.repository.clone(), model.revision.clone(), squished)
            }
            _ => bail!("{}", plan.to_string().lines().next().unwrap_or_default()),
        };
        let bars = Bars::new()?;
        let pulled = match hub.pull(&repository, &revision, &bars) {
            Err(e @ squish_hub::Error::Unsafe { .. }) => return Err(Refused(e.to_string()).into()),
            pulled => pulled?,
        };
        drop(bars);
        let Some((recipe, out)) = squished else { return print(&format!("{}\n", pulled.dir.display())) };
        squish(&pulled.dir, &out, recipe)?;
        print(&format!("{}\n", out.display()))
    }
}

/// By a recipe, with its own kind of calibration, into a directory that appears when it is complete.
fn squish(source: &Path, out: &Path, recipe: &str) -> Result<()> {
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let bar = super::Bar::new(true)?;
    compress(source, out, &Options::new(Recipe::load(recipe)?), &bar)?;
    Ok(())
}

/// A bar for each file that is under way; invisible where nobody watches.
struct Bars {
    all: MultiProgress,
    style: ProgressStyle,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn new() -> Result<Self> {
        let style = ProgressStyle::with_template(
            "{bar:24} {bytes:>11} of {total_bytes:11} {bytes_per_sec:>13}  {msg}",
        )?;
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Ok(Self { all, style, bars: Mutex::default() })
    }
}

impl Transfer for Bars {
    fn warn(&self, text: &str) {
        let line = format!("warning: {}", text.replace(char::is_control, "\u{fffd}"));
        self.all.suspend(|| eprintln!("{line}"));
    }

    fn at(&self, file: &str, done: u64, total: Option<u64>) {
        let mut bars = self.bars.lock().unwrap_or_else(|e| e.into_inner());
        let bar = bars.entry(file.to_owned()).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new(total.unwrap_or(0)).with_style(self.style.clone()));
            bar.set_message(file.replace(char::is_control, "\u{fffd}"));
            bar
        });
        bar.set_position(done);
        if total.is_some_and(|total| done >= total) {
            bar.finish_and_clear();
        }
    }
}
