//! All cases beside the read bandwidth, from one interleaved run.

use crate::cases::{self, Case, SHAPES, THREADS};
use bytes::Bytes;
use std::{hint::black_box, time::Instant};

/// Rounds over all cases.
const ROUNDS: usize = 25;
/// Bytes that one measurement reads, at least.
const SAMPLE: usize = 24 << 20;

/// Prints the table.
pub fn print(memory: &Bytes) {
    println!(
        "\nGB/s of codes and scales, {ROUNDS} interleaved rounds. p5: a slow round, reached by 95 % of them."
    );
    println!("share: of what the machine read in the same rounds, medians.");
    for threads in THREADS {
        let pool = cases::pool(threads);
        for shape in SHAPES {
            let mut cases = Case::all(memory, shape);
            let (read, rates) = pool.install(|| rounds(memory, &mut cases));
            println!("\n{threads} threads, {} x {}", shape[0], shape[1]);
            println!(
                "{:>8} {:>7} {:>8} {:>8} {:>8} {:>7} {:>12}",
                "scheme", "isa", "median", "p5", "best", "share", "G weights/s"
            );
            println!(
                "{:>8} {:>7} {:>8.2} {:>8.2} {:>8.2}",
                "read",
                "",
                read.median(),
                read.slow(),
                read.best()
            );
            for (case, rates) in cases.iter().zip(rates) {
                let median = rates.median();
                let (share, weights) =
                    (median / read.median(), median * case.weights() as f64 / case.bytes() as f64);
                println!(
                    "{:>8} {:>7} {median:>8.2} {:>8.2} {:>8.2} {:>6.0}% {weights:>12.2}",
                    case.scheme,
                    case.kernels.isa,
                    rates.slow(),
                    rates.best(),
                    100.0 * share,
                );
            }
        }
    }
}

/// GB/s in ascending order.
struct Rates(Vec<f64>);

impl Rates {
    fn new(mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        Self(rates)
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn slow(&self) -> f64 {
        self.0[self.0.len() / 20]
    }

    fn best(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

/// The rates of reading and of each case.
fn rounds(memory: &Bytes, cases: &mut [Case]) -> (Rates, Vec<Rates>) {
    let gigabytes = |bytes: usize, start: Instant| bytes as f64 / start.elapsed().as_secs_f64() / 1e9;
    let (mut read, mut rates) = (Vec::new(), vec![Vec::new(); cases.len()]);
    for round in 0..ROUNDS {
        let from = round * SAMPLE % (memory.len() - SAMPLE);
        let start = Instant::now();
        black_box(cases::read(&memory[from..from + SAMPLE]));
        read.push(gigabytes(SAMPLE, start));
        for (case, rates) in cases.iter_mut().zip(&mut rates) {
            // The portable instances are far from any limit of memory: once is enough.
            let count = if case.kernels.isa == "scalar" { 1 } else { SAMPLE.div_ceil(case.bytes()) };
            let start = Instant::now();
            (0..count).for_each(|_| case.multiply());
            rates.push(gigabytes(count * case.bytes(), start));
        }
    }
    (Rates::new(read), rates.into_iter().map(Rates::new).collect())
}
