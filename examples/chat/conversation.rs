//! A conversation: what was said, and a session that need not read it again.

use std::io::Write;

use anyhow::Result;
use squish_engine::{FinishReason, Message, Session, Stats, TextStream};

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

    /// Counts and times of the last answer.
    pub fn last(&self) -> Option<&Stats> {
        self.last.as_ref()
    }

    /// Writes the answer to `out` as it comes, and a line end.
    pub fn ask(&mut self, question: &str, out: &mut impl Write) -> Result<()> {
        if self.raw {
            let stream = self.session.complete_stream(question)?;
            let (_, stats) = write_answer(stream, out)?;
            self.last = Some(stats);
            return Ok(());
        }
        let known = self.messages.len();
        self.messages.push(Message::user(question));
        let stream = self.session.chat_stream(&self.messages);
        match stream.map_err(Into::into).and_then(|stream| write_answer(stream, out)) {
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

fn write_answer(mut stream: TextStream<'_>, out: &mut impl Write) -> Result<(String, Stats)> {
    interrupt::attach(stream.cancel_token());
    let mut text = String::new();
    for piece in stream.by_ref() {
        let piece = piece?;
        out.write_all(piece.as_bytes())?;
        out.flush()?;
        text += &piece;
    }
    writeln!(out)?;
    out.flush()?;
    Ok((text, stream.stats()))
}
