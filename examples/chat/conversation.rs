//! A conversation: what was said, and a session that need not read it again.

use std::io::Write;

use anyhow::Result;
use squish_engine::{FinishReason, Message, Part, PartStream, Session, Stats};

use crate::interrupt;

pub struct Conversation {
    session: Session,
    system: Option<Message>,
    messages: Vec<Message>,
    raw: bool,
    last: Option<Stats>,
}

impl Conversation {
    pub fn new(session: Session, system: Option<String>, raw: bool) -> Self {
        let system = system.map(Message::system);
        let messages = system.iter().cloned().collect();
        Conversation { session, system, messages, raw, last: None }
    }

    /// Forgets what was said.
    pub fn reset(&mut self) {
        self.messages = self.system.iter().cloned().collect();
        self.session.reset();
    }

    /// How keys and values are stored, and what they take.
    pub fn memory(&self) -> String {
        let session = &self.session;
        format!(
            "memory      {} of {} tokens, keys and values as {} in {:.1} MB",
            session.cached_tokens(),
            session.context_length(),
            session.kv_mode(),
            session.kv_bytes() as f64 / 1e6,
        )
    }

    /// Counts and times of the last answer.
    pub fn last(&self) -> Option<&Stats> {
        self.last.as_ref()
    }

    /// Writes the answer to `out` as it comes, and a line end; reasoning before it to standard error.
    pub fn ask(&mut self, question: &str, out: &mut impl Write) -> Result<()> {
        if self.raw {
            let mut stream = self.session.complete_stream(question)?;
            interrupt::attach(stream.cancel_token());
            write_parts(stream.by_ref().map(|piece| piece.map(Part::Answer)), out)?;
            self.last = Some(stream.stats());
            return Ok(());
        }
        let known = self.messages.len();
        self.messages.push(Message::user(question));
        let stream = self.session.chat_stream(&self.messages);
        match stream.map_err(Into::into).and_then(|stream| write_answer(stream.split_reasoning(), out)) {
            Ok((text, stats)) => {
                // Without an answer the question was never asked.
                if text.is_empty() && stats.finish_reason == Some(FinishReason::Cancelled) {
                    self.messages.truncate(known);
                } else {
                    self.messages.push(Message::assistant(text));
                }
                self.last = Some(stats);
                Ok(())
            }
            Err(error) => {
                self.messages.truncate(known);
                Err(error)
            }
        }
    }
}

fn write_answer(mut stream: PartStream<'_>, out: &mut impl Write) -> Result<(String, Stats)> {
    interrupt::attach(stream.cancel_token());
    let text = write_parts(stream.by_ref(), out)?;
    Ok((text, stream.stats()))
}

/// Writes what comes, and returns the answer.
fn write_parts(
    parts: impl Iterator<Item = squish_engine::Result<Part>>,
    out: &mut impl Write,
) -> Result<String> {
    let (mut text, mut reasons) = (String::new(), false);
    for part in parts {
        match part? {
            Part::Reasoning(piece) => {
                eprint!("{piece}");
                reasons = true;
            }
            Part::Answer(piece) => {
                if std::mem::take(&mut reasons) {
                    eprint!("\n\n");
                }
                out.write_all(piece.as_bytes())?;
                out.flush()?;
                text += &piece;
            }
        }
    }
    if reasons {
        eprintln!();
    }
    writeln!(out)?;
    out.flush()?;
    Ok(text)
}
