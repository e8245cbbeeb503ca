//! How fast a model runs here: `cargo run --release --example bench -- --model DIR`.
//!
//! Tokens are taken in the order of their ids and what the model says is not looked at: what a step costs depends on their number
//! alone. So a checkpoint needs no tokenizer, and one with random weights (`squish-quant synth`) will do.

#[path = "../chat/device.rs"]
mod device;
#[path = "../chat/model_dir.rs"]
mod model_dir;
mod report;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use report::{Decoding, Rates, Report};
use squish_engine::hub;
use squish_models::{Arithmetic, Checkpoint, KvPolicy, Model, Session, SessionOptions};
use std::{process::ExitCode, time::Instant};

/// Measure a model: prefill, decoding at several depths of context, time to the first token, and memory.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    /// Directory of a checkpoint, squished or original; the name of one in assets/ or in $SQUISH_HOME/models; a name of the
    /// catalog (qwen2.5-7b-sqint2), or hf:org/repo[@rev]
    #[arg(long, default_value = "squish-tiny-sqint2")]
    model: String,

    /// Tokens of the prompt whose prefill is timed
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt: usize,

    /// Tokens that are decoded at each depth
    #[arg(long, value_name = "N", default_value_t = 32)]
    generate: usize,

    /// Tokens in the context before decoding; several may be given
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "0,1024")]
    depths: Vec<usize>,

    /// Where to compute; absent, on Metal where this is built with the feature `metal` and there is such a device, else on
    /// the CPU
    #[arg(long, value_name = "cpu|metal")]
    device: Option<device::DeviceChoice>,

    /// How keys and values are stored: auto (by the longest context), f32, f16, k8v8, k8v4, k4v4, ...
    #[arg(long, value_name = "MODE", default_value_t = KvPolicy::Auto)]
    kv: KvPolicy,

    /// How often everything is measured; medians are reported
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Threads; absent, one for each core that the system shows
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Products in decoding and prefill
    #[arg(long, value_enum, default_value_t = Products::Int8)]
    arithmetic: Products,

    /// Print one JSON object
    ///
    /// Its fields: model; device (cpu or metal); isa (the processor kernels' instruction set); threads; arithmetic; kv (how keys and values are stored); rounds; file_bytes;
    /// bytes_per_token (of weights, read for one token); load_seconds (from the program's start until the model is
    /// there); first_token_seconds (from the program's start until one token went through it); prefill (tokens,
    /// tokens_per_second); decode (for each depth: depth, tokens, tokens_per_second, gigabytes_per_second of weights);
    /// peak_bytes (largest resident set; null where the system does not say). Rates are objects: median, least, most.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Products {
    /// Inputs rounded to eight bits, products of integers
    Int8,
    /// Everything in f32
    F32,
}

fn main() -> ExitCode {
    let start = Instant::now();
    squish_models::keep_freed_memory();
    match run(&Args::parse(), start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<hub::Error>() {
                Some(absent @ hub::Error::Absent(_)) => eprintln!("{absent}"),
                _ => eprintln!("error: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, start: Instant) -> Result<()> {
    if args.prompt == 0 || args.generate == 0 || args.rounds == 0 || args.threads == Some(0) {
        bail!("--prompt, --generate, --rounds and --threads are at least 1");
    }
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let dir = model_dir::resolve(&args.model)?;
    let mut checkpoint = Checkpoint::open(&dir)?;
    checkpoint.set_arithmetic(match args.arithmetic {
        Products::Int8 => Arithmetic::Int8,
        Products::F32 => Arithmetic::F32,
    });
    let device = device::chosen(args.device)?;
    let model = Model::from_checkpoint(&checkpoint, &device)?;
    drop(checkpoint);
    let load = start.elapsed();
    let ids = Ids(model.config().vocab_size);
    model.session().feed(&ids.some(1))?;
    device.synchronize()?;
    let first_token = start.elapsed();

    let limit = model.config().context_length;
    let longest = args.depths.iter().max().map_or(0, |depth| depth + args.generate + 1);
    if limit < longest.max(args.prompt) {
        bail!("the model's context holds {limit} tokens, {} are asked for", longest.max(args.prompt));
    }
    let options =
        SessionOptions { kv: args.kv, context: Some(longest.max(args.prompt)), ..Default::default() };
    let session = || model.session_with(options);
    // Contexts are filled once, and the prompt taken once before it counts. The rounds go over all measurements, so that what else the machine does falls on all alike.
    let mut sessions = Vec::new();
    for &depth in &args.depths {
        let mut session = session()?;
        // One token more, which is taken back: kernels are chosen, and the weights come into memory.
        session.feed(&ids.some(depth + 1)).with_context(|| format!("a context of {depth} tokens"))?;
        session.truncate(depth);
        sessions.push(session);
    }
    let prompt = ids.some(args.prompt);
    session()?.feed(&prompt)?;
    // Time counts until a device is done.
    device.synchronize()?;
    let (mut prefill, mut decode) = (Rates::new(), vec![Rates::new(); sessions.len()]);
    for _ in 0..args.rounds {
        let mut session = session()?;
        let start = Instant::now();
        session.feed(&prompt)?;
        device.synchronize()?;
        prefill.push(args.prompt, start);
        for (session, rates) in sessions.iter_mut().zip(&mut decode) {
            let depth = session.len();
            let start = Instant::now();
            steps(session, ids, args.generate)?;
            rates.push(args.generate, start);
            session.truncate(depth);
        }
    }

    let inspection = squish_quant::inspect(&dir)?;
    let bytes_per_token = report::bytes_per_token(&inspection);
    let decode = args.depths.iter().zip(&decode).map(|(&depth, rates)| Decoding {
        depth,
        tokens: args.generate,
        tokens_per_second: rates.summary(),
        gigabytes_per_second: rates.summary().scaled(bytes_per_token as f64 / 1e9),
    });
    let report = Report {
        model: dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned(),
        device: if device.is_cpu() { "cpu" } else { "metal" },
        isa: squish_kernels::arch::kernels()?.isa,
        threads: rayon::current_num_threads(),
        arithmetic: format!("{:?}", args.arithmetic).to_lowercase(),
        kv: model.kv_mode(&options)?.to_string(),
        rounds: args.rounds,
        file_bytes: inspection.file_bytes,
        bytes_per_token,
        load_seconds: load.as_secs_f64(),
        first_token_seconds: first_token.as_secs_f64(),
        prefill: report::Prefill { tokens: args.prompt, tokens_per_second: prefill.summary() },
        decode: decode.collect(),
        peak_bytes: squish_quant::peak_memory(),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// As if each token were chosen from the one before: its logits are in memory before the next begins.
fn steps(session: &mut Session, ids: Ids, count: usize) -> Result<()> {
    for id in ids.some(count) {
        session.advance(&[id])?;
    }
    Ok(())
}

/// The ids of a vocabulary of so many.
#[derive(Clone, Copy)]
struct Ids(usize);

impl Ids {
    /// So many of them, in ascending order, over and over.
    fn some(self, count: usize) -> Vec<u32> {
        (0..self.0 as u32).cycle().take(count).collect()
    }
}
