//! `squish-quant list`, `show` and `rm`.

use super::{print, print_json};
use anyhow::{Result, bail};
use clap::Args;
use squish_hub::{
    Catalog, Hub,
    catalog::{CONTEXT, Model, Variant},
    ollama,
    store::{self, gigabytes},
};
use std::fmt::Write;

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

/// Remove a squished model from this machine, or what an interrupted pull has left of it.
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
