//! A bounded run of the targets in `fuzz/`: the same functions, on random changes of the same inputs, with no coverage to guide them. Longer
//! runs are those of `fuzz/check`; docs/security.md has their results.

#[path = "../../fuzz/src/hub.rs"]
mod hub;
#[path = "../../fuzz/src/models.rs"]
mod models;
#[path = "../../fuzz/src/scratch.rs"]
mod scratch;
#[path = "../../fuzz/src/seeds.rs"]
mod seeds;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Shows the input that a target panics at.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input: b\"{}\"", self.0.escape_ascii());
        }
    }
}

/// Runs a target on its inputs' changes, this many.
fn run(name: &str, target: fn(&[u8]), count: usize) {
    let seeds: Vec<_> = seeds::seeds().into_iter().filter(|(target, _)| *target == name).collect();
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..count {
        let [(_, input), (_, other)] = [(); 2].map(|()| seeds.choose(&mut rng).expect("an input"));
        let mut input = input.clone();
        for _ in 0..rng.random_range(1..5) {
            change(&mut input, other, &mut rng);
        }
        let _shown = Shown(&input);
        target(&input);
    }
}

/// One change: bits of a byte, a byte drawn anew, bytes taken out or repeated, the end cut off, or a piece of another input put in.
fn change(input: &mut Vec<u8>, other: &[u8], rng: &mut StdRng) {
    if input.is_empty() {
        input.extend(other);
        return;
    }
    let at = rng.random_range(0..input.len());
    let end = (at + rng.random_range(1..33)).min(input.len());
    match rng.random_range(0..6) {
        0 => input[at] ^= 1 << rng.random_range(0..8),
        1 => input[at] = rng.random(),
        2 => drop(input.drain(at..end)),
        3 => input.extend_from_within(at..end),
        4 => input.truncate(at),
        _ => {
            let from = rng.random_range(0..=other.len());
            let to = (from + 32).min(other.len());
            input.splice(at..at, other[from..to].iter().copied());
        }
    }
}

#[test]
fn weights() {
    run("weights", models::weights, 500);
}

#[test]
fn template() {
    run("template", models::template, 100);
}

#[test]
fn pickle() {
    run("pickle", hub::pickle, 5000);
}

#[test]
fn scan() {
    run("scan", hub::scan, 5000);
}

#[test]
fn catalog() {
    run("catalog", hub::catalog, 5000);
}

#[test]
fn names() {
    run("names", hub::names, 1000);
}
