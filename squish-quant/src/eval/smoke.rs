//! A generation smoke test: does the model still write text at all?
//!
//! The model continues a few plain English prompts, sampled at temperature [`TEMPERATURE`] from a fixed seed: good small
//! models loop under greedy decoding, and no model should under sampling. It fails on
//!
//! * prompts that the model itself finds about as unlikely as chance would ([`Fault::Gibberish`]);
//! * an answer without visible text ([`Fault::Empty`]);
//! * a run of tokens that repeats itself ([`Fault::Loop`]);
//! * control characters, or bytes that are no UTF-8 ([`Fault::Characters`]).

use super::{Encoder, nll, sample};
use crate::{Error, Progress, Result, output::io_error};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;
use serde_json::Value;
use squish_models::{Device, Model, Session, checkpoint::text_file};
use std::path::Path;

/// The prompts.
pub const PROMPTS: [&str; 5] = [
    "The capital of France is",
    "Once upon a time there was a",
    "Water is one of the most important",
    "In the year 1969 the first men",
    "To make a cup of tea, you need",
];
/// The temperature of sampling.
pub const TEMPERATURE: f64 = 0.7;
/// A loop repeats up to so many tokens ...
pub const LONGEST_PERIOD: usize = 32;
/// ... over a run of at least so many, and at least three times.
pub const LOOP_TOKENS: usize = 48;
/// The share of `ln(vocabulary)`, the cost of a token by chance, that a token of the prompts must stay below.
pub const CHANCE: f64 = 0.75;

/// What was found wrong.
#[derive(Debug, Clone, PartialEq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Fault {
    /// The model does not know English from noise.
    #[error("the prompts cost the model {nll:.2} nats per token, chance would cost {chance:.2}")]
    Gibberish {
        /// Mean negative log-likelihood of the prompts' tokens.
        nll: f64,
        /// `ln(vocabulary)`.
        chance: f64,
    },
    /// There is nothing to read.
    #[error("prompt {prompt}: the answer has no visible text")]
    Empty {
        /// Index of the prompt, from 1.
        prompt: usize,
    },
    /// Tokens repeat.
    #[error("prompt {prompt}: {tokens} tokens in a row repeat every {period}")]
    Loop {
        /// Index of the prompt, from 1.
        prompt: usize,
        /// Length of the run.
        tokens: usize,
        /// Tokens after which it repeats.
        period: usize,
    },
    /// The text holds what no text holds.
    #[error("prompt {prompt}: the answer holds {what}")]
    Characters {
        /// Index of the prompt, from 1.
        prompt: usize,
        /// Which characters.
        what: String,
    },
}

/// What came of the test.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Smoke {
    /// Whether nothing is wrong.
    pub passed: bool,
    /// The first thing that is wrong.
    pub fault: Option<Fault>,
    /// Mean negative log-likelihood of the prompts' tokens, in nats.
    pub prompt_nll: f64,
    /// The answers.
    pub answers: Vec<Answer>,
}

/// What the model wrote.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// The prompt.
    pub prompt: &'static str,
    /// Its continuation.
    pub text: String,
    /// Tokens of the continuation.
    pub tokens: usize,
    /// Its longest run that repeats itself.
    pub repetition: Option<Repetition>,
}

/// A run of tokens in which each equals the one `period` before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Repetition {
    /// Its length, the first period counted.
    pub tokens: usize,
    /// Tokens after which it repeats.
    pub period: usize,
}

/// Lets a checkpoint continue each prompt by up to `tokens` tokens. The same checkpoint writes the same text.
///
/// # Errors
/// [`Error::NotFiniteLogits`], [`Error::Interrupted`], or when the checkpoint or its tokenizer cannot be used. What the
/// model writes is no error but a [`Fault`].
pub fn smoke(dir: &Path, tokens: usize, progress: &dyn Progress) -> Result<Smoke> {
    let model = Model::from_dir(dir, &Device::Cpu)?;
    let encoder = Encoder::from_dir(dir)?;
    let ends = end_tokens(dir)?;
    let (mut total, mut predicted) = (0.0, 0);
    let mut answers = Vec::new();
    let mut fault = None;
    for (i, prompt) in PROMPTS.into_iter().enumerate() {
        super::check(progress, i, PROMPTS.len(), "prompts")?;
        let not_finite =
            || Error::NotFiniteLogits { model: dir.display().to_string(), part: "prompt", index: i + 1 };
        let ids = [encoder.prefix(), &encoder.encode(prompt)?].concat();
        let mut session = model.session();
        total += nll(&mut session, &ids, &ids[1.min(ids.len())..])?;
        predicted += ids.len().saturating_sub(1);
        if !total.is_finite() {
            return Err(not_finite());
        }
        session.reset();
        let room = model.config().context_length.saturating_sub(ids.len());
        let written =
            generate(&mut session, &ids, tokens.min(room), &ends, i as u64)?.ok_or_else(not_finite)?;
        let text = encoder.decode(&written)?;
        let repetition = repetition(&written);
        fault = fault.or_else(|| fault_of(i + 1, &text, repetition));
        answers.push(Answer { prompt, text, tokens: written.len(), repetition });
    }
    progress.at(PROMPTS.len(), PROMPTS.len(), "prompts");
    let prompt_nll = total / predicted.max(1) as f64;
    let chance = (model.config().vocab_size as f64).ln();
    if prompt_nll > CHANCE * chance {
        fault = Some(Fault::Gibberish { nll: prompt_nll, chance });
    }
    Ok(Smoke { passed: fault.is_none(), fault, prompt_nll, answers })
}

