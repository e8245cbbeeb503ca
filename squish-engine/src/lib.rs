//! Text generation with 2-, 3- and 4-bit language models, in process and without a server.
//!
//! A [`Pipeline`] loads a checkpoint directory, squished or original, and answers:
//!
//! ```no_run
//! use squish_engine::{Message, Pipeline};
//!
//! fn main() -> Result<(), squish_engine::Error> {
//!     let pipeline = Pipeline::from_dir("assets/squish-tiny-sqint2")?;
//!     for piece in pipeline.chat_stream(&[Message::user("What is the sea?")])? {
//!         print!("{}", piece?);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! [`Pipeline::from_name`] takes a model's name in the place of a directory.
//!
//! From the conversation to the text, a stage to a module:
//!
//! | stage | type |
//! | --- | --- |
//! | the conversation, its tools and options | [`Message`], [`ChatRequest`], [`GenerationOptions`] |
//! | conversation to prompt, by the checkpoint's own template | [`ChatTemplate`] |
//! | prompt to tokens | [`Tokenizer`] |
//! | tokens to logits, with a cache | [`Session`], over `squish_models` |
//! | logits to the next token | [`Sampler`] |
//! | tokens to characters | [`Detokenizer`] |
//! | the end | [`StopMatcher`], [`CancelToken`] |
//! | reasoning and answer, where they are wanted apart | [`ReasoningSplitter`], [`PartStream`] |
//! | pieces or the whole, with counts and times | [`TextStream`], [`Completion`], [`Stats`] |
//!
//! A program that takes long prompts had better call [`keep_freed_memory`] at its start.
//!
//! Everything blocks and nothing needs an async runtime; to use it in one, run it on a thread for
//! blocking work. A special token written in a message is taken for one, as Hugging Face
//! transformers does: text from people you do not trust needs a look before it becomes a message.

mod cancel;
mod completion;
mod detokenizer;
mod error;
mod generation;
mod generation_config;
mod json_file;
mod message;
mod options;
mod pipeline;
mod reasoning;
mod request;
mod sampler;
mod session;
mod stop;
mod stream;
mod template;
#[cfg(test)]
mod test_support;
mod tokenizer;
mod tokenizer_config;

pub use cancel::CancelToken;
pub use candle_core::Device;
pub use completion::{Completion, FinishReason, Stats};
pub use detokenizer::Detokenizer;
pub use error::{Error, Result};
pub use generation_config::GenerationConfig;
pub use message::{FunctionCall, Message, Role, ToolCall};
pub use options::GenerationOptions;
pub use pipeline::{Pipeline, PipelineBuilder};
pub use reasoning::{Part, PartStream, ReasoningSplitter};
pub use request::ChatRequest;
pub use sampler::Sampler;
pub use session::Session;
pub use squish_hub as hub;
pub use squish_models::{
    Arithmetic, CertificateDemand, KvMode, KvPolicy, SessionOptions, keep_freed_memory, metal_device,
};
pub use stop::StopMatcher;
pub use stream::TextStream;
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;

/// The device to compute on unless told otherwise: Metal's first, where this crate is built with the feature `metal` and there
/// is one, else the CPU.
pub fn best_device() -> Device {
    metal_device().unwrap_or(Device::Cpu)
}
