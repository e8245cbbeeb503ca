//! Reasoning and answer, told apart in a growing text.
//!
//! Models that think first write `<think>`, their reasoning, `</think>` and the answer. Templates that begin the
//! reasoning themselves leave the first mark in the prompt.

use crate::{CancelToken, Completion, Result, Stats, TextStream};

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// A piece of what a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Of the reasoning before the answer.
    Reasoning(String),
    /// Of the answer.
    Answer(String),
}

/// Separates the reasoning at the beginning of a text from the rest, piece by piece.
///
/// The marks and the white space around the reasoning belong to neither. Without an opening mark at the beginning, all is
/// answer; without a closing mark, all is reasoning. The result does not depend on how the text is cut into pieces,
/// and only text that could still belong to a mark, or to the space before one, is held back.
#[derive(Debug, Clone)]
pub struct ReasoningSplitter {
    state: State,
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// An opening mark may come.
    Start,
    /// After the mark, before the first word.
    BeforeReasoning,
    Reasoning,
    /// After the closing mark, before the first word.
    BeforeAnswer,
    Answer,
}

impl ReasoningSplitter {
    /// For the text after `prompt`, which may have begun the reasoning.
    pub fn after_prompt(prompt: &str) -> Self {
        let begun = prompt.trim_end().ends_with(OPEN);
        Self { state: if begun { State::BeforeReasoning } else { State::Start }, held: String::new() }
    }

    /// Appends `piece` and returns what is certain now: at most some reasoning and some answer, in this order.
    pub fn push(&mut self, piece: &str) -> Vec<Part> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    /// What was held back, now that no more text comes.
    pub fn finish(&mut self) -> Vec<Part> {
        let rest = std::mem::take(&mut self.held);
        let part = match self.state {
            State::Start | State::Answer => Part::Answer(rest),
            State::BeforeReasoning => Part::Reasoning(rest.trim().to_owned()),
            State::Reasoning => Part::Reasoning(rest.trim_end().to_owned()),
            State::BeforeAnswer => return Vec::new(),
        };
        let empty = matches!(&part, Part::Answer(text) | Part::Reasoning(text) if text.is_empty());
        if empty { Vec::new() } else { vec![part] }
    }

    /// Makes what can be made of the text held back; false when nothing more can.
    fn advance(&mut self, parts: &mut Vec<Part>) -> bool {
        let begun = self.held.trim_start();
        match self.state {
            State::Start => match begun.strip_prefix(OPEN) {
                Some(rest) => {
                    self.held = rest.to_owned();
                    self.state = State::BeforeReasoning;
                }
                None if OPEN.starts_with(begun) => return false,
                None => self.state = State::Answer,
            },
            State::BeforeReasoning | State::BeforeAnswer => {
                self.held = begun.to_owned();
                if self.held.is_empty() {
                    return false;
                }
                let reasons = self.state == State::BeforeReasoning;
                self.state = if reasons { State::Reasoning } else { State::Answer };
            }
            State::Reasoning => {
                let (end, closed) = match self.held.find(CLOSE) {
                    Some(end) => (end, true),
                    None => (self.held.len() - begun_mark(&self.held), false),
                };
                let certain = self.held[..end].trim_end();
                let rest = if closed { end + CLOSE.len() } else { certain.len() };
                if !certain.is_empty() {
                    parts.push(Part::Reasoning(certain.to_owned()));
                }
                self.held.drain(..rest);
                if !closed {
                    return false;
                }
                self.state = State::BeforeAnswer;
            }
            State::Answer => {
                if !self.held.is_empty() {
                    parts.push(Part::Answer(std::mem::take(&mut self.held)));
                }
                return false;
            }
        }
        true
    }
}

/// Length of the longest end of `text` that a closing mark can begin with.
fn begun_mark(text: &str) -> usize {
    (1..CLOSE.len()).rev().find(|&n| text.ends_with(&CLOSE[..n])).unwrap_or(0)
}

/// The pieces of an answer and of the reasoning before it, as [`TextStream::split_reasoning`] gives them.
///
/// ```no_run
/// # use squish_engine::{ChatRequest, Message, Part, Pipeline};
/// # let pipeline = Pipeline::from_dir("model")?;
/// let messages = [Message::user("What is 17 times 3?")];
/// for part in pipeline.chat_stream(ChatRequest::new(&messages).thinking(true))?.split_reasoning() {
///     match part? {
///         Part::Reasoning(text) => eprint!("{text}"),
///         Part::Answer(text) => print!("{text}"),
///     }
/// }
/// # Ok::<(), squish_engine::Error>(())
/// ```
#[derive(Debug)]
pub struct PartStream<'s> {
    text: TextStream<'s>,
    splitter: ReasoningSplitter,
    /// Parts that are certain, the next one last.
    ready: Vec<Part>,
    finished: bool,
}

