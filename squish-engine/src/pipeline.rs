//! A loaded checkpoint, ready for text.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use squish_models::{Arithmetic, CertificateDemand, KvPolicy, Model, SessionOptions};

use crate::{
    ChatRequest, ChatTemplate, Completion, GenerationConfig, GenerationOptions, Result, Session, TextStream,
    Tokenizer,
};

/// A model with its tokenizer, chat template and options: text in, text out.
///
/// Cloning shares the weights. It can be used from any number of threads at once; every call runs
/// in a cache of its own. For conversations of several turns, [`session`](Self::session) keeps one.
#[derive(Debug, Clone)]
pub struct Pipeline {
    checkpoint: Arc<Checkpoint>,
    options: GenerationOptions,
    thinking: Option<bool>,
    sessions: SessionOptions,
}

#[derive(Debug)]
struct Checkpoint {
    model: Model,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    eos_token_ids: Vec<u32>,
}

impl Pipeline {
    /// Loads the checkpoint directory `dir`, squished or original, on the device that [`best_device`](crate::best_device) names.
    ///
    /// # Errors
    /// An [`Error`](crate::Error) names the file and what was expected of it.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Self::builder().build(dir)
    }

    /// Loads the model of this name from this machine: `qwen2.5-7b-sqint2`, `hf:org/repo`, a directory (docs/names.md). Nothing is
    /// downloaded.
    ///
    /// # Errors
    /// [`Hub`](crate::Error::Hub), whose text says in three lines what it would take, where the model is not on this machine;
    /// then as [`from_dir`](Self::from_dir).
    pub fn from_name(name: impl AsRef<Path>) -> Result<Self> {
        Self::builder().build_named(name)
    }

    /// Sets device and options before loading.
    pub fn builder() -> PipelineBuilder {
        PipelineBuilder {
            device: crate::best_device(),
            options: None,
            demand: None,
            thinking: None,
            arithmetic: Arithmetic::Int8,
            sessions: SessionOptions::default(),
        }
    }

    /// The options in use: those of the checkpoint's `generation_config.json` unless replaced.
    pub fn options(&self) -> &GenerationOptions {
        &self.options
    }

    /// This pipeline with other options. Costs nothing: the weights are shared.
    ///
    /// ```no_run
    /// # use squish_engine::{GenerationOptions, Message, Pipeline};
    /// # let pipeline = Pipeline::from_dir("model")?;
    /// let cooler = pipeline.with_options(pipeline.options().clone().temperature(0.2));
    /// let answer = cooler.chat(&[Message::user("Hello!")])?;
    /// # Ok::<(), squish_engine::Error>(())
    /// ```
    pub fn with_options(&self, options: GenerationOptions) -> Self {
        Pipeline { options, ..self.clone() }
    }

    /// Whether models think before they answer, unless a request says; `None` leaves it to the template.
    pub(crate) fn thinking(&self) -> Option<bool> {
        self.thinking
    }

    /// A session with an empty cache.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// What sessions may hold, and how.
    pub fn session_options(&self) -> &SessionOptions {
        &self.sessions
    }

    /// A session as [`Session::save`] wrote it, of this very model. It keeps its own context and way of storing keys and values.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model), which names the file and what is wrong with it.
    pub fn restore_session(&self, path: impl AsRef<Path>) -> Result<Session> {
        Session::restored(self.clone(), path.as_ref())
    }

    /// Answers a conversation.
    ///
    /// # Errors
    /// [`EmptyPrompt`](crate::Error::EmptyPrompt) without messages, [`NoChatTemplate`], [`Template`],
    /// [`PromptTooLong`] and [`Option`] before anything is computed; [`Logits`] and [`Model`] while
    /// it is.
    ///
    /// [`NoChatTemplate`]: crate::Error::NoChatTemplate
    /// [`Template`]: crate::Error::Template
    /// [`PromptTooLong`]: crate::Error::PromptTooLong
    /// [`Option`]: crate::Error::Option
    /// [`Logits`]: crate::Error::Logits
    /// [`Model`]: crate::Error::Model
    pub fn chat<'a>(&self, request: impl Into<ChatRequest<'a>>) -> Result<Completion> {
        self.chat_stream(request)?.into_completion()
    }

    /// Answers a conversation piece by piece. The prompt is checked here, and computed with the
    /// first piece.
    ///
    /// # Errors
    /// As [`chat`](Self::chat); what is found only while computing comes as an item of the stream.
    pub fn chat_stream<'a>(&self, request: impl Into<ChatRequest<'a>>) -> Result<TextStream<'static>> {
        let mut session = self.session();
        let generation = session.begin_chat(&request.into())?;
        Ok(TextStream::owning(session, generation))
    }

    /// Continues plain text, without the chat template.
    ///
    /// # Errors
    /// As [`chat`](Self::chat); [`EmptyPrompt`](crate::Error::EmptyPrompt) without tokens.
    pub fn complete(&self, prompt: &str) -> Result<Completion> {
        self.complete_stream(prompt)?.into_completion()
    }

    /// Continues plain text piece by piece.
    ///
    /// # Errors
    /// As [`chat_stream`](Self::chat_stream).
    pub fn complete_stream(&self, prompt: &str) -> Result<TextStream<'static>> {
        let mut session = self.session();
        let generation = session.begin_complete(prompt)?;
        Ok(TextStream::owning(session, generation))
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.checkpoint.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.checkpoint.tokenizer
    }

    /// The chat template, if the checkpoint has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.checkpoint.template.as_ref()
    }

    /// Tokens that end an answer.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.checkpoint.eos_token_ids
    }
}

