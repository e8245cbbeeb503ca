//! Choosing the next token from the logits.

use std::cmp::Ordering;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::{Error, GenerationOptions, Result};

/// Draws tokens as [`GenerationOptions`] say.
///
/// The steps, each on what the one before left (the order and meaning of Hugging Face transformers):
///
/// 1. *repetition penalty* `r`: for every token seen so far, prompt included, a logit `l` becomes
///    `l / r` if positive and `l * r` if negative;
/// 2. *temperature* `t`: `l / t`. With `t = 0` the largest logit wins (the lowest id of equals);
/// 3. *top-k*: tokens below the k-th largest logit go; ties with it stay;
/// 4. *top-p*: sorted by falling probability (ties by id), tokens remain up to and including the one
///    at which the sum reaches `p`;
/// 5. *min-p*: tokens less probable than `min_p` times the likeliest go.
///
/// One 53-bit uniform number is drawn per token, from ChaCha12 with the seed, so a sequence of
/// choices is the same on every machine that computes the same logits.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: GenerationOptions,
    rng: ChaCha12Rng,
    /// Distinct tokens seen, for the penalty.
    seen: Vec<u32>,
    is_seen: Vec<bool>,
    scores: Vec<f32>,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    logit: f32,
}

impl Sampler {
    /// A sampler for one text. `seed` takes the place of [`GenerationOptions::seed`], which may be
    /// absent.
    ///
    /// # Errors
    /// [`Error::Option`] if an option lies outside its range.
    pub fn new(options: &GenerationOptions, seed: u64) -> Result<Self> {
        options.validate()?;
        Ok(Sampler {
            options: options.clone(),
            rng: ChaCha12Rng::seed_from_u64(seed),
            seen: Vec::new(),
            is_seen: Vec::new(),
            scores: Vec::new(),
            candidates: Vec::new(),
        })
    }

    /// Counts `tokens` as part of the text, for the repetition penalty.
    pub fn observe(&mut self, tokens: &[u32]) {
        if self.options.repetition_penalty == 1.0 {
            return;
        }
        for &token in tokens {
            let index = token as usize;
            if index >= self.is_seen.len() {
                self.is_seen.resize(index + 1, false);
            }
            if !std::mem::replace(&mut self.is_seen[index], true) {
                self.seen.push(token);
            }
        }
    }

    /// Draws the next token; `logits` has one entry for every token of the vocabulary.
    ///
    /// The drawn token is not [observed](Self::observe) by itself.
    ///
    /// # Errors
    /// [`Error::Logits`] if there is a NaN or +inf among them, or nothing but -inf.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        check(logits)?;
        if self.options.repetition_penalty == 1.0 {
            return Ok(self.draw(logits));
        }
        let mut scores = std::mem::take(&mut self.scores);
        scores.clear();
        scores.extend_from_slice(logits);
        penalise(&mut scores, &self.seen, self.options.repetition_penalty);
        let token = self.draw(&scores);
        self.scores = scores;
        Ok(token)
    }

    /// Temperature, filters and the draw.
    fn draw(&mut self, logits: &[f32]) -> u32 {
        let GenerationOptions { temperature, top_k, top_p, min_p, .. } = self.options;
        let best = argmax(logits);
        if temperature == 0.0 {
            return best;
        }
        let max = f64::from(logits[best as usize]);
        // exp((l - max) / t): proportional to the probability, 1 for the likeliest, never overflows.
        let weight = |c: &Candidate| ((f64::from(c.logit) - max) / temperature).exp();

        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend((0u32..).zip(logits).map(|(token, &logit)| Candidate { token, logit }));
        if let Some(k) = top_k {
            keep_top_k(candidates, k);
        }
        if top_p < 1.0 {
            keep_top_p(candidates, top_p, weight);
        }
        if min_p > 0.0 {
            candidates.retain(|c| weight(c) >= min_p);
        }
        let total: f64 = candidates.iter().map(weight).sum();
        let mut left = self.rng.random::<f64>() * total;
        let mut last = best;
        for candidate in candidates.iter() {
            let w = weight(candidate);
            if w > 0.0 {
                last = candidate.token;
                left -= w;
                if left < 0.0 {
                    break;
                }
            }
        }
        // Rounding can leave a hair over after the last one, which is then the choice.
        last
    }
}

/// Refuses logits that have no softmax.
fn check(logits: &[f32]) -> Result<()> {
    let found = if logits.iter().any(|logit| logit.is_nan()) {
        "NaN"
    } else if logits.contains(&f32::INFINITY) {
        "+inf"
    } else if !logits.iter().any(|logit| logit.is_finite()) {
        "nothing finite"
    } else {
        return Ok(());
    };
    Err(Error::Logits { found })
}

/// Index of the largest logit, the first of equals.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in (0u32..).zip(logits) {
        if logit > best.1 {
            best = (token, logit);
        }
    }
    best.0
}

fn penalise(logits: &mut [f32], seen: &[u32], penalty: f64) {
    for &token in seen {
        // A logit of -inf is a token ruled out, and stays so.
        if let Some(logit) = logits.get_mut(token as usize).filter(|logit| logit.is_finite()) {
            let l = f64::from(*logit);
            let scaled = if l < 0.0 { l * penalty } else { l / penalty };
            // What is finite stays finite, however large the penalty.
            *logit = scaled.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
        }
    }
}

/// Falling logits, equal ones by rising id: a total order, so results do not depend on how
/// selection and sorting are done.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Keeps the candidates that are no smaller than the k-th largest, in falling order.
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k < candidates.len() {
        let (_, kth, _) = candidates.select_nth_unstable_by(k - 1, order);
        let threshold = kth.logit;
        // Selection has put the k largest first; later ones stay only as ties.
        let mut index = 0;
        candidates.retain(|c| {
            index += 1;
            index <= k || c.logit >= threshold
        });
    }
    candidates.sort_unstable_by(order);
}

/// Keeps the shortest run of the likeliest candidates whose share of the total weight reaches `p`,
/// at least one, in falling order.
///
/// Sorts only as far as needed: the first 256, and four times as many while they do not suffice.
fn keep_top_p(candidates: &mut Vec<Candidate>, p: f64, weight: impl Fn(&Candidate) -> f64) {
    let target = p * candidates.iter().map(&weight).sum::<f64>();
    let mut sum = 0.0;
    let mut sorted = 0;
    while sorted < candidates.len() {
        let step = if sorted == 0 { 256 } else { 3 * sorted };
        let end = (sorted + step).min(candidates.len());
        let rest = &mut candidates[sorted..];
        if end - sorted < rest.len() {
            rest.select_nth_unstable_by(end - sorted - 1, order);
        }
        rest[..end - sorted].sort_unstable_by(order);
        for index in sorted..end {
            sum += weight(&candidates[index]);
            if sum >= target {
                candidates.truncate(index + 1);
                return;
            }
        }
        sorted = end;
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
