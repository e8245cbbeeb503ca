//! `squish-quant doctor`.

use super::{print, print_json};
use anyhow::{Result, bail};
use clap::Args;
use squish_hub::{
    Catalog, Hub,
    catalog::{CONTEXT, Variant},
    store::{self, gigabytes},
};
use squish_kernels::arch;
use std::{fmt::Write, path::Path};

/// Look at this machine: kernels, memory, disk, models, hub, and which models of the catalog run here.
///
/// Exit code 1 where models cannot run or be stored: the kernels asked for are not there. A hub that cannot be reached is reported
/// and no failure.
///
/// With --json: isa (in use; null where SQUISH_ISA asks for another), isas (available), threads, memory_bytes and memory_available_bytes (null
/// where the system does not say), home, disk_free_bytes, models (each name and bytes), hub (endpoint, offline, token: whether one is set, error: null where it
/// answers), runs (names of the catalog, each with the best variant whose predicted memory is available).
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(self) -> Result<()> {
        let kernels = arch::kernels();
        let isas: Vec<_> = arch::available().iter().map(|k| k.isa).collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (memory, available) = (meminfo("MemTotal:"), meminfo("MemAvailable:"));
        let (home, hub, catalog) = (store::home(), Hub::from_env(), Catalog::built_in());
        let disk = home.ancestors().filter(|dir| dir.is_dir()).find_map(|dir| fs4::available_space(dir).ok());
        let disk = disk.or_else(|| fs4::available_space(Path::new(".")).ok());
        let models = store::list(&home);
        let unreachable = hub.reach().err().map(|e| e.to_string());
        let runs: Vec<_> = catalog
            .models
            .iter()
            .filter_map(|model| {
                let fits = |v: &&Variant| available.is_some_and(|available| model.memory(**v) <= available);
                let best = Variant::ALL.iter().rev().find(fits)?;
                Some((format!("{}-{best}", model.name), model.memory(*best)))
            })
            .collect();
        let isa = kernels.as_ref().ok().map(|k| k.isa);
        if self.json {
            let models: Vec<_> = models
                .iter()
                .map(|(name, bytes)| serde_json::json!({ "name": name, "bytes": bytes }))
                .collect();
            print_json(&serde_json::json!({
                "isa": isa, "isas": isas, "threads": threads, "memory_bytes": memory,
                "memory_available_bytes": available, "home": home, "disk_free_bytes": disk, "models": models,
                "hub": {
                    "endpoint": hub.endpoint, "offline": hub.offline, "token": hub.token.is_some(), "error": unreachable,
                },
                "runs": runs.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            }))?;
        } else {
            let size = |bytes: Option<u64>| bytes.map_or("unknown".into(), gigabytes);
            let mut text = String::new();
            let _ = writeln!(
                text,
                "kernels  {} of {}, {threads} threads",
                isa.unwrap_or("none"),
                isas.join(", ")
            );
            let _ = writeln!(text, "memory   {}, {} available", size(memory), size(available));
            let _ = writeln!(text, "disk     {} free for {}", size(disk), home.display());
            let token = if hub.token.is_some() { "with a token" } else { "no token" };
            let state = unreachable.as_deref().unwrap_or("answers");
            let _ = writeln!(text, "hub      {}, {token}: {state}", hub.endpoint);
            let _ = writeln!(text, "models   {}", models.len());
            for (name, bytes) in &models {
                let _ = writeln!(text, "           {name} {}", gigabytes(*bytes));
            }
            let _ = writeln!(
                text,
                "runs     with {CONTEXT} positions, in the memory that is available (predicted):"
            );
            for (name, memory) in &runs {
                let _ = writeln!(text, "           {name:28} {}", gigabytes(*memory));
            }
            print(&text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}"))?;
        }
        match kernels {
            Ok(_) => Ok(()),
            Err(e) => bail!(e),
        }
    }
}

/// A line of `/proc/meminfo`, in bytes; `None` on other systems.
fn meminfo(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
