//! Trains the codebooks of the trellis schemes on a Gaussian source, or measures those in use.
//!
//!     cargo run --release -p squish-quant --example train_trellis -- --bits 2,3,4,5 --seed 1
//!
//! A codebook is two tables of 16 bytes whose sum, or exclusive or, is the level, and both wrap around; so the best one cannot be
//! computed from means: it is searched by simulated annealing. A round changes an entry (or exchanges two), finds the least error that
//! paths of the changed codebook leave of the same samples, and keeps the change if the ratio of signal to error rises, or, with a
//! probability that falls with the temperature, if it does not. The last quarter of the rounds is taken on four times as many samples,
//! so that what is chosen suits the source and not the sample. Everything is repeated for `--restarts` seeds. The same arguments give
//! the same codebook, with any number of threads.
//!
//! `--rust` prints the codebooks in the form in which `kernels/src/scheme/trellis/tables.rs` holds them.

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use pulp::Arch;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;
use rayon::prelude::*;
use serde_json::json;
use squish_kernels::scheme::{
    TCQ2, TCQ3, TCQ4, TCQ5, Trellis,
    trellis::{Codebook, LEVEL_UNIT, TILE_WEIGHTS, WINDOW_BITS},
};
use squish_quant::viterbi::Viterbi;

/// Trains the trellis schemes' codebooks on a Gaussian source.
#[derive(Debug, Parser)]
struct Cli {
    /// Bits a weight: which codebooks.
    #[arg(long, value_delimiter = ',', default_values_t = [2, 3, 4, 5], value_parser = bits)]
    bits: Vec<usize>,
    /// Where the random numbers begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Codebooks to train, from as many seeds; the best is kept.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    restarts: u32,
    /// Changes to try.
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Tiles of 256 samples that a change is judged on.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    tiles: u32,
    /// Temperature at first, in decibels.
    #[arg(long, default_value_t = 0.02, value_parser = temperature)]
    temperature: f64,
    /// Begin with the codebooks in use, not with random ones; a temperature of 0.002 suits that.
    #[arg(long)]
    refine: bool,
    /// Tiles to measure on, which nothing was trained or chosen on.
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u32).range(1..))]
    test_tiles: u32,
    /// Measure the codebooks in use instead.
    #[arg(long)]
    measure: bool,
    /// Print the codebooks as Rust constants.
    #[arg(long, conflicts_with = "json")]
    rust: bool,
    /// Print one JSON object for each codebook: bits, seed, step (a level's distance to the next, in standard deviations of the source), low, high,
    /// snr_db and scales, a list of snr_db for rows whose scale is that of the codebook times factor.
    #[arg(long)]
    json: bool,
}

