use super::*;
use crate::Message;

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

fn render(dir: &Path, request: &ChatRequest<'_>) -> String {
    ChatTemplate::from_dir(dir).unwrap().unwrap().render(request).unwrap()
}

#[test]
fn the_file_comes_before_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::from_dir(dir.path()).unwrap().is_none());
    let messages = [Message::user("hi")];
    let request = ChatRequest::new(&messages);
    write(dir.path(), "tokenizer_config.json", r#"{"chat_template": "config"}"#);
    assert_eq!(render(dir.path(), &request), "config");
    write(dir.path(), "chat_template.jinja", "file {{ messages[0].content }}\n");
    assert_eq!(render(dir.path(), &request), "file hi");
}

#[test]
fn a_list_of_templates_has_one_for_tools() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"chat_template": [
        {"name": "tool_use", "template": "tools {{ tools | length }}"},
        {"name": "default", "template": "plain"}]}"#;
    write(dir.path(), "tokenizer_config.json", config);
    let messages = [Message::user("hi")];
    assert_eq!(render(dir.path(), &ChatRequest::new(&messages)), "plain");
    let with_tools = ChatRequest::new(&messages).tools([json!({"name": "clock"})]);
    assert_eq!(render(dir.path(), &with_tools), "tools 1");
}

#[test]
fn special_tokens_are_text_or_objects() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"chat_template": "{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}",
        "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "unk_token": null}"#;
    write(dir.path(), "tokenizer_config.json", config);
    assert_eq!(render(dir.path(), &ChatRequest::new(&[])), "<s></s>False");
}

#[test]
fn errors_say_what_is_wrong() {
    let error = ChatTemplate::new("{% if %}").unwrap_err();
    assert!(matches!(error, Error::Template { .. }));
    let refusing = ChatTemplate::new("{{ raise_exception('only in pairs') }}").unwrap();
    let error = refusing.render(&ChatRequest::new(&[])).unwrap_err();
    assert!(error.to_string().contains("only in pairs"), "{error}");
    for hostile in [
        "{{ messages[7].content.x }}",
        "{{ missing | tojson }}",
        "{{ messages | tojson(indent=10000000) }}",
        "{{ messages | tojson(colour=1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ strftime_now('%!') }}",
    ] {
        let template = ChatTemplate::new(hostile).unwrap();
        let result = template.render(&ChatRequest::new(&[]));
        assert!(matches!(result, Err(Error::Template { .. })), "{hostile}: {result:?}");
    }
}

#[test]
fn the_date_can_be_asked_for() {
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}").unwrap();
    let date = template.render(&ChatRequest::new(&[])).unwrap();
    assert_eq!(date.len(), "01 Jan 2025".len(), "{date}");
}
