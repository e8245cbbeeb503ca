//! `squish-quant synth`.

use super::{named, print, print_json, progress::Bar, report};
use anyhow::{Result, bail};
use clap::Args;
use squish_quant::{Recipe, Synthetic, peak_memory};
use std::path::PathBuf;

/// Write a checkpoint of a true model's shape with random weights, to measure speed and memory on.
///
/// The weights are drawn in packed form, so that no original is needed and billions of them take seconds. Layers are routed
/// as the recipe says; where it gives choices within a number of bits, the smallest are taken first, and then raised from
/// the most sensitive kinds of matrices on (v, k, embeddings and head, down, o, q, up, gate). The checkpoint carries
/// no certificate, and what it says means nothing.
///
/// With --json, prints what `inspect --json` prints of the output, and: notes, seconds (wall-clock time), peak_memory_bytes (largest
/// resident set; null where the system does not say).
#[derive(Debug, Args)]
pub struct Synth {
    /// A model's config.json, or a directory with one, or a name; of a directory, tokenizer files are copied as well.
    #[arg(long)]
    config: PathBuf,
    /// The directory to write; it must be absent or empty.
    #[arg(long)]
    out: PathBuf,
    /// A built-in recipe (see `recipes`) or a TOML file.
    #[arg(long, default_value = "sqint2")]
    recipe: String,
    /// Seed of the random codes: the same seed gives the same bytes.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Bits per parameter of all weights files; 0 for the recipe's fixed schemes; absent, the recipe's own target.
    #[arg(long)]
    target_bpw: Option<f64>,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

impl Synth {
    pub fn run(self) -> Result<()> {
        let mut recipe = Recipe::load(&self.recipe)?;
        match self.target_bpw {
            Some(0.0) => recipe.target_bits = None,
            Some(bits) if !(bits.is_finite() && bits > 0.0) => {
                bail!("--target-bpw is {bits}, expected a positive number, or 0")
            }
            Some(_) if recipe.rules.iter().all(|rule| rule.choices.is_empty()) => {
                bail!("recipe {} gives no choices to allocate bits by", recipe.name)
            }
            _ => {}
        }
        let target_bits = self.target_bpw.filter(|bits| *bits > 0.0);
        let config = if self.config.is_file() { self.config } else { named::original(&self.config)? };
        let bar = Bar::new(!self.json)?;
        let report = Synthetic { recipe, target_bits, seed: self.seed }.write(&config, &self.out, &bar)?;
        drop(bar);
        if self.json {
            let mut json = serde_json::to_value(&report)?;
            json["peak_memory_bytes"] = serde_json::json!(peak_memory());
            print_json(&json)
        } else {
            print(&report::compression(&report, &self.out))
        }
    }
}