fn bits(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bits @ 2..=5) => Ok(bits),
        _ => Err("must be 2, 3, 4 or 5".into()),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(temperature) if (0.0..=10.0).contains(&temperature) => Ok(temperature),
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
            ratio(bits, &trained.codebook, &source.samples())
        };
        let snr_db = db(1.0);
        if cli.rust {
            print!("{}", constant(bits, &trained, snr_db));
        } else if cli.json {
            let scales: Vec<_> =
                FACTORS.iter().map(|&factor| json!({"factor": factor, "snr_db": db(factor)})).collect();
            let Trained { seed, step, codebook } = &trained;
            println!(
                "{}",
                json!({
                    "bits": bits, "seed": seed, "step": step, "low": codebook.low(), "high": codebook.high(),
                    "snr_db": snr_db, "scales": scales,
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

/// Scales to measure at, of the codebook's own.
const FACTORS: [f64; 10] = [0.90, 0.94, 0.96, 0.98, 0.99, 1.01, 1.02, 1.04, 1.06, 1.10];

/// Tiles that are encoded by one thread at a time; it decides on the order of sums, so it is not to depend on the machine.
const CHUNK: usize = 32;

/// A level's distance to the next, in standard deviations of the source, for 2, 3, 4 and 5 bits: the finest at which the outermost levels that
/// a free choice of 256 would take are still bytes.
const STEPS: [f64; 4] = [0.0236, 0.0258, 0.0293, 0.0305];

/// Independent Gaussian samples: this many tiles of them.
#[derive(Debug, Clone, Copy)]
struct Source {
    seed: u64,
    /// Standard deviation, in units of the levels.
    sigma: f64,
    tiles: usize,
}

type Tile = [f32; TILE_WEIGHTS];

impl Source {
    /// The samples, in chunks.
    fn samples(&self) -> Vec<Vec<Tile>> {
        let chunk = |index: usize| {
            let mut rng = StdRng::seed_from_u64(self.seed.wrapping_mul(1 << 20).wrapping_add(index as u64));
            let mut sample = || (self.sigma * rng.sample::<f64, _>(StandardNormal)) as f32;
            let tiles = CHUNK.min(self.tiles - index * CHUNK);
            (0..tiles).map(|_| std::array::from_fn(|_| sample())).collect()
        };
        (0..self.tiles.div_ceil(CHUNK)).into_par_iter().map(chunk).collect()
    }
}

/// The ratio of the samples to the error that their codes leave, in decibels.
fn ratio(bits: usize, codebook: &Codebook, samples: &[Vec<Tile>]) -> f64 {
    let search = Viterbi::new(bits, codebook);
    let chunk = |viterbi: &mut Viterbi, targets: &Vec<Tile>| {
        let mut codes = vec![0; targets.len() * viterbi.tile_bytes()];
        let mut found = vec![[0.0; TILE_WEIGHTS]; targets.len()];
        viterbi.encode(targets, &[1.0; 16], &mut codes, &mut found);
        let pairs = || targets.as_flattened().iter().zip(found.as_flattened());
        let energy = pairs().map(|(target, _)| f64::from(*target).powi(2)).sum::<f64>();
        (energy, pairs().map(|(target, found)| f64::from(target - found).powi(2)).sum::<f64>())
    };
    decibels(samples.par_iter().map_init(|| search.clone(), chunk).collect())
}

/// The same for paths that need not close, each as long as a chunk, without the codes: a fraction of the time.
fn open_ratio(bits: usize, codebook: &Codebook, samples: &[Vec<Tile>]) -> f64 {
    let (windows, symbols) = (1 << WINDOW_BITS, 1 << bits);
    // The window of the state after it and the symbol that it drops: those of one symbol side by side.
    let level = |symbol| move |state: usize| f32::from(codebook.level((state << bits | symbol) as u16));
    let levels: Vec<f32> =
        (0..symbols).flat_map(|symbol| (0..windows / symbols).map(level(symbol))).collect();
    let chunk = |targets: &Vec<Tile>| {
        let samples = targets.as_flattened();
        let error = Arch::new().dispatch(|| least_error(bits, &levels, samples));
        (samples.iter().map(|target| f64::from(*target).powi(2)).sum(), error)
    };
    decibels(samples.par_iter().map(chunk).collect())
}

/// The least error of any path, forwards through the trellis.
#[inline(always)]
fn least_error(bits: usize, levels: &[f32], samples: &[f32]) -> f64 {
    let states = levels.len() >> bits;
    // The costs of the states before, those that end in the same symbol side by side, and of those after.
    let (mut before, mut after) = (vec![0f32; states], vec![0f32; states]);
    let same_symbol = states >> bits;
    let mut total = 0.0;
    for (i, &sample) in samples.iter().enumerate() {
        after.fill(f32::MAX);
        for (levels, before) in levels.chunks_exact(states).zip(before.chunks_exact(same_symbol)) {
            for (levels, after) in levels.chunks_exact(same_symbol).zip(after.chunks_exact_mut(same_symbol)) {
                for ((level, before), after) in levels.iter().zip(before).zip(after) {
                    let cost = before + (sample - level) * (sample - level);
                    *after = if cost < *after { cost } else { *after };
                }
            }
        }
        // Sums stay small: only their differences matter.
        let least = if i % 64 == 63 { after.iter().copied().fold(f32::MAX, f32::min) } else { 0.0 };
        total += f64::from(least);
        for (symbol, before) in before.chunks_exact_mut(same_symbol).enumerate() {
            for (state, before) in before.iter_mut().enumerate() {
                *before = after[state << bits | symbol] - least;
            }
        }
    }
    total + f64::from(before.iter().copied().fold(f32::MAX, f32::min))
}

/// Of energies and errors, in the order of the chunks, whichever thread had them.
fn decibels(sums: Vec<(f64, f64)>) -> f64 {
    let (energy, error) =
        sums.iter().fold((0.0, 0.0), |(energy, error), sums| (energy + sums.0, error + sums.1));
    10.0 * f64::log10(energy / error)
}

/// A codebook, and what it was trained for.
struct Trained {
    seed: u64,
    codebook: Codebook,
    /// A level's distance to the next, in standard deviations of the source.
    step: f64,
}

fn built_in(bits: usize) -> Trained {
    let scheme: &Trellis = [&TCQ2, &TCQ3, &TCQ4, &TCQ5][bits - 2];
    Trained { seed: 0, codebook: *scheme.codebook(), step: f64::from(scheme.gaussian_scale() / LEVEL_UNIT) }
}

/// The best codebook of all seeds.
fn best(cli: &Cli, bits: usize) -> Trained {
    let step = STEPS[bits - 2];
    let judge = Source { seed: !9, sigma: 1.0 / step, tiles: 1024 }.samples();
    let mut best: Option<(f64, Trained)> = None;
    for seed in (cli.seed..).take(cli.restarts as usize) {
        let codebook = anneal(cli, bits, seed);
        let db = open_ratio(bits, &codebook, &judge);
        eprintln!("{bits} bits, seed {seed}: {db:.3} dB");
        if best.as_ref().is_none_or(|(best, _)| db > *best) {
            best = Some((db, Trained { seed, codebook, step }));
        }
    }
    best.expect("at least one start").1
}

/// The two tables while they are changed.
#[derive(Clone, Copy)]
struct Tables([[i8; 16]; 2]);

impl Tables {
    /// Both halves of the samples' deviation.
    fn random(rng: &mut StdRng, sigma: f64) -> Self {
        let mut entry = || (0.7 * sigma * rng.sample::<f64, _>(StandardNormal)) as i8;
        Self(std::array::from_fn(|_| std::array::from_fn(|_| entry())))
    }

    /// With one change: a bit flipped, two entries exchanged, an entry moved by up to about `reach`, or an entry drawn anew.
    fn changed(mut self, rng: &mut StdRng, reach: f64) -> Self {
        let table = &mut self.0[rng.random_range(0..2)];
        let (i, j) = (rng.random_range(0..16), rng.random_range(0..16));
        match rng.random_range(0..4) {
            0 => table[i] ^= 1 << rng.random_range(0..8),
            1 => table.swap(i, j),
            2 => table[i] = rng.random(),
            _ => {
                table[i] = table[i].wrapping_add((reach * rng.sample::<f64, _>(StandardNormal)).round() as i8)
            }
        }
        self
    }

    /// The codebook, if these are tables of one.
    fn codebook(&self, bits: usize) -> Option<Codebook> {
        let [low, high] = self.0;
        Codebook::try_new(bits, low, high)
    }
}

fn anneal(cli: &Cli, bits: usize, seed: u64) -> Codebook {
    let mut rng = StdRng::seed_from_u64(seed);
    let sigma = 1.0 / STEPS[bits - 2];
    let source = Source { seed: rng.random(), sigma, tiles: cli.tiles as usize };
    let mut samples = source.samples();
    let in_use = built_in(bits).codebook;
    let mut tables = match cli.refine {
        true => Tables([*in_use.low(), *in_use.high()]),
        false => Tables::random(&mut rng, sigma),
    };
    while tables.codebook(bits).is_none() {
        tables = Tables::random(&mut rng, sigma);
    }
    let db = |tables: &Tables, samples: &[Vec<Tile>]| {
        tables.codebook(bits).map_or(f64::NEG_INFINITY, |codebook| open_ratio(bits, &codebook, samples))
    };
    let mut now = db(&tables, &samples);
    let mut best = (now, tables);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}").expect("a valid template");
    let bar = ProgressBar::new(cli.rounds.into()).with_style(style);
    let last_quarter = cli.rounds - cli.rounds / 4;
    for round in 0..cli.rounds {
        if round == last_quarter {
            samples = Source { seed: rng.random(), tiles: 4 * source.tiles, ..source }.samples();
            tables = best.1;
            now = db(&tables, &samples);
            best.0 = now;
        }
        let left = 1.0 - f64::from(round) / f64::from(cli.rounds);
        let next = tables.changed(&mut rng, 2.0 + 12.0 * left);
        let found = db(&next, &samples);
        let chance = ((found - now) / (cli.temperature * left.powi(2)).max(1e-6)).exp();
        if found >= now || rng.random::<f64>() < chance {
            (tables, now) = (next, found);
            if now > best.0 {
                best = (now, tables);
            }
        }
        if round.is_multiple_of(64) {
            bar.set_message(format!("{bits} bits, seed {seed}: {now:.3} dB"));
            bar.set_position(round.into());
        }
    }
    bar.finish_and_clear();
    best.1.codebook(bits).expect("tables of a codebook were kept")
}

/// The codebook as the kernels' source has it.
fn constant(bits: usize, trained: &Trained, snr_db: f64) -> String {
    let table = |table: &[i8; 16]| table.map(|level| format!("{level:4}")).join(", ");
    let (low, high) = (table(trained.codebook.low()), table(trained.codebook.high()));
    format!(
        "/// {bits} bits a weight: {snr_db:.2} dB on a Gaussian.\n#[rustfmt::skip]\n\
         pub(super) static TABLE_{bits}: Table = Table {{\n    codebook: Codebook::new(\n        {bits},\n        [{low}],\n        [{high}],\n    ),\n    \
         step: {:?},\n}};\n\n",
        trained.step as f32
    )
}