/// Draws up to `count` tokens after `prompt`, or up to an end token, which is not part of the answer. `None` when the
/// logits are not finite.
fn generate(
    session: &mut Session,
    prompt: &[u32],
    count: usize,
    ends: &[u32],
    seed: u64,
) -> Result<Option<Vec<u32>>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut written = Vec::new();
    let mut next = prompt.to_vec();
    while written.len() < count {
        let logits = session.feed(&next)?.to_vec1::<f32>().map_err(squish_models::Error::from)?;
        let Some(token) = sample(&logits, TEMPERATURE, rng.random()) else { return Ok(None) };
        if ends.contains(&token) {
            break;
        }
        written.push(token);
        next = vec![token];
    }
    Ok(Some(written))
}

/// What is wrong with an answer.
fn fault_of(prompt: usize, text: &str, repetition: Option<Repetition>) -> Option<Fault> {
    let looped = repetition.filter(|r| r.tokens >= LOOP_TOKENS.max(3 * r.period));
    let control = text.chars().find(|c| c.is_control() && !"\n\r\t".contains(*c));
    if text.trim().is_empty() {
        Some(Fault::Empty { prompt })
    } else if let Some(Repetition { tokens, period }) = looped {
        Some(Fault::Loop { prompt, tokens, period })
    } else if let Some(c) = control {
        Some(Fault::Characters { prompt, what: format!("the control character U+{:04X}", u32::from(c)) })
    } else if text.contains("\u{fffd}\u{fffd}") {
        // A single one may be a character that the answer's end cuts in two.
        Some(Fault::Characters { prompt, what: "bytes that are no UTF-8".into() })
    } else {
        None
    }
}

/// The longest run that holds a period of 1 to [`LONGEST_PERIOD`] tokens at least twice; of equals, the one with the
/// shortest period.
fn repetition(tokens: &[u32]) -> Option<Repetition> {
    let mut longest: Option<Repetition> = None;
    for period in 1..=LONGEST_PERIOD {
        let mut run = 0;
        for i in period..tokens.len() {
            run = if tokens[i] == tokens[i - period] { run + 1 } else { 0 };
            let length = run + period;
            if run >= period && longest.is_none_or(|longest| length > longest.tokens) {
                longest = Some(Repetition { tokens: length, period });
            }
        }
    }
    longest
}

/// The tokens that end an answer: `eos_token_id` of `generation_config.json`, or else of `config.json`.
fn end_tokens(dir: &Path) -> Result<Vec<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        let text = match text_file::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(io_error(&path)(e)),
        };
        let json: Value = serde_json::from_slice(&text).map_err(|e| io_error(&path)(e.into()))?;
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match &json["eos_token_id"] {
            Value::Array(ids) => return Ok(ids.iter().filter_map(id).collect()),
            Value::Null => {}
            one => return Ok(id(one).into_iter().collect()),
        }
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_found_wherever_they_are() {
        let varied: Vec<u32> = (0..100).collect();
        assert_eq!(repetition(&varied), None);
        assert_eq!(repetition(&[]), None);
        assert_eq!(repetition(&[7; 60]), Some(Repetition { tokens: 60, period: 1 }));
        let looped: Vec<u32> = (0..20).chain((0..63).map(|i| 50 + i % 9)).chain(200..220).collect();
        assert_eq!(repetition(&looped), Some(Repetition { tokens: 63, period: 9 }));
    }

    #[test]
    fn faults() {
        let fault = |text: &str, (tokens, period)| {
            fault_of(2, text, Some(Repetition { tokens, period })).map(|fault| fault.to_string())
        };
        assert_eq!(fault("A good answer,\n\twith a tab. \u{fffd}", (47, 1)), None);
        assert_eq!(fault("one phrase, and the same again", (62, 31)), None);
        assert_eq!(fault("", (2, 1)).unwrap(), "prompt 2: the answer has no visible text");
        assert_eq!(fault(" \n", (2, 1)).unwrap(), "prompt 2: the answer has no visible text");
        assert_eq!(fault("aaa", (48, 1)).unwrap(), "prompt 2: 48 tokens in a row repeat every 1");
        assert_eq!(
            fault("a\u{1b}b", (2, 1)).unwrap(),
            "prompt 2: the answer holds the control character U+001B"
        );
        assert_eq!(
            fault("a\u{fffd}\u{fffd}b", (2, 1)).unwrap(),
            "prompt 2: the answer holds bytes that are no UTF-8"
        );
    }

    #[test]
    fn sampling_follows_the_probabilities() {
        let logits = [0.0, f32::NEG_INFINITY, (2f32.ln()) * TEMPERATURE as f32];
        let drawn: Vec<_> =
            [0.0, 0.32, 0.34, 0.999999].map(|u| sample(&logits, TEMPERATURE, u).unwrap()).into();
        assert_eq!(drawn, [0, 0, 2, 2]);
        assert_eq!(sample(&logits, TEMPERATURE, 1.0), Some(2));
        assert_eq!(sample(&[0.0, f32::NAN], TEMPERATURE, 0.5), None);
        assert_eq!(sample(&[f32::INFINITY, 0.0], TEMPERATURE, 0.5), None);
    }
}
