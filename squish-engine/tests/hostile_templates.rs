//! Templates that would run for ever, or fill the memory: each ends with a typed error. What one of them made of a limit is not timed;
//! without the limits this test does not end, or is ended by the system.

use squish_engine::{ChatRequest, ChatTemplate, Error, Message};

const HOSTILE: &str = include_str!("hostile_templates.txt");

fn render(source: &str, messages: &[Message]) -> Result<String, Error> {
    ChatTemplate::new(source)?.render(&ChatRequest::new(messages))
}

#[test]
fn each_ends_with_an_error_of_its_own() {
    let messages = [Message::user("hi"), Message::assistant("ho")];
    let mut idle = Vec::new();
    for source in HOSTILE.lines() {
        match render(source, &messages) {
            Err(Error::TemplateLimit) => {}
            // A line that is only misspelt would be refused, too, and try nothing.
            Err(Error::Template { message }) if is_misspelt(&message) => idle.push((source, message)),
            Err(Error::Template { .. }) => {}
            other => panic!("{source}: {:?}", other.map(|text| text.len())),
        }
    }
    assert!(idle.is_empty(), "{idle:#?}");
}

fn is_misspelt(message: &str) -> bool {
    ["syntax error", "unknown"].iter().any(|words| message.contains(words))
}

#[test]
fn loops_are_told_from_mistakes() {
    let endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    assert!(matches!(render(endless, &[]), Err(Error::TemplateLimit)));
    assert!(matches!(render("{{ nothing.at.all }}", &[]), Err(Error::Template { .. })));
    let long = format!("{{# {} #}}", "x".repeat(1 << 20));
    assert!(matches!(render(&long, &[]), Err(Error::Template { .. })));
}

/// What real templates do with many and long messages is far from every limit.
#[test]
fn a_long_conversation_passes() {
    let source = "{%- set ns = namespace(last=0, kept=[]) -%}
        {%- for m in messages[::-1] -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
        {%- for m in messages -%}
            {%- set ns.kept = ns.kept + [m] -%}
            {%- set content = m.content.strip().split('</think>')[-1].replace('\\r\\n', '\\n') -%}
            {{- '<|' + m.role + '|>' + content + '\\n' -}}
        {%- endfor -%}{{- messages | tojson | length -}}";
    let text = "The sea is wide. ".repeat(60);
    let messages: Vec<_> = (0..1000)
        .map(|i| if i % 2 == 0 { Message::user(&text) } else { Message::assistant(&text) })
        .collect();
    let rendered = render(source, &messages).unwrap();
    assert_eq!(rendered.matches("<|user|>").count(), 500);
    assert!(rendered.len() > 1_000_000);
}
