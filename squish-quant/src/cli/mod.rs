//! The command line: one line on standard error and a non-zero exit code for whatever goes wrong.

mod batch;
mod batch_list;
mod command_line;
mod doctor;
mod eval;
mod from_hub;
mod machine;
mod memory_size;
mod models;
mod named;
mod obtain;
mod progress;
mod pull;
mod push;
mod report;
mod scan;
mod smoke;
mod synth;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use command_line::command_line;
use progress::Bar;
use squish_models::{KvMode, KvPolicy};
use squish_quant::{
    Options, Recipe, Target, Windows,
    calibrate::text::{Amount, Text},
    compress,
    eval::Conditions,
    inspect, perplexity,
};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Compresses Hugging Face checkpoints to 2, 3 or 4 bits a weight, and measures what came of it.
#[derive(Debug, Parser)]
#[command(name = "squish-quant", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compress(Compress),
    Inspect(Inspect),
    Perplexity(Perplexity),
    Eval(eval::Eval),
    Smoke(smoke::Smoke),
    Synth(synth::Synth),
    Recipes(Recipes),
    Doctor(doctor::Doctor),
    Scan(scan::Scan),
    Pull(pull::Pull),
    Push(push::Push),
    Batch(batch::Batch),
    List(models::List),
    Show(models::Show),
    #[command(name = "rm")]
    Remove(models::Remove),
}

