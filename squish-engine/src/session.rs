//! A conversation whose past the model need not read again.

use std::path::Path;
use std::time::Instant;

use crate::generation::Generation;
use crate::{ChatRequest, Completion, Error, GenerationOptions, KvMode, Pipeline, Result, TextStream};

/// A pipeline with a key-value cache of its own, for conversations of several turns.
///
/// Every call gives the *whole* conversation; the session finds how much of it the cache already
/// holds and feeds the model only the rest. So messages may be edited or dropped at will, and the
/// answer is the one that a new session would give.
///
/// ```no_run
/// # use squish_engine::{Message, Pipeline};
/// let mut session = Pipeline::from_dir("assets/squish-tiny-sqint2")?.session();
/// let mut messages = vec![Message::user("Name a river.")];
/// let answer = session.chat(&messages)?;
/// messages.push(Message::assistant(answer.text));
/// messages.push(Message::user("Where does it rise?"));
/// println!("{}", session.chat(&messages)?.text);
/// # Ok::<(), squish_engine::Error>(())
/// ```
#[derive(Debug)]
pub struct Session {
    pipeline: Pipeline,
    cache: squish_models::Session,
    /// The tokens at the positions of the cache.
    tokens: Vec<u32>,
}

impl Session {
    pub(crate) fn new(pipeline: Pipeline) -> Self {
        let cache = pipeline.model().session_with(*pipeline.session_options());
        let cache = cache.expect("the options were checked when the pipeline was built");
        Session { cache, pipeline, tokens: Vec::new() }
    }

    pub(crate) fn restored(pipeline: Pipeline, path: &Path) -> Result<Self> {
        let (cache, tokens) = pipeline.model().restore(path)?;
        Ok(Session { pipeline, cache, tokens })
    }

    /// Writes what the session has read to a file, from which [`Pipeline::restore_session`] goes on. Messages are not
    /// in it: give the whole conversation with the next request, as always.
    ///
    /// # Errors
    /// [`Error::Model`], which names the file.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        Ok(self.cache.save(path.as_ref(), &self.tokens)?)
    }

    /// The pipeline this session belongs to.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Options of the answers to come, unless a request has its own.
    pub fn set_options(&mut self, options: GenerationOptions) {
        self.pipeline = self.pipeline.with_options(options);
    }

    /// Tokens in the cache.
    pub fn cached_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// How keys and values are stored.
    pub fn kv_mode(&self) -> KvMode {
        self.cache.cache().mode()
    }

    /// Bytes that keys and values take.
    pub fn kv_bytes(&self) -> usize {
        self.cache.cache().bytes()
    }

    /// Tokens that prompt and answer may have together.
    pub fn context_length(&self) -> usize {
        self.cache.context_length()
    }

    /// Empties the cache.
    pub fn reset(&mut self) {
        self.cache.reset();
        self.tokens.clear();
    }

    /// Answers a conversation.
    ///
    /// # Errors
    /// Those of [`Pipeline::chat`].
    pub fn chat<'a>(&mut self, request: impl Into<ChatRequest<'a>>) -> Result<Completion> {
        self.chat_stream(request)?.into_completion()
    }

    /// Answers a conversation piece by piece.
    ///
    /// # Errors
    /// Those of [`Pipeline::chat_stream`].
    pub fn chat_stream<'a>(&mut self, request: impl Into<ChatRequest<'a>>) -> Result<TextStream<'_>> {
        let generation = self.begin_chat(&request.into())?;
        Ok(TextStream::borrowing(self, generation))
    }

    /// Continues plain text.
    ///
    /// # Errors
    /// Those of [`Pipeline::complete`].
    pub fn complete(&mut self, prompt: &str) -> Result<Completion> {
        self.complete_stream(prompt)?.into_completion()
    }

    /// Continues plain text piece by piece.
    ///
    /// # Errors
    /// Those of [`Pipeline::complete_stream`].
    pub fn complete_stream(&mut self, prompt: &str) -> Result<TextStream<'_>> {
        let generation = self.begin_complete(prompt)?;
        Ok(TextStream::borrowing(self, generation))
    }

    pub(crate) fn begin_chat(&mut self, request: &ChatRequest<'_>) -> Result<Generation> {
        let start = Instant::now();
        if request.messages.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let template = self.pipeline.chat_template().ok_or(Error::NoChatTemplate)?;
        let text = match self.pipeline.thinking().filter(|_| !request.says_whether_to_think()) {
            Some(yes) => template.render(&request.clone().thinking(yes))?,
            None => template.render(request)?,
        };
        let prompt = self.pipeline.tokenizer().encode(&text)?;
        let options = request.options.as_ref().unwrap_or(self.pipeline.options()).clone();
        Ok(self.begin(&prompt, &options, start)?.after_prompt(&text))
    }

    pub(crate) fn begin_complete(&mut self, text: &str) -> Result<Generation> {
        let start = Instant::now();
        let prompt = self.pipeline.tokenizer().encode_plain(text)?;
        let options = self.pipeline.options().clone();
        self.begin(&prompt, &options, start)
    }

    fn begin(&mut self, prompt: &[u32], options: &GenerationOptions, start: Instant) -> Result<Generation> {
        options.validate()?;
        let vocab_size = self.pipeline.model().config().vocab_size;
        let context_length = self.context_length();
        // The logits come from the last token, so at least that one is fed.
        let last = prompt.len().checked_sub(1).ok_or(Error::EmptyPrompt)?;
        if let Some(&token) = prompt.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(Error::Vocabulary { token, vocab_size });
        }
        if prompt.len() >= context_length {
            return Err(Error::PromptTooLong { prompt_tokens: prompt.len(), context_length });
        }
        let cached = self.keep_common_prefix(&prompt[..last]);
        let room = context_length - prompt.len();
        Generation::new(self, prompt, cached, room, options, start)
    }

    /// Cuts the cache back to what it has in common with `prompt`, or to a little before that where a sliding window or a packed
    /// history cannot give back that very position; returns its length.
    fn keep_common_prefix(&mut self, prompt: &[u32]) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = self.cache.truncate(common);
        self.tokens.truncate(kept);
        kept
    }

    /// Remembers that the prompt ends here: the next one often has all of it in common, and not all of the answer.
    pub(crate) fn mark_prompt(&mut self) {
        self.cache.set_mark();
    }

    /// Appends tokens to the cache. Only of the `last` ones are there logits afterwards: a device need not be waited for before.
    pub(crate) fn feed(&mut self, tokens: &[u32], last: bool) -> Result<()> {
        let fed = if last { self.cache.advance(tokens) } else { self.cache.feed(tokens).map(drop) };
        if let Err(error) = fed {
            self.reset();
            return Err(error.into());
        }
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// The logits after the tokens that were appended last.
    pub(crate) fn logits(&self) -> &[f32] {
        self.cache.logits()
    }
}
