//! How text is generated: the knobs a caller can turn.

use crate::{Error, Result};

/// How tokens are drawn and when to stop.
///
/// A [`Pipeline`](crate::Pipeline) starts from the checkpoint's `generation_config.json`; change
/// what you need on [`Pipeline::options`](crate::Pipeline::options):
///
/// ```
/// # use squish_engine::GenerationOptions;
/// let options = GenerationOptions::greedy().max_tokens(64).stop(["\n\n"]);
/// options.validate()?;
/// # Ok::<(), squish_engine::Error>(())
/// ```
///
/// The filters act in the order of the fields, the order of Hugging Face transformers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GenerationOptions {
    /// Logits of tokens already in the text are divided by this when positive and multiplied by it
    /// when negative. Above 0; 1 changes nothing.
    pub repetition_penalty: f64,
    /// Logits are divided by this before the softmax. 0 or more; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only the `k` likeliest tokens (and ties of the last) remain. At least 1; `None` keeps all.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together reach this probability remain. 0 to 1; 1 keeps all.
    pub top_p: f64,
    /// Only tokens at least this fraction as probable as the likeliest remain. 0 to 1; 0 keeps all.
    pub min_p: f64,
    /// Seed of the random generator. The same seed, prompt and model draw the same tokens; `None`
    /// takes a new seed for every answer (reported in [`Stats::seed`](crate::Stats::seed)).
    pub seed: Option<u64>,
    /// Text that ends the answer and is not part of it. None may be empty.
    ///
    /// Compared with the visible text: special tokens, which end an answer by themselves, never
    /// appear in it.
    pub stop: Vec<String>,
    /// Most tokens to generate, at least 1; `None` goes on until the context is full.
    pub max_tokens: Option<usize>,
}

impl Default for GenerationOptions {
    /// Plain sampling: temperature 1 and no filter.
    fn default() -> Self {
        GenerationOptions {
            repetition_penalty: 1.0,
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            seed: None,
            stop: Vec::new(),
            max_tokens: None,
        }
    }
}

impl GenerationOptions {
    /// Always the likeliest token: temperature 0, no penalty.
    pub fn greedy() -> Self {
        Self::default().temperature(0.0)
    }

    /// Sets [`repetition_penalty`](Self::repetition_penalty).
    pub fn repetition_penalty(mut self, penalty: f64) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Sets [`temperature`](Self::temperature).
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets [`top_k`](Self::top_k).
    pub fn top_k(mut self, k: impl Into<Option<usize>>) -> Self {
        self.top_k = k.into();
        self
    }

    /// Sets [`top_p`](Self::top_p).
    pub fn top_p(mut self, p: f64) -> Self {
        self.top_p = p;
        self
    }

    /// Sets [`min_p`](Self::min_p).
    pub fn min_p(mut self, p: f64) -> Self {
        self.min_p = p;
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn seed(mut self, seed: impl Into<Option<u64>>) -> Self {
        self.seed = seed.into();
        self
    }

    /// Sets [`stop`](Self::stop), replacing earlier ones.
    pub fn stop<S: Into<String>>(mut self, stop: impl IntoIterator<Item = S>) -> Self {
        self.stop = stop.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`max_tokens`](Self::max_tokens).
    pub fn max_tokens(mut self, tokens: impl Into<Option<usize>>) -> Self {
        self.max_tokens = tokens.into();
        self
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`Error::Option`] names the first field that lies outside.
    pub fn validate(&self) -> Result<()> {
        let finite = |x: f64, low: f64, high: f64| x.is_finite() && (low..=high).contains(&x);
        check(
            finite(self.repetition_penalty, f64::MIN_POSITIVE, f64::MAX),
            "repetition_penalty",
            "a number above 0",
            self.repetition_penalty,
        )?;
        check(
            finite(self.temperature, 0.0, f64::MAX),
            "temperature",
            "a number of 0 or more",
            self.temperature,
        )?;
        if let Some(k) = self.top_k {
            check(k >= 1, "top_k", "at least 1", k)?;
        }
        check(finite(self.top_p, 0.0, 1.0), "top_p", "between 0 and 1", self.top_p)?;
        check(finite(self.min_p, 0.0, 1.0), "min_p", "between 0 and 1", self.min_p)?;
        let no_empty = self.stop.iter().all(|s| !s.is_empty());
        check(no_empty, "stop", "text that is not empty", "\"\"")?;
        if let Some(tokens) = self.max_tokens {
            check(tokens >= 1, "max_tokens", "at least 1", tokens)?;
        }
        Ok(())
    }
}

fn check(holds: bool, field: &'static str, expected: &'static str, value: impl ToString) -> Result<()> {
    if holds {
        return Ok(());
    }
    let value = value.to_string();
    Err(Error::Option { field, expected, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: GenerationOptions) -> &'static str {
        match options.validate() {
            Err(Error::Option { field, .. }) => field,
            other => panic!("expected an option error, got {other:?}"),
        }
    }

    #[test]
    fn every_field_is_checked() {
        let o = GenerationOptions::default;
        assert!(o().validate().is_ok());
        assert!(GenerationOptions::greedy().validate().is_ok());
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(refused(o().repetition_penalty(bad)), "repetition_penalty");
        }
        for bad in [-0.1, f64::NAN, f64::INFINITY] {
            assert_eq!(refused(o().temperature(bad)), "temperature");
        }
        assert_eq!(refused(o().top_k(0)), "top_k");
        assert_eq!(refused(o().top_p(1.5)), "top_p");
        assert_eq!(refused(o().top_p(f64::NAN)), "top_p");
        assert_eq!(refused(o().min_p(-0.5)), "min_p");
        assert_eq!(refused(o().stop(["ok", ""])), "stop");
        assert_eq!(refused(o().max_tokens(0)), "max_tokens");
    }

    #[test]
    fn the_message_names_field_range_and_value() {
        let message = GenerationOptions::default().top_p(2.0).validate().unwrap_err();
        assert_eq!(message.to_string(), "option top_p must be between 0 and 1, but is 2");
    }
}
