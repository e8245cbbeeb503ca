//! Trains the tables of levels of the trellis schemes on a Gaussian source, or measures those in use.
//!
//!     cargo run --release -p squish-quant --example train_trellis -- --bits 2,3,4,5 --seed 1
//!
//! A round encodes fresh samples with the table (Viterbi's search), and moves the level of each window to the mean of the
//! samples that were encoded by it. By itself that stops at the next best local optimum; so noise is added to the levels after each
//! round, at first as much as `--noise`, and less and less of it. The more rounds, the better the table. Then levels are rounded to int8: at several
//! steps, each with some rounds on many samples, the means rounded; the best is kept. Everything is repeated for
//! `--restarts` seeds. The same arguments give the same table, with any number of threads.
//!
//! `--rust` prints the tables in the form in which `kernels/src/scheme/trellis/tables.rs` holds them.

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;
use rayon::prelude::*;
use serde_json::json;
use squish_kernels::scheme::{
    TCQ2, TCQ3, TCQ4, TCQ5, Trellis,
    trellis::{self, LEVEL_UNIT, TILE_WEIGHTS},
};
use squish_quant::viterbi::Viterbi;

/// Trains the trellis schemes' tables on a Gaussian source.
#[derive(Debug, Parser)]
struct Cli {
    /// Bits a weight: which tables.
    #[arg(long, value_delimiter = ',', default_values_t = [2, 3, 4, 5], value_parser = bits)]
    bits: Vec<usize>,
    /// Where the random numbers begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tables to train, from as many seeds; the best is kept.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    restarts: u32,
    /// Rounds of encoding and averaging.
    #[arg(long, default_value_t = 16000, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Tiles of 256 samples for each round.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    tiles: u32,
    /// Standard deviation of the noise on the levels at first, of the source's.
    #[arg(long, default_value_t = 0.1, value_parser = noise)]
    noise: f64,
    /// Tiles to measure on, which nothing was trained or chosen on.
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u32).range(1..))]
    test_tiles: u32,
    /// Measure the tables in use instead.
    #[arg(long)]
    measure: bool,
    /// Print the tables as Rust constants.
    #[arg(long, conflicts_with = "json")]
    rust: bool,
    /// Print one JSON object for each table: bits, seed, step (a level's distance to the next, in standard deviations of the source), table,
    /// snr_db and scales, a list of snr_db for rows whose scale is that of the table times factor.
    #[arg(long)]
    json: bool,
}

fn bits(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bits @ 2..=5) => Ok(bits),
        _ => Err("must be 2, 3, 4 or 5".into()),
    }
}

fn noise(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(noise) if (0.0..=10.0).contains(&noise) => Ok(noise),
        _ => Err("must be between 0 and 10".into()),
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    for &bits in &cli.bits {
        let trained = if cli.measure { built_in(bits) } else { best(&cli, bits) };
        let test = Source { seed: !0, sigma: 1.0 / trained.step, tiles: cli.test_tiles as usize };
        let db = |factor: f64| {
            let source = Source { sigma: test.sigma / factor, ..test };
            encode(&Viterbi::new(bits, &trained.levels), bits, &source).db()
        };
        let snr_db = db(1.0);
        if cli.rust {
            print!("{}", constant(bits, &trained, snr_db));
        } else if cli.json {
            let scales: Vec<_> =
                FACTORS.iter().map(|&factor| json!({"factor": factor, "snr_db": db(factor)})).collect();
            let Integers { seed, step, levels } = &trained;
            let table = levels.as_slice();
            println!(
                "{}",
                json!({
                    "bits": bits, "seed": seed, "step": step, "table": table, "snr_db": snr_db, "scales": scales,
                })
            );
        } else {
            println!("{bits} bits: {snr_db:.3} dB at a step of {:.7} sigma", trained.step);
            for factor in FACTORS {
                println!("  scale x {factor:.2}: {:+.3} dB", db(factor) - snr_db);
            }
        }
    }
    Ok(())
}

