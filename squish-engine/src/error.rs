//! What can go wrong, and where.

use std::path::PathBuf;

/// Everything this crate reports as an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the checkpoint could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file of the checkpoint is not the JSON it should be.
    #[error("{}: expected {expected}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the file should hold.
        expected: &'static str,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// `tokenizer.json` does not describe a usable tokenizer.
    #[error("{}: not a tokenizer: {message}", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// The tokenizer library's explanation.
        message: String,
    },
    /// Text could not be split into tokens, or tokens not joined into text.
    #[error("tokenizer: {message}")]
    Tokenizer {
        /// The tokenizer library's explanation.
        message: String,
    },
    /// The chat template does not parse, or refused these messages.
    #[error("chat template: {message}")]
    Template {
        /// The template engine's explanation, with the template's own words after `raise_exception`.
        message: String,
    },
    /// The chat template was stopped: it loops, or makes more than any real one does (docs/security.md).
    #[error("chat template: stopped, since it takes more steps or makes more text than a template may")]
    TemplateLimit,
    /// The checkpoint has no chat template, so only plain completion is possible.
    #[error(
        "the checkpoint has no chat template (neither chat_template.jinja nor \
         chat_template in tokenizer_config.json): use complete instead of chat"
    )]
    NoChatTemplate,
    /// A generation option lies outside its range.
    #[error("option {field} must be {expected}, but is {value}")]
    Option {
        /// The option's name, as in [`GenerationOptions`](crate::GenerationOptions).
        field: &'static str,
        /// The values allowed.
        expected: &'static str,
        /// The value given.
        value: String,
    },
    /// The prompt has no tokens, so there is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt leaves no room for even one new token.
    #[error("the prompt is {prompt_tokens} tokens long, but the model's context is {context_length}")]
    PromptTooLong {
        /// Length of the prompt in tokens.
        prompt_tokens: usize,
        /// Positions the model can attend to.
        context_length: usize,
    },
    /// The tokenizer produced a token the model has no embedding for: the two do not belong together.
    #[error(
        "token {token} is outside the model's vocabulary of {vocab_size}: tokenizer and model do not match"
    )]
    Vocabulary {
        /// The token id.
        token: u32,
        /// Number of ids the model knows.
        vocab_size: usize,
    },
    /// The model's logits cannot be sampled from: a NaN or +inf among them, or nothing but -inf.
    #[error("the model produced logits that cannot be sampled ({found})")]
    Logits {
        /// What was found in place of finite numbers.
        found: &'static str,
    },
    /// No model of this name is on this machine, or a file of it is not safe to open.
    #[error(transparent)]
    Hub(#[from] squish_hub::Error),
    /// The model failed to load or to run.
    #[error(transparent)]
    Model(#[from] squish_models::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
