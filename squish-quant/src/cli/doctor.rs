//! `squish-quant doctor`.

use super::{machine, print, print_json};
use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use squish_hub::{
    Catalog, Hub,
    catalog::{CONTEXT, Variant},
    ollama,
    store::{self, gigabytes},
};
use squish_kernels::arch;
use std::{fmt::Write, path::PathBuf};

/// Bytes of disk below which not even the smallest model could be squished.
const LEAST_DISK: u64 = 1_000_000_000;

/// Look at this machine: kernels, memory, disk, models, hub, and which models of the catalog run here.
///
/// Exit code 1 where models cannot run or be stored: the kernels that SQUISH_ISA asks for are not there, no model of the catalog fits
/// into the memory that is available, nothing can be written below SQUISH_HOME, or less than 1 GB is free there. A hub that cannot be reached is reported and no failure.
///
/// With --json: problems (what exit code 1 stands for; each one line), isa (in use; null where SQUISH_ISA asks for another), isas (available), cpu_features (those that kernels
/// ask for; each name and whether it is there), threads, metal (whether there is such a device and this is built for it), memory_bytes and memory_available_bytes (null
/// where the system does not say), home, disk_free_bytes, models (squished ones: each name and bytes), cache (the hub's: path, and
/// repositories, each name and bytes, complete or not), ollama (names), hub (endpoint, offline, token: whether one is set, error: null where it answers),
/// runs (models of the catalog, each name with the best variant whose predicted memory is available, bytes of its weights, memory_bytes).
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Sized {
    name: String,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Runs {
    name: String,
    bytes: u64,
    memory_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Feature {
    name: &'static str,
    there: bool,
}

#[derive(Debug, Serialize)]
struct Cache {
    path: PathBuf,
    repositories: Vec<Sized>,
}

#[derive(Debug, Serialize)]
struct Reached {
    endpoint: String,
    offline: bool,
    token: bool,
    error: Option<String>,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Findings {
    problems: Vec<String>,
    isa: Option<&'static str>,
    isas: Vec<&'static str>,
    cpu_features: Vec<Feature>,
    threads: usize,
    metal: bool,
    memory_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    home: PathBuf,
    disk_free_bytes: Option<u64>,
    models: Vec<Sized>,
    cache: Cache,
    ollama: Vec<String>,
    hub: Reached,
    runs: Vec<Runs>,
}

impl Doctor {
    pub fn run(self) -> Result<()> {
        let found = Findings::gather();
        if self.json {
            print_json(&found)?;
        } else {
            print(&found.text().replace(|c: char| c.is_control() && c != '\n', "\u{fffd}"))?;
        }
        match found.problems.is_empty() {
            true => Ok(()),
            false => bail!(found.problems.join("; ")),
        }
    }
}

fn sized(list: Vec<(String, u64)>) -> Vec<Sized> {
    list.into_iter().map(|(name, bytes)| Sized { name, bytes }).collect()
}

fn lines(text: &mut String, list: &[Sized]) {
    for Sized { name, bytes } in list {
        let _ = writeln!(text, "           {name:38} {:>10}", gigabytes(*bytes));
    }
}

/// The best variant of each model that this much memory has room for.
fn runs(memory: u64) -> Vec<Runs> {
    let best = |model: &squish_hub::Model| {
        let variant = Variant::ALL.into_iter().rev().find(|v| model.memory(*v) <= memory)?;
        let name = format!("{}-{variant}", model.name);
        Some(Runs { name, bytes: model.bytes(variant), memory_bytes: model.memory(variant) })
    };
    Catalog::built_in().models.iter().filter_map(best).collect()
}

/// What is wrong where no model runs.
fn room(runs: Option<&[Runs]>) -> Option<&'static str> {
    runs?.is_empty().then_some("the memory that is available has room for no model of the catalog")
}

impl Findings {
    fn gather() -> Self {
        let (home, hub) = (store::home(), Hub::from_env());
        let (memory, available) = machine::memory();
        let (kernels, disk) = (arch::kernels(), machine::disk_free(&home));
        let mut problems: Vec<String> = kernels.as_ref().err().map(ToString::to_string).into_iter().collect();
        if let Some(error) = machine::unwritable(&home) {
            problems.push(format!("{} cannot be written to: {error}", home.display()));
        }
        if let Some(free) = disk.filter(|free| *free < LEAST_DISK) {
            problems.push(format!("{} free for {}", gigabytes(free), home.display()));
        }
        let runs = available.or(memory).map(runs);
        problems.extend(room(runs.as_deref()).map(str::to_owned));
        Self {
            problems,
            isa: kernels.ok().map(|k| k.isa),
            isas: arch::available().iter().map(|k| k.isa).collect(),
            cpu_features: arch::features().into_iter().map(|(name, there)| Feature { name, there }).collect(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            metal: squish_models::metal_device().is_some(),
            memory_bytes: memory,
            memory_available_bytes: available,
            disk_free_bytes: disk,
            models: sized(store::list(&home)),
            home,
            cache: Cache { repositories: sized(hub.repositories()), path: hub.cache.clone() },
            ollama: ollama::store().map(|store| ollama::list(&store)).unwrap_or_default(),
            hub: Reached {
                error: hub.reach().err().map(|e| e.to_string()),
                token: hub.token.is_some(),
                offline: hub.offline,
                endpoint: hub.endpoint,
            },
            runs: runs.unwrap_or_default(),
        }
    }

    fn text(&self) -> String {
        let size = |bytes: Option<u64>| bytes.map_or("unknown".into(), gigabytes);
        let mut text = String::new();
        let isa = self.isa.unwrap_or("none");
        let _ = writeln!(text, "kernels  {isa} of {}, {} threads", self.isas.join(", "), self.threads);
        let mark = |f: &Feature| format!("{}{}", if f.there { "" } else { "no " }, f.name);
        let features: Vec<_> = self.cpu_features.iter().map(mark).collect();
        let _ = writeln!(text, "cpu      {}", features.join(", "));
        let metal = if self.metal { "a device" } else { "no device, or built without the feature metal" };
        let _ = writeln!(text, "metal    {metal}");
        let (all, available) = (size(self.memory_bytes), size(self.memory_available_bytes));
        let _ = writeln!(text, "memory   {all}, {available} available");
        let _ = writeln!(text, "disk     {} free for {}", size(self.disk_free_bytes), self.home.display());
        let token = if self.hub.token { "with a token" } else { "no token" };
        let state = self.hub.error.as_deref().unwrap_or("answers");
        let _ = writeln!(text, "hub      {}, {token}: {state}", self.hub.endpoint);
        let _ = writeln!(text, "models   {}", self.models.len());
        lines(&mut text, &self.models);
        let _ = writeln!(
            text,
            "cache    {}, {} repositories",
            self.cache.path.display(),
            self.cache.repositories.len()
        );
        lines(&mut text, &self.cache.repositories);
        let _ = writeln!(text, "ollama   {} models", self.ollama.len());
        let _ =
            writeln!(text, "runs     with {CONTEXT} positions, in the memory that is available (predicted):");
        for Runs { name, bytes, memory_bytes } in &self.runs {
            let (bytes, memory) = (gigabytes(*bytes), gigabytes(*memory_bytes));
            let _ = writeln!(text, "           {name:38} {bytes:>10} of weights, {memory:>10} to run");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_memory_is_a_problem() {
        assert!(room(Some(&runs(0))).is_some());
        assert!(room(Some(&runs(u64::MAX))).is_none() && room(None).is_none());
    }
}