/// Scales to measure at, of the table's own.
const FACTORS: [f64; 10] = [0.90, 0.94, 0.96, 0.98, 0.99, 1.01, 1.02, 1.04, 1.06, 1.10];

/// Tiles that are encoded by one thread at a time; it decides on the order of sums, so it is not to depend on the machine.
const CHUNK: usize = 64;

/// Standard deviation of the source, in units of the levels, as long as levels are not integers.
const SIGMA: f64 = 40.0;

/// Independent Gaussian samples: this many tiles of them.
#[derive(Debug, Clone, Copy)]
struct Source {
    seed: u64,
    /// Standard deviation, in units of the levels.
    sigma: f64,
    tiles: usize,
}

impl Source {
    fn chunk(&self, index: usize) -> Vec<[f32; TILE_WEIGHTS]> {
        let mut rng = StdRng::seed_from_u64(self.seed.wrapping_mul(1 << 20).wrapping_add(index as u64));
        let mut sample = || (self.sigma * rng.sample::<f64, _>(StandardNormal)) as f32;
        let tiles = CHUNK.min(self.tiles - index * CHUNK);
        (0..tiles).map(|_| std::array::from_fn(|_| sample())).collect()
    }
}

/// What samples came to, window by window.
struct Sums {
    samples: [f64; 256],
    count: [f64; 256],
    energy: f64,
    error: f64,
}

impl Sums {
    fn new() -> Self {
        Self { samples: [0.0; 256], count: [0.0; 256], energy: 0.0, error: 0.0 }
    }

    /// The mean of each window's samples, or this table's level where it had none.
    fn means(&self, levels: &[f32; 256]) -> [f64; 256] {
        std::array::from_fn(|w| {
            if self.count[w] > 0.0 { self.samples[w] / self.count[w] } else { f64::from(levels[w]) }
        })
    }

    /// The ratio of the samples to their error.
    fn db(&self) -> f64 {
        10.0 * (self.energy / self.error).log10()
    }
}

/// The search as training has it: which way the ring closes matters little to a table, and a look at half as far takes less time.
fn hasty(bits: usize, levels: [f32; 256]) -> Viterbi {
    Viterbi::with_levels(bits, levels).reach(96)
}

/// Encodes all of the source's samples.
fn encode(search: &Viterbi, bits: usize, source: &Source) -> Sums {
    let chunk = |viterbi: &mut Viterbi, index: usize| {
        let targets = source.chunk(index);
        let mut codes = vec![0; targets.len() * viterbi.tile_bytes()];
        let mut found = vec![[0.0; TILE_WEIGHTS]; targets.len()];
        viterbi.encode(&targets, &[1.0; 16], &mut codes, &mut found);
        let mut sums = Sums::new();
        for ((targets, found), code) in targets.iter().zip(&found).zip(codes.chunks(viterbi.tile_bytes())) {
            for ((&target, found), window) in targets.iter().zip(found).zip(trellis::windows(code, bits)) {
                sums.samples[usize::from(window)] += f64::from(target);
                sums.count[usize::from(window)] += 1.0;
                sums.energy += f64::from(target).powi(2);
                sums.error += f64::from(target - found).powi(2);
            }
        }
        sums
    };
    let chunks: Vec<_> =
        (0..source.tiles.div_ceil(CHUNK)).into_par_iter().map_init(|| search.clone(), chunk).collect();
    // In the order of the chunks, whichever thread had them.
    chunks.iter().fold(Sums::new(), |mut all, sums| {
        for w in 0..256 {
            all.samples[w] += sums.samples[w];
            all.count[w] += sums.count[w];
        }
        all.energy += sums.energy;
        all.error += sums.error;
        all
    })
}

/// A table of integers.
struct Integers {
    seed: u64,
    levels: [i8; 256],
    /// A level's distance to the next, in standard deviations of the source.
    step: f64,
}

