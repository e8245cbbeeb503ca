//! The messages of a conversation, in the JSON shape that chat templates expect.

use serde::{Deserialize, Serialize};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Instructions that hold for the whole conversation; the first message if at all.
    System,
    /// The person (or program) asking.
    User,
    /// The model.
    Assistant,
    /// The result of a tool that the model called.
    Tool,
}

/// One message of a conversation.
///
/// Fields that are absent stay absent in the template, so that `message.tool_calls is defined`
/// means what it means in Python.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    #[serde(default)]
    pub content: String,
    /// The model's reasoning before `content`, for templates that keep the two apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Tools that the assistant asks to be called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// For [`Role::Tool`]: the tool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For [`Role::Tool`]: the [`ToolCall::id`] this answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    fn new(role: Role, content: impl Into<String>) -> Self {
        Message {
            role,
            content: content.into(),
            reasoning_content: None,
            tool_calls: Vec::new(),
            name: None,
            tool_call_id: None,
        }
    }

    /// Instructions that hold for the whole conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// A question or statement of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// An answer of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// The result of the tool called `name`, as text (often JSON).
    pub fn tool(name: impl Into<String>, content: impl Into<String>) -> Self {
        let mut message = Self::new(Role::Tool, content);
        message.name = Some(name.into());
        message
    }

    /// This message with tools that the assistant asks to be called.
    pub fn with_tool_calls(mut self, tool_calls: Vec<ToolCall>) -> Self {
        self.tool_calls = tool_calls;
        self
    }

    /// This message with the model's reasoning kept apart from its content.
    pub fn with_reasoning(mut self, reasoning: impl Into<String>) -> Self {
        self.reasoning_content = Some(reasoning.into());
        self
    }
}

/// A tool call in an assistant's message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Name for the answering message to refer to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Kind of tool; `"function"` is the only one in use.
    #[serde(rename = "type", default = "function_kind")]
    pub kind: String,
    /// The function and its arguments.
    pub function: FunctionCall,
}

impl ToolCall {
    /// A call of the function `name` with `arguments`, a JSON object.
    pub fn new(name: impl Into<String>, arguments: serde_json::Value) -> Self {
        ToolCall { id: None, kind: function_kind(), function: FunctionCall { name: name.into(), arguments } }
    }
}

fn function_kind() -> String {
    "function".to_owned()
}

/// A function's name and the arguments to call it with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// Its arguments, a JSON object (order of keys kept).
    pub arguments: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_fields_are_not_written() {
        let json = serde_json::to_string(&Message::user("hi")).unwrap();
        assert_eq!(json, r#"{"role":"user","content":"hi"}"#);
    }

    #[test]
    fn reads_the_usual_shape_of_a_tool_call() {
        let text = r#"{"role":"assistant","tool_calls":[{"id":"c1","type":"function",
            "function":{"name":"add","arguments":{"b":1,"a":2}}}]}"#;
        let message: Message = serde_json::from_str(text).unwrap();
        assert_eq!(message.content, "");
        assert_eq!(message.tool_calls[0].function.name, "add");
        let arguments = message.tool_calls[0].function.arguments.to_string();
        assert_eq!(arguments, r#"{"b":1,"a":2}"#, "key order is part of the prompt");
    }

    #[test]
    fn unknown_role_is_refused() {
        assert!(serde_json::from_str::<Message>(r#"{"role":"king","content":""}"#).is_err());
    }
}