/// Loads a [`Pipeline`] with settings of your own.
#[derive(Debug, Clone)]
#[must_use = "a builder loads nothing before build"]
pub struct PipelineBuilder {
    device: Device,
    options: Option<GenerationOptions>,
    demand: Option<CertificateDemand>,
    thinking: Option<bool>,
    arithmetic: Arithmetic,
    sessions: SessionOptions,
}

impl PipelineBuilder {
    /// Where to compute; [`best_device`](crate::best_device) unless set.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Options in place of the checkpoint's own.
    pub fn options(mut self, options: GenerationOptions) -> Self {
        self.options = Some(options);
        self
    }

    /// Whether a model that can do both, such as Qwen3, thinks before it answers; a request may say
    /// [otherwise](ChatRequest::thinking). Unless set, it is as the chat template has it.
    pub fn thinking(mut self, yes: bool) -> Self {
        self.thinking = Some(yes);
        self
    }

    /// Loads only a checkpoint whose certificate meets this: one that says how far it is from its original.
    pub fn require_certificate(mut self, demand: CertificateDemand) -> Self {
        self.demand = Some(demand);
        self
    }

    /// How a token is multiplied while an answer is written: in integers, which is fast, unless set.
    pub fn arithmetic(mut self, arithmetic: Arithmetic) -> Self {
        self.arithmetic = arithmetic;
        self
    }

    /// How keys and values are stored: chosen by the context ([`KvPolicy::mode`]), unless set.
    pub fn kv(mut self, kv: KvPolicy) -> Self {
        self.sessions.kv = kv;
        self
    }

    /// Tokens that prompt and answer may have together: the model's own number, unless set.
    pub fn context(mut self, tokens: usize) -> Self {
        self.sessions.context = Some(tokens);
        self
    }

    /// Loads the model of this name from this machine.
    ///
    /// # Errors
    /// As [`Pipeline::from_name`] and [`build`](Self::build).
    pub fn build_named(self, name: impl AsRef<Path>) -> Result<Pipeline> {
        let dir = squish_hub::locate(name)?;
        self.build_checked(&dir)
    }

    /// Loads the checkpoint directory `dir`. Weights are mapped, not copied.
    ///
    /// # Errors
    /// As [`Pipeline::from_dir`], [`Hub`](crate::Error::Hub) for a file that is not what its name says, [`Option`](crate::Error::Option) for options out of range, and
    /// [`Model`](crate::Error::Model) for a certificate that is missing or does not meet the demand, and for a context or a way of
    /// storing keys and values that the model cannot have.
    pub fn build(self, dir: impl AsRef<Path>) -> Result<Pipeline> {
        let dir = dir.as_ref();
        squish_hub::scan::glance(dir)?;
        self.build_checked(dir)
    }

    fn build_checked(self, dir: &Path) -> Result<Pipeline> {
        if let Some(options) = &self.options {
            options.validate()?;
        }
        let generation = GenerationConfig::from_dir(dir)?;
        let tokenizer = Tokenizer::from_dir(dir)?;
        let template = ChatTemplate::from_dir(dir)?;
        let mut eos_token_ids = generation.eos_token_ids;
        if eos_token_ids.is_empty() {
            eos_token_ids.extend(tokenizer.eos_token_id());
        }
        let mut weights = squish_models::Checkpoint::open(dir)?;
        weights.set_arithmetic(self.arithmetic);
        self.demand.iter().try_for_each(|demand| weights.require_certificate(demand).map(|_| ()))?;
        let model = Model::from_checkpoint(&weights, &self.device)?;
        model.kv_mode(&self.sessions)?;
        Ok(Pipeline {
            sessions: self.sessions,
            checkpoint: Arc::new(Checkpoint { model, tokenizer, template, eos_token_ids }),
            options: self.options.unwrap_or(generation.options),
            thinking: self.thinking,
        })
    }
}
