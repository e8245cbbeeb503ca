//! One answer in the making: feed, sample, decode, stop; a token at each step.

use std::time::{Duration, Instant};

use crate::completion::{FinishReason, Stats};
use crate::{
    CancelToken, Detokenizer, GenerationOptions, ReasoningSplitter, Result, Sampler, Session, StopMatcher,
};

/// Tokens of the prompt between two looks at the cancel token.
const PREFILL_CHUNK: usize = 256;

/// The state of one answer, apart from the session it runs in.
#[derive(Debug)]
pub(crate) struct Generation {
    sampler: Sampler,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    cancel: CancelToken,
    eos_token_ids: Vec<u32>,
    /// Tokens the model has not seen: the rest of the prompt, later the last token drawn.
    unfed: Vec<u32>,
    /// Tokens that may still be generated.
    budget: usize,
    /// Time spent so far towards the first token.
    before_first: Duration,
    stats: Stats,
    failed: bool,
    /// For the whole text.
    splitter: ReasoningSplitter,
}

impl Generation {
    /// An answer to `prompt`, of which the session's cache holds the first `cached` tokens, of at
    /// most `room` tokens. It was asked for at `start`.
    pub(crate) fn new(
        session: &Session,
        prompt: &[u32],
        cached: usize,
        room: usize,
        options: &GenerationOptions,
        start: Instant,
    ) -> Result<Self> {
        let seed = options.seed.unwrap_or_else(fresh_seed);
        let mut sampler = Sampler::new(options, seed)?;
        sampler.observe(prompt);
        let pipeline = session.pipeline();
        Ok(Generation {
            sampler,
            detokenizer: pipeline.tokenizer().detokenizer(),
            stop: StopMatcher::new(&options.stop),
            cancel: CancelToken::new(),
            eos_token_ids: pipeline.eos_token_ids().to_vec(),
            unfed: prompt[cached..].to_vec(),
            budget: options.max_tokens.unwrap_or(usize::MAX).min(room),
            before_first: start.elapsed(),
            stats: Stats { prompt_tokens: prompt.len(), cached_tokens: cached, seed, ..Stats::default() },
            failed: false,
            splitter: ReasoningSplitter::after_prompt(""),
        })
    }

    /// This answer, to a prompt of this text.
    pub(crate) fn after_prompt(self, text: &str) -> Self {
        Self { splitter: ReasoningSplitter::after_prompt(text), ..self }
    }

    /// Tells reasoning from answer in the text from its beginning.
    pub(crate) fn splitter(&self) -> ReasoningSplitter {
        self.splitter.clone()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats.clone()
    }

    pub(crate) fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.failed || self.stats.finish_reason.is_some()
    }

    /// Draws one token and returns the text that is certain with it, often none.
    pub(crate) fn step(&mut self, session: &mut Session) -> Result<String> {
        let start = Instant::now();
        let result = self.draw_and_decode(session);
        self.failed = result.is_err();
        let (text, drawn) = result?;
        if self.stats.time_to_first_token.is_some() {
            self.stats.decode_time += start.elapsed();
            self.stats.decoded_tokens += usize::from(drawn);
        } else {
            self.before_first += start.elapsed();
            self.stats.time_to_first_token = drawn.then_some(self.before_first);
        }
        Ok(text)
    }

    /// The text, and whether a token was drawn.
    fn draw_and_decode(&mut self, session: &mut Session) -> Result<(String, bool)> {
        if !self.feed(session)? {
            return Ok((self.finish(FinishReason::Cancelled)?, false));
        }
        let token = self.sampler.sample(session.logits())?;
        if self.eos_token_ids.contains(&token) {
            return Ok((self.finish(FinishReason::Stop)?, true));
        }
        self.sampler.observe(&[token]);
        self.stats.generated_tokens += 1;
        self.budget -= 1;
        let mut text = self.stop.push(&self.detokenizer.push(token)?);
        if self.stop.stopped() {
            self.stats.finish_reason = Some(FinishReason::StopString);
        } else if self.budget == 0 {
            text += &self.finish(FinishReason::Length)?;
        }
        self.unfed.push(token);
        Ok((text, true))
    }

    /// Feeds the model what it has not seen; false when cancelled.
    fn feed(&mut self, session: &mut Session) -> Result<bool> {
        debug_assert!(!self.unfed.is_empty(), "there is something to go on from");
        let mut chunks = self.unfed.chunks(PREFILL_CHUNK);
        while let Some(chunk) = chunks.next() {
            if self.cancel.is_cancelled() {
                return Ok(false);
            }
            session.feed(chunk, chunks.len() == 0)?;
        }
        self.unfed.clear();
        if self.stats.time_to_first_token.is_none() {
            session.mark_prompt();
        }
        Ok(true)
    }

    /// Ends the answer and returns what was held back.
    fn finish(&mut self, reason: FinishReason) -> Result<String> {
        let rest = self.detokenizer.finish()?;
        let mut text = self.stop.push(&rest);
        text += &self.stop.finish();
        let stopped = self.stop.stopped();
        self.stats.finish_reason = Some(if stopped { FinishReason::StopString } else { reason });
        Ok(text)
    }
}

/// A seed that differs from call to call, short enough to type.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() >> 32
}