impl<'s> PartStream<'s> {
    pub(crate) fn new(text: TextStream<'s>, splitter: ReasoningSplitter) -> Self {
        Self { text, splitter, ready: Vec::new(), finished: false }
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.text.stats()
    }

    /// Ends this answer from another thread or a signal handler. What was held back is still returned.
    pub fn cancel_token(&self) -> CancelToken {
        self.text.cancel_token()
    }

    /// Computes the rest and puts all of it together, the reasoning apart.
    ///
    /// # Errors
    /// Those of the iterator's items.
    pub fn into_completion(mut self) -> Result<Completion> {
        let (mut text, mut reasoning) = (String::new(), None);
        for part in self.by_ref() {
            match part? {
                Part::Reasoning(more) => reasoning.get_or_insert_with(String::new).push_str(&more),
                Part::Answer(more) => text.push_str(&more),
            }
        }
        Ok(Completion { text, reasoning, stats: self.stats() })
    }
}

impl Iterator for PartStream<'_> {
    type Item = Result<Part>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.finished {
            self.ready = match self.text.next() {
                Some(Ok(piece)) => self.splitter.push(&piece),
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.finished = true;
                    self.splitter.finish()
                }
            };
            self.ready.reverse();
        }
        self.ready.pop().map(Ok)
    }
}

impl std::iter::FusedIterator for PartStream<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reasoning and answer of a text in pieces of so many characters.
    fn split(prompt: &str, text: &str, size: usize) -> (String, String) {
        let mut splitter = ReasoningSplitter::after_prompt(prompt);
        let characters: Vec<char> = text.chars().collect();
        let pieces = characters.chunks(size).map(|piece| piece.iter().collect::<String>());
        let mut parts: Vec<Part> = pieces.flat_map(|piece| splitter.push(&piece)).collect();
        parts.extend(splitter.finish());
        let (mut reasoning, mut answer) = (String::new(), String::new());
        for part in parts {
            match part {
                Part::Reasoning(text) => {
                    assert!(answer.is_empty() && !text.is_empty());
                    reasoning += &text;
                }
                Part::Answer(text) => {
                    assert!(!text.is_empty());
                    answer += &text;
                }
            }
        }
        (reasoning, answer)
    }

    #[test]
    fn however_the_text_is_cut() {
        for (prompt, text, reasoning, answer) in [
            ("", "<think>\nTwo and\n\ntwo.\n</think>\n\nFour.\n", "Two and\n\ntwo.", "Four.\n"),
            ("", "\n<think>a < b </thin k></think>c", "a < b </thin k>", "c"),
            ("", "<think>\n\n</think>\n\nFour.", "", "Four."),
            ("", "Four. <think>no</think>", "", "Four. <think>no</think>"),
            ("", " <thimble>", "", " <thimble>"),
            ("", "\n<thi", "", "\n<thi"),
            ("", "<think>cut short </th", "cut short </th", ""),
            ("", "<think> 日本 🙂 </think> 語", "日本 🙂", "語"),
            ("", "", "", ""),
            ("..<think>\n", "Two.\n</think>\n\nFour.", "Two.", "Four."),
            ("..<think>\n", "Two.  ", "Two.", ""),
            ("..<think>\n\n</think>\n\n", "Four.", "", "Four."),
        ] {
            for size in 1..=text.chars().count().max(1) {
                let found = split(prompt, text, size);
                assert_eq!(found, (reasoning.into(), answer.into()), "{text:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn only_what_is_uncertain_is_held_back() {
        let mut splitter = ReasoningSplitter::after_prompt("");
        assert_eq!(splitter.push("<think>"), []);
        assert_eq!(splitter.push("\nA b"), [Part::Reasoning("A b".into())]);
        assert_eq!(splitter.push(" c "), [Part::Reasoning(" c".into())]);
        assert_eq!(splitter.push("d<"), [Part::Reasoning(" d".into())]);
        assert_eq!(splitter.push("/think>\n"), []);
        assert_eq!(splitter.push("\nE"), [Part::Answer("E".into())]);
        assert_eq!(splitter.push(" "), [Part::Answer(" ".into())]);
        assert_eq!(splitter.finish(), []);
    }
}
