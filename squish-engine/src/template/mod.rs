//! Chat templates: from a conversation to the text the model was trained on.
//!
//! A checkpoint carries its template as a Jinja program. It is run here with the settings, filters
//! and functions that Hugging Face transformers gives it, so that the prompt is the same to the
//! character, and within limits that no real template comes near (`sandbox`).

mod assignments;
mod environment;
mod python_json;
mod sandbox;
mod source;

use std::path::Path;

use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde_json::json;

use crate::{ChatRequest, Error, Result};
use source::TemplateFiles;

/// A checkpoint's chat template.
///
/// It sees the variables `messages`, `tools` (or `none`), `documents` (`none`),
/// `add_generation_prompt`, `bos_token` and `eos_token` where the tokenizer defines them, and the
/// request's own [variables](ChatRequest::variable).
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(String, String)>,
    has_tool_use: bool,
}

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// Reads the template of the checkpoint in `dir`: the file `chat_template.jinja`, else
    /// `chat_template` in `tokenizer_config.json`, which is either one template or a list of named
    /// ones (`default`, and `tool_use` for requests with tools). `None` if there is neither.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Json`] name the file; [`Error::Template`] if it does not parse.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        let files = TemplateFiles::read(dir.as_ref())?;
        let Some(default) = files.default else {
            return Ok(None);
        };
        let mut template = ChatTemplate::new(default)?;
        if let Some(source) = files.tool_use {
            template.add(TOOL_USE, source)?;
            template.has_tool_use = true;
        }
        template.special_tokens = files.special_tokens;
        Ok(Some(template))
    }

    /// A template from its Jinja source.
    ///
    /// # Errors
    /// [`Error::Template`] if it does not parse.
    pub fn new(source: impl Into<String>) -> Result<Self> {
        let mut template = ChatTemplate {
            environment: environment::transformers(),
            special_tokens: Vec::new(),
            has_tool_use: false,
        };
        template.add(DEFAULT, source.into())?;
        Ok(template)
    }

    /// This template with the variable `name` (such as `bos_token`) holding a special token's text.
    pub fn with_special_token(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.special_tokens.push((name.into(), text.into()));
        self
    }

    fn add(&mut self, name: &'static str, source: String) -> Result<()> {
        if source.len() > sandbox::MOST_SOURCE {
            let (bytes, most) = (source.len(), sandbox::MOST_SOURCE);
            return Err(Error::Template { message: format!("{bytes} bytes, at most {most} are read") });
        }
        // A name that a template gives a value of its own would be found before the check.
        if source.contains(assignments::KEPT) {
            let message = format!("the name {} is reserved", assignments::KEPT);
            return Err(Error::Template { message });
        }
        let added = self.environment.add_template_owned(name, assignments::checked(&source));
        added.map_err(|e| template_error(&e))
    }

    /// The text of the conversation, ready to be split into tokens; special tokens stand in it as
    /// text.
    ///
    /// # Errors
    /// [`Error::Template`] if the template fails, or refuses the conversation in its own words;
    /// [`Error::TemplateLimit`] if it works or writes more than any real one.
    pub fn render(&self, request: &ChatRequest<'_>) -> Result<String> {
        let tools = (!request.tools.is_empty()).then_some(&request.tools);
        let name = if tools.is_some() && self.has_tool_use { TOOL_USE } else { DEFAULT };
        let mut context = request.variables.clone();
        for (name, text) in &self.special_tokens {
            context.entry(name).or_insert_with(|| json!(text));
        }
        context.insert("messages".into(), json!(request.messages));
        context.insert("tools".into(), json!(tools));
        context.entry("documents").or_insert(json!(null));
        context.insert("add_generation_prompt".into(), json!(request.add_generation_prompt));

        let mut environment = self.environment.clone();
        sandbox::limit(&mut environment, json_bytes(&context));
        let render =
            move || environment.get_template(name).and_then(|t| t.render(Value::from(Serde(&context))));
        match sandbox::run(render) {
            Ok(Some(rendered)) => rendered.map_err(|e| template_error(&e)),
            Ok(None) => Err(Error::TemplateLimit),
            Err(e) => Err(Error::Template { message: format!("it could not be run: {e}") }),
        }
    }
}

/// Bytes of a value as JSON text.
fn json_bytes(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |text| text.len())
}

/// The innermost explanation: where a template calls `raise_exception`, its own words.
fn template_error(error: &minijinja::Error) -> Error {
    let spent = |error: &minijinja::Error| error.kind() == ErrorKind::OutOfFuel;
    if spent(error) {
        return Error::TemplateLimit;
    }
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.downcast_ref().is_some_and(spent) {
            return Error::TemplateLimit;
        }
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Error::Template { message }
}

#[cfg(test)]
mod tests;
