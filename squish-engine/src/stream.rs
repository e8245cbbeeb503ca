//! An answer as an iterator of pieces of text.

use crate::generation::Generation;
use crate::{CancelToken, Completion, PartStream, Result, Session, Stats};

/// The pieces of an answer, computed as they are asked for.
///
/// A blocking iterator: no thread, no async runtime. Pieces are not empty and hold whole characters;
/// together they are the text that the blocking call would have returned. After an error it ends.
/// Dropping it early is fine; a session keeps what was computed.
///
/// ```no_run
/// # use squish_engine::{Message, Pipeline};
/// let pipeline = Pipeline::from_dir("assets/squish-tiny-sqint2")?;
/// let mut stream = pipeline.chat_stream(&[Message::user("Tell me a story.")])?;
/// for piece in stream.by_ref() {
///     print!("{}", piece?);
/// }
/// println!("\n{:.1} tokens/s", stream.stats().tokens_per_second());
/// # Ok::<(), squish_engine::Error>(())
/// ```
#[derive(Debug)]
pub struct TextStream<'s> {
    session: Handle<'s>,
    generation: Generation,
}

#[derive(Debug)]
enum Handle<'s> {
    Owned(Box<Session>),
    Borrowed(&'s mut Session),
}

impl<'s> TextStream<'s> {
    pub(crate) fn owning(session: Session, generation: Generation) -> TextStream<'static> {
        TextStream { session: Handle::Owned(Box::new(session)), generation }
    }

    pub(crate) fn borrowing(session: &'s mut Session, generation: Generation) -> Self {
        TextStream { session: Handle::Borrowed(session), generation }
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.generation.stats()
    }

    /// Ends this answer from another thread or a signal handler. What was held back is still
    /// returned.
    pub fn cancel_token(&self) -> CancelToken {
        self.generation.cancel_token()
    }

    /// Tells the model's reasoning, between `<think>` and `</think>`, from its answer. Meant for a stream from which nothing was
    /// taken yet.
    pub fn split_reasoning(self) -> PartStream<'s> {
        let splitter = self.generation.splitter();
        PartStream::new(self, splitter)
    }

    /// Computes the rest and puts all of it together.
    ///
    /// # Errors
    /// Those of the iterator's items.
    pub fn into_completion(mut self) -> Result<Completion> {
        let text = self.by_ref().collect::<Result<String>>()?;
        Ok(Completion { text, reasoning: None, stats: self.stats() })
    }
}

impl Iterator for TextStream<'_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let session = match &mut self.session {
            Handle::Owned(session) => session,
            Handle::Borrowed(session) => &mut **session,
        };
        while !self.generation.is_finished() {
            match self.generation.step(session) {
                Ok(text) if text.is_empty() => {}
                other => return Some(other),
            }
        }
        None
    }
}

impl std::iter::FusedIterator for TextStream<'_> {}
