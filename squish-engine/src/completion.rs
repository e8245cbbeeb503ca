//! What comes out: the text, why it ended, and what it took.

use std::time::Duration;

use serde::ser::{Serialize, SerializeStruct, Serializer};

/// A finished answer.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Completion {
    /// The generated text, without prompt, special tokens and stop string.
    pub text: String,
    /// The reasoning before it, where it was [set apart](crate::TextStream::split_reasoning) and there was any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// What it took.
    #[serde(flatten)]
    pub stats: Stats,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// A stop string appeared.
    StopString,
    /// The maximum of tokens is reached, or the context is full.
    Length,
    /// A [`CancelToken`](crate::CancelToken) ended it.
    Cancelled,
}

/// Counts and times of one answer.
///
/// Times are those spent computing; a consumer's pauses between pieces do not count. As JSON the
/// durations are numbers of seconds named `time_to_first_token_seconds` (null if there was no token)
/// and `decode_seconds`, and `tokens_per_second` stands beside them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stats {
    /// Tokens of the prompt, those in the cache included.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the session's cache and cost nothing.
    pub cached_tokens: usize,
    /// Tokens generated, without the one by which the model ends its answer.
    pub generated_tokens: usize,
    /// From the call to the first token: template, tokenizer and prompt. `None` before it.
    pub time_to_first_token: Option<Duration>,
    /// From the first token to the last.
    pub decode_time: Duration,
    /// The seed in use, given or chosen.
    pub seed: u64,
    /// Why the answer ended; `None` before its end, or if it ended with an error.
    pub finish_reason: Option<FinishReason>,
    /// Tokens drawn in `decode_time`.
    pub(crate) decoded_tokens: usize,
}

impl Stats {
    /// Speed of generation after the first token, in tokens per second of
    /// [`decode_time`](Self::decode_time); 0 if there was no second token.
    pub fn tokens_per_second(&self) -> f64 {
        rate(self.decoded_tokens, self.decode_time)
    }

    /// Speed at which the prompt was taken in, in tokens per second until the first new token;
    /// cached tokens do not count.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        let time = self.time_to_first_token.unwrap_or_default();
        rate(self.prompt_tokens - self.cached_tokens, time)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() {
        return 0.0;
    }
    tokens as f64 / time.as_secs_f64()
}

impl Serialize for Stats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let first = self.time_to_first_token.map(|time| time.as_secs_f64());
        let mut out = serializer.serialize_struct("Stats", 8)?;
        out.serialize_field("prompt_tokens", &self.prompt_tokens)?;
        out.serialize_field("cached_tokens", &self.cached_tokens)?;
        out.serialize_field("generated_tokens", &self.generated_tokens)?;
        out.serialize_field("time_to_first_token_seconds", &first)?;
        out.serialize_field("decode_seconds", &self.decode_time.as_secs_f64())?;
        out.serialize_field("tokens_per_second", &self.tokens_per_second())?;
        out.serialize_field("seed", &self.seed)?;
        out.serialize_field("finish_reason", &self.finish_reason)?;
        out.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_json() {
        let completion = Completion {
            text: "hi".into(),
            reasoning: None,
            stats: Stats {
                prompt_tokens: 10,
                cached_tokens: 4,
                generated_tokens: 3,
                time_to_first_token: Some(Duration::from_millis(500)),
                decode_time: Duration::from_millis(250),
                seed: 7,
                finish_reason: Some(FinishReason::StopString),
                decoded_tokens: 2,
            },
        };
        assert_eq!(completion.stats.prompt_tokens_per_second(), 12.0);
        let expected = r#"{"text":"hi","prompt_tokens":10,"cached_tokens":4,"generated_tokens":3,"time_to_first_token_seconds":0.5,"decode_seconds":0.25,"tokens_per_second":8.0,"seed":7,"finish_reason":"stop_string"}"#;
        assert_eq!(serde_json::to_string(&completion).unwrap(), expected);
    }

    #[test]
    fn nothing_yet() {
        let stats = Stats::default();
        assert_eq!(stats.tokens_per_second(), 0.0);
        assert_eq!(stats.prompt_tokens_per_second(), 0.0);
        let json = serde_json::to_value(&stats).unwrap();
        assert!(json["time_to_first_token_seconds"].is_null() && json["finish_reason"].is_null());
    }
}
