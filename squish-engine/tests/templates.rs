//! Chat templates give the same text, to the character, as Python's Jinja2 set up as transformers
//! does. The expected texts were made by `golden/make.py`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use squish_engine::{ChatRequest, ChatTemplate, Error, Message};

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(default)]
    variables: Map<String, Value>,
    #[serde(default = "yes")]
    add_generation_prompt: bool,
    expected: Option<String>,
    refused: Option<String>,
}

fn yes() -> bool {
    true
}

fn check(template: &ChatTemplate, cases: &[Case]) {
    assert!(!cases.is_empty());
    for case in cases {
        let mut request = ChatRequest::new(&case.messages)
            .tools(case.tools.clone())
            .add_generation_prompt(case.add_generation_prompt);
        for (name, value) in &case.variables {
            request = request.variable(name, value.clone());
        }
        match (template.render(&request), &case.expected, &case.refused) {
            (Ok(text), Some(expected), _) => assert_eq!(&text, expected, "case {:?}", case.name),
            (Err(Error::Template { message }), None, Some(words)) => {
                assert!(message.contains(words), "case {:?}: {message}", case.name);
            }
            (result, ..) => panic!("case {:?}: unexpected {result:?}", case.name),
        }
    }
}

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read_to_string(path).unwrap()
}

fn check_checkpoint(name: &str) {
    #[derive(Deserialize)]
    struct Golden {
        checkpoint: PathBuf,
        cases: Vec<Case>,
    }
    let golden: Golden = serde_json::from_str(&golden(name)).unwrap();
    let shared = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"));
    if !shared.is_dir() {
        eprintln!("skipped: needs {}", shared.join(golden.checkpoint).display());
        return;
    }
    let template = ChatTemplate::from_dir(shared.join(golden.checkpoint)).unwrap().unwrap();
    check(&template, &golden.cases);
}

#[test]
fn qwen2_5() {
    check_checkpoint("qwen2.5.json");
}

#[test]
fn qwen3() {
    check_checkpoint("qwen3.json");
}

#[test]
fn gemma3_refuses_roles_that_do_not_alternate() {
    check_checkpoint("gemma3-tiny.json");
}

#[test]
fn small_templates() {
    #[derive(Deserialize)]
    struct Golden {
        template: String,
        cases: Vec<Case>,
    }
    let golden: Vec<Golden> = serde_json::from_str(&golden("small.json")).unwrap();
    for Golden { template, cases } in golden {
        let template = ChatTemplate::new(template).unwrap();
        check(&template.with_special_token("bos_token", "<s>"), &cases);
    }
}
