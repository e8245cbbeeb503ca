//! A question to a chat model: the conversation, and what goes with it.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::{GenerationOptions, Message};

/// The variable by which templates of models that can think are told whether to.
const ENABLE_THINKING: &str = "enable_thinking";

/// A conversation to continue, with tools, template variables and options of its own.
///
/// Wherever a request is expected, `&[Message]`, `&Vec<Message>` or `&[Message; N]` will do.
///
/// ```
/// use squish_engine::{ChatRequest, GenerationOptions, Message};
///
/// let messages = [Message::user("What is a squeeze?")];
/// let request = ChatRequest::new(&messages)
///     .thinking(false)
///     .options(GenerationOptions::greedy());
/// ```
#[derive(Debug, Clone)]
pub struct ChatRequest<'a> {
    pub(crate) messages: Cow<'a, [Message]>,
    pub(crate) tools: Vec<Value>,
    pub(crate) variables: Map<String, Value>,
    pub(crate) options: Option<GenerationOptions>,
    pub(crate) add_generation_prompt: bool,
}

impl<'a> ChatRequest<'a> {
    /// A request to continue the conversation `messages` as the assistant.
    pub fn new(messages: impl Into<Cow<'a, [Message]>>) -> Self {
        ChatRequest {
            messages: messages.into(),
            tools: Vec::new(),
            variables: Map::new(),
            options: None,
            add_generation_prompt: true,
        }
    }

    /// Offers tools to the model: for each a JSON object, usually
    /// `{"type": "function", "function": {"name": .., "description": .., "parameters": JSON schema}}`.
    pub fn tools(mut self, tools: impl IntoIterator<Item = Value>) -> Self {
        self.tools = tools.into_iter().collect();
        self
    }

    /// Whether a model that can do both thinks before it answers: the variable `enable_thinking` of its template. Absent,
    /// as the [pipeline](crate::PipelineBuilder::thinking) says, or else as the template does unasked.
    ///
    /// [`TextStream::split_reasoning`](crate::TextStream::split_reasoning) tells the reasoning from the answer.
    pub fn thinking(self, yes: bool) -> Self {
        self.variable(ENABLE_THINKING, yes)
    }

    pub(crate) fn says_whether_to_think(&self) -> bool {
        self.variables.contains_key(ENABLE_THINKING)
    }

    /// Sets a variable of the chat template.
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Uses `options` for this answer in place of the pipeline's or session's.
    pub fn options(mut self, options: GenerationOptions) -> Self {
        self.options = Some(options);
        self
    }

    /// Whether the prompt ends with the beginning of an assistant's message. True unless set.
    pub fn add_generation_prompt(mut self, yes: bool) -> Self {
        self.add_generation_prompt = yes;
        self
    }
}

impl<'a> From<&'a [Message]> for ChatRequest<'a> {
    fn from(messages: &'a [Message]) -> Self {
        ChatRequest::new(messages)
    }
}

impl<'a> From<&'a Vec<Message>> for ChatRequest<'a> {
    fn from(messages: &'a Vec<Message>) -> Self {
        ChatRequest::new(messages.as_slice())
    }
}

impl<'a, const N: usize> From<&'a [Message; N]> for ChatRequest<'a> {
    fn from(messages: &'a [Message; N]) -> Self {
        ChatRequest::new(messages.as_slice())
    }
}