/// Compress a checkpoint directory.
///
/// With --json, prints what `inspect --json` prints of the output, and: memory (with --fit: context, kv, and the bytes of
/// weights_bytes, kv_cache_bytes, working_bytes while it runs), notes (what a person should know of single tensors), seconds (wall-clock time), peak_memory_bytes (largest resident set; null where the
/// system does not say).
#[derive(Debug, Args)]
struct Compress {
    /// A directory with config.json and safetensors weights in bf16, f16 or f32, or the name of an original that is on this machine.
    source: PathBuf,
    /// The directory to write; it must be absent or empty.
    #[arg(long)]
    out: PathBuf,
    /// A built-in recipe (see `recipes`) or a TOML file.
    #[arg(long, default_value = "sqint2")]
    recipe: String,
    /// Seed of the rotations' signs; absent, the recipe's.
    #[arg(long)]
    seed: Option<u64>,
    /// Rank of a low-rank correction for every `nf2` matrix; absent, the recipe's.
    #[arg(long)]
    rank: Option<usize>,
    /// Fraction of the weights in a sparse correction for every `nf2` matrix; absent, the recipe's.
    #[arg(long)]
    sparse: Option<f64>,
    /// Text to calibrate on: a UTF-8 file, `self` for text that the model writes, or `none`; absent, `self`
    /// where the recipe asks for calibration.
    #[arg(long)]
    calibrate: Option<String>,
    /// Windows of the calibration text, spread evenly over it.
    #[arg(long, default_value_t = Amount::default().windows)]
    calibration_windows: usize,
    /// Tokens of a calibration window.
    #[arg(long, default_value_t = Amount::default().window)]
    calibration_window: usize,
    /// Bits per parameter of all weights files, within which the recipe's schemes are allocated by measured
    /// sensitivity; 0 for the recipe's fixed schemes; absent, the recipe's own target.
    #[arg(long)]
    target_bpw: Option<f64>,
    /// As --target-bpw, with as many bits as fit into this memory while the model runs: 4GB, 3.5GiB, a number of bytes.
    #[arg(long, value_name = "MEMORY", value_parser = memory_size::parse, conflicts_with = "target_bpw")]
    fit: Option<usize>,
    /// Positions that --fit leaves room for; absent, 8192, or the model's own if it has fewer.
    #[arg(long, requires = "fit")]
    context: Option<usize>,
    /// How --fit counts keys and values: auto, for the mode that loses least together with the weights it leaves room for; f32, f16,
    /// k8v8, k8v4, ... (docs/kv_cache.md).
    #[arg(long, value_name = "MODE", requires = "fit", default_value_t = KvPolicy::Auto)]
    kv: KvPolicy,
    /// Take the recipe even where the model's family is known not to bear it.
    #[arg(long)]
    force_recipe: bool,
    /// A squished checkpoint of this source by this recipe, whose certificate states a divergence (`eval --task kl
    /// --certify`) that the family's guard accepts: then the recipe needs no force.
    #[arg(long, conflicts_with = "force_recipe")]
    certified: Option<PathBuf>,
    /// Split weights files above this many bytes.
    #[arg(long, default_value_t = 5_000_000_000)]
    max_shard_bytes: usize,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// Print tensors, schemes, shapes, true bits and signal-to-noise ratios of a checkpoint.
///
/// With --json: architecture, recipe and tool (squished checkpoints only), parameters (weights of the model), file_bytes
/// (all weights files), bits_per_parameter (8 file_bytes / parameters), tensors: each name, scheme, shape, bytes
/// (all that is stored for it), bits_per_weight, and where they apply group, rotation (block, seed), low_rank (rank,
/// left, right, gain_db), sparse (entries, gain_db), snr_db (against the original weights, when packed); certificate,
/// where there is one: parameters, file_bytes, bits_per_parameter, and what was recorded of command, original (name,
/// sha256), calibration (name, sha256, windows, window), measurements: each what, data (name, sha256), against (name, sha256),
/// values (the numbers of `eval --json`), tool, command.
#[derive(Debug, Args)]
struct Inspect {
    /// A checkpoint directory, squished or original, or a name (`list`).
    dir: PathBuf,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// Measure nats per token on a text.
///
/// With --json: nll (mean negative log-likelihood of a predicted token, in nats), perplexity (exp of it), tokens (predicted
/// tokens: all but the first of each window), windows (used), window (tokens of one), decode (whether fed
/// one at a time), kv (how keys and values were stored), bos (whether windows began with a BOS), seconds (of the forward passes).
#[derive(Debug, Args)]
struct Perplexity {
    /// A checkpoint directory, squished or original, or a name (`list`).
    dir: PathBuf,
    /// A UTF-8 text file.
    #[arg(long)]
    text: PathBuf,
    /// Tokens of a window; each window is a context of its own.
    #[arg(long, default_value_t = 1024)]
    window: usize,
    /// Number of windows, from the beginning of the text; absent, all of it.
    #[arg(long)]
    windows: Option<usize>,
    /// Feed one token at a time, in the integer arithmetic in which answers are written; absent, windows as a whole, in f32.
    #[arg(long)]
    decode: bool,
    /// How keys and values are stored: f32, f16, k8v8, k8v4, ... (docs/kv_cache.md).
    #[arg(long, value_name = "MODE", default_value_t = KvMode::F32)]
    kv: KvMode,
    /// Begin each window with the BOS that the checkpoint's prompts begin with, if it has one.
    #[arg(long)]
    bos: bool,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// List the built-in recipes, or print one to start your own from.
#[derive(Debug, Args)]
struct Recipes {
    /// The recipe to print.
    name: Option<String>,
}

pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough (`| head`) is no failure.
        Err(e)
            if e.downcast_ref::<std::io::Error>()
                .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(e) => {
            // Every error names its cause in its own message. Names from files may hold line breaks and
            // escape sequences, which must not reach the terminal.
            match e.downcast_ref::<squish_hub::Error>() {
                Some(absent @ squish_hub::Error::Absent(_)) => eprintln!("{absent}"),
                _ => eprintln!("error: {}", e.to_string().replace(char::is_control, "\u{fffd}")),
            }
            if e.is::<scan::Refused>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Compress(args) => args.run(),
        Command::Inspect(args) => {
            let inspection = inspect(&named::model(&args.dir)?)?;
            if args.json { print_json(&inspection) } else { print(&report::inspection(&inspection)) }
        }
        Command::Perplexity(args) => {
            let bar = Bar::new(!args.json)?;
            let windows = Windows { size: args.window, count: args.windows };
            let conditions = Conditions { decode: args.decode, kv: args.kv, bos: args.bos };
            let measured = perplexity(&named::model(&args.dir)?, &args.text, windows, conditions, &bar)?;
            drop(bar);
            if args.json { print_json(&measured) } else { print(&report::perplexity(&measured)) }
        }
        Command::Eval(args) => args.run(),
        Command::Smoke(args) => args.run(),
        Command::Synth(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Scan(args) => args.run(),
        Command::Pull(args) => args.run(),
        Command::Push(args) => args.run(),
        Command::Batch(args) => args.run(),
        Command::List(args) => args.run(),
        Command::Show(args) => args.run(),
        Command::Remove(args) => args.run(),
        Command::Recipes(Recipes { name: None }) => print(&report::recipes()?),
        Command::Recipes(Recipes { name: Some(name) }) => {
            let text = Recipe::text(&name).with_context(|| format!("no built-in recipe `{name}`"))?;
            print(text)
        }
    }
}

impl Compress {
    fn run(self) -> Result<()> {
        let mut recipe = Recipe::load(&self.recipe)?;
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        if let Some(fraction) = self.sparse.filter(|f| !(0.0..0.5).contains(f)) {
            anyhow::bail!("--sparse is {fraction}, expected at least 0 and below 0.5");
        }
        for rule in recipe.rules.iter_mut().filter(|rule| rule.scheme == "nf2") {
            rule.rank = self.rank.unwrap_or(rule.rank);
            rule.sparse = self.sparse.unwrap_or(rule.sparse);
        }
        let target = match (self.target_bpw, self.fit) {
            (Some(bits), _) if !(bits.is_finite() && bits >= 0.0) => {
                anyhow::bail!("--target-bpw is {bits}, expected a positive number, or 0")
            }
            (Some(0.0), _) => {
                recipe.target_bits = None;
                None
            }
            (Some(bits), _) => Some(Target::BitsPerParameter(bits)),
            (None, Some(limit)) => Some(Target::Memory { limit, context: self.context, kv: self.kv }),
            (None, None) => None,
        };
        if target.is_some() {
            if recipe.rules.iter().all(|rule| rule.choices.is_empty()) {
                anyhow::bail!("recipe {} gives no choices to allocate bits by", recipe.name);
            }
            recipe.calibrate = true;
        }
        if self.calibration_windows == 0 {
            anyhow::bail!("--calibration-windows is 0, expected at least 1");
        }
        let amount = Amount { window: self.calibration_window, windows: self.calibration_windows };
        let mut options = Options {
            target,
            max_shard_bytes: self.max_shard_bytes,
            amount,
            command: Some(command_line(&["--out"])),
            force_recipe: self.force_recipe,
            certified: self.certified.as_deref().map(named::model).transpose()?,
            ..Options::new(recipe)
        };
        match self.calibrate.as_deref() {
            Some("none") if target.is_some() => {
                anyhow::bail!("--target-bpw and --fit need a calibration text")
            }
            Some("none") => options = Options { calibration: None, ..options },
            Some("self") => options.calibration = Some(Text::SelfWritten),
            Some(file) => options.calibration = Some(Text::File(file.into())),
            None => {}
        }
        let bar = Bar::new(!self.json)?;
        let report = compress(&named::original(&self.source)?, &self.out, &options, &bar)?;
        drop(bar);
        if self.json {
            let mut json = serde_json::to_value(&report)?;
            json["peak_memory_bytes"] = serde_json::json!(squish_quant::peak_memory());
            print_json(&json)
        } else {
            print(&report::compression(&report, Path::new(&self.out)))
        }
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}