fn built_in(bits: usize) -> Integers {
    let scheme: &Trellis = [&TCQ2, &TCQ3, &TCQ4, &TCQ5][bits - 2];
    Integers { seed: 0, levels: *scheme.table(), step: f64::from(scheme.gaussian_scale() / LEVEL_UNIT) }
}

/// The best table of all seeds.
fn best(cli: &Cli, bits: usize) -> Integers {
    let mut best: Option<(f64, Integers)> = None;
    for seed in (cli.seed..).take(cli.restarts as usize) {
        let levels = train(cli, bits, seed);
        let (db, integers) = round(bits, seed, &levels);
        eprintln!("{bits} bits, seed {seed}: {db:.3} dB");
        if best.as_ref().is_none_or(|(best, _)| db > *best) {
            best = Some((db, integers));
        }
    }
    best.expect("at least one start").1
}

/// The levels after all rounds, in units of the source's deviation over [`SIGMA`].
fn train(cli: &Cli, bits: usize, seed: u64) -> [f32; 256] {
    let mut rng = StdRng::seed_from_u64(seed);
    // Any start will do: the first rounds, noisy as they are, forget it.
    let mut levels: [f32; 256] =
        std::array::from_fn(|_| (SIGMA * rng.sample::<f64, _>(StandardNormal)) as f32);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}").expect("a valid template");
    let bar = ProgressBar::new(cli.rounds.into()).with_style(style);
    for round in 0..cli.rounds {
        let source = Source { seed: rng.random(), sigma: SIGMA, tiles: cli.tiles as usize };
        let sums = encode(&hasty(bits, levels), bits, &source);
        let left = 1.0 - f64::from(round) / (0.8 * f64::from(cli.rounds));
        let noise = SIGMA * cli.noise * left.max(0.0).powi(2);
        levels = sums.means(&levels).map(|mean| (mean + noise * rng.sample::<f64, _>(StandardNormal)) as f32);
        bar.set_message(format!("{bits} bits, seed {seed}: {:.3} dB", sums.db()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    levels
}

/// The best table of integers near these levels, with its ratio on samples that it was chosen on.
fn round(bits: usize, seed: u64, levels: &[f32; 256]) -> (f64, Integers) {
    let outermost = levels.iter().fold(0.0f32, |most, level| most.max(level.abs()));
    let mut best: Option<(f64, Integers)> = None;
    // Below 1 the outermost levels are cut off.
    for scale in [0.80, 0.85, 0.90, 0.95, 1.0] {
        let step = scale * f64::from(outermost) / (127.0 * SIGMA);
        let integer = |level: f64| level.round().clamp(-127.0, 127.0) as i8;
        let mut table = levels.map(|level| integer(f64::from(level) / (SIGMA * step)));
        for round in 0..8 {
            let source = Source { seed: !1 - round, sigma: 1.0 / step, tiles: 4096 };
            let levels = table.map(f32::from);
            table = encode(&hasty(bits, levels), bits, &source).means(&levels).map(integer);
        }
        let source = Source { seed: !9, sigma: 1.0 / step, tiles: 4096 };
        let db = encode(&hasty(bits, table.map(f32::from)), bits, &source).db();
        if best.as_ref().is_none_or(|(best, _)| db > *best) {
            best = Some((db, Integers { seed, levels: table, step }));
        }
    }
    best.expect("at least one step")
}

/// The table as the kernels' source has it.
fn constant(bits: usize, table: &Integers, snr_db: f64) -> String {
    let mut text = format!("/// {bits} bits a weight: {snr_db:.2} dB on a Gaussian.\n#[rustfmt::skip]\n");
    text += &format!("pub(super) static TABLE_{bits}: Table = Table {{\n    levels: [\n");
    for line in table.levels.chunks(16) {
        let numbers: Vec<_> = line.iter().map(|level| format!("{level:4}")).collect();
        text += &format!("        {},\n", numbers.join(", "));
    }
    text + &format!("    ],\n    step: {:?},\n}};\n\n", table.step as f32)
}
