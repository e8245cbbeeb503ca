//! The pipeline on real checkpoints: the bundled model, and the original it was made from where
//! `../shared` is there.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};
use squish_engine::{
    CertificateDemand, ChatRequest, Error, FinishReason, GenerationOptions, Message, Part, Pipeline,
    PipelineBuilder, Session,
};

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/squish-tiny-sqint2");
const ORIGINAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/testbed/qwen2.5-tiny");

fn checkpoints() -> Vec<PathBuf> {
    let (present, absent): (Vec<_>, Vec<_>) =
        [BUNDLED, ORIGINAL].map(PathBuf::from).into_iter().partition(|dir| dir.join("config.json").is_file());
    for dir in absent {
        eprintln!("skipped: needs {}", dir.display());
    }
    present
}

/// Every checkpoint there is, loaded once, with greedy options.
fn pipelines() -> &'static [Pipeline] {
    static PIPELINES: OnceLock<Vec<Pipeline>> = OnceLock::new();
    PIPELINES.get_or_init(|| {
        let options = GenerationOptions::greedy().max_tokens(24);
        let build = |dir| Pipeline::builder().options(options.clone()).build(dir).unwrap();
        checkpoints().iter().map(build).collect()
    })
}

/// A copy of a checkpoint with one of its JSON files changed.
fn changed(file: &str, change: impl Fn(&mut Value)) -> Option<tempfile::TempDir> {
    let source = checkpoints().into_iter().next()?;
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let text = std::fs::read(&path).unwrap();
            std::fs::write(copy.path().join(path.file_name().unwrap()), text).unwrap();
        }
    }
    let path = copy.path().join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
    Some(copy)
}

fn question() -> [Message; 2] {
    [Message::system("You are a helpful assistant."), Message::user("Why is the sky blue?")]
}

#[test]
fn is_shared_between_threads() {
    fn shared<T: Clone + Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Pipeline>();
    sent::<Session>();
    sent::<PipelineBuilder>();
}

#[test]
fn greedy_answers_repeat() {
    for pipeline in pipelines() {
        let first = pipeline.chat(&question()).unwrap();
        let second = pipeline.chat(&question()).unwrap();
        assert_eq!(first.text, second.text);
        assert!(!first.text.trim().is_empty());
        assert!(!first.text.contains("<|"), "a special token came out: {:?}", first.text);
        assert!(first.stats.prompt_tokens > 10 && first.stats.cached_tokens == 0);
        assert!(first.stats.generated_tokens > 0 && first.stats.tokens_per_second() > 0.0);
    }
}

#[test]
fn a_seed_fixes_the_answer() {
    for pipeline in pipelines() {
        let draw = |seed: Option<u64>| {
            let options = GenerationOptions::default().top_k(50).max_tokens(24).seed(seed);
            pipeline.with_options(options).complete("The history of").unwrap()
        };
        let (one, other) = (draw(Some(1)), draw(Some(2)));
        assert_eq!(one.text, draw(Some(1)).text);
        assert_ne!(one.text, other.text);
        let chosen = draw(None);
        assert_eq!(chosen.text, draw(Some(chosen.stats.seed)).text, "the seed reported repeats it");
    }
}

#[test]
fn the_stream_is_the_answer_in_pieces() {
    for pipeline in pipelines() {
        for (temperature, prompt) in [(0.0, "The sea"), (1.8, "日本語 – naïve 🙂👩‍👩‍👧 ﷽ ")]
        {
            let options = pipeline.options().clone().temperature(temperature).seed(3);
            let pipeline = pipeline.with_options(options);
            let whole = pipeline.complete(prompt).unwrap();
            let mut stream = pipeline.complete_stream(prompt).unwrap();
            let pieces: Vec<String> = stream.by_ref().map(Result::unwrap).collect();
            assert_eq!(pieces.concat(), whole.text);
            assert!(pieces.len() > 1 && pieces.iter().all(|piece| !piece.is_empty()));
            assert_eq!(stream.stats().generated_tokens, whole.stats.generated_tokens);
            assert_eq!(stream.stats().finish_reason, whole.stats.finish_reason);
            assert!(stream.next().is_none());
        }
    }
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    for pipeline in pipelines() {
        let whole = pipeline.complete("The sea is").unwrap().text;
        // From the middle of the text, across words and so across tokens.
        let from = whole.char_indices().nth(whole.chars().count() / 2).unwrap().0;
        let stop: String = whole[from..].chars().take(12).collect();
        let options = pipeline.options().clone().stop(["never to be seen", &stop]);
        let cut = pipeline.with_options(options).complete("The sea is").unwrap();
        assert_eq!(cut.text, whole[..whole.find(&stop).unwrap()]);
        assert_eq!(cut.stats.finish_reason, Some(FinishReason::StopString));
    }
}

#[test]
fn max_tokens_is_kept() {
    for pipeline in pipelines() {
        for n in [1, 2, 7] {
            let options = pipeline.options().clone().max_tokens(n);
            let answer = pipeline.with_options(options).complete("The sea is").unwrap();
            assert_eq!(answer.stats.generated_tokens, n);
            assert_eq!(answer.stats.finish_reason, Some(FinishReason::Length));
        }
    }
}

#[test]
fn the_end_token_ends_the_answer() {
    let Some(whole) = pipelines().first().map(|p| p.complete("The sea is").unwrap().text) else { return };
    // Declare a token from the middle of the text to be the end.
    let tokens = pipelines()[0].tokenizer().encode(&whole).unwrap();
    let end = tokens[tokens.len() / 2];
    let before = tokens.iter().position(|&token| token == end).unwrap();
    let Some(dir) = changed("generation_config.json", |config| config["eos_token_id"] = json!([end])) else {
        return;
    };
    let pipeline = Pipeline::builder().options(pipelines()[0].options().clone()).build(&dir).unwrap();
    let answer = pipeline.complete("The sea is").unwrap();
    assert_eq!(answer.text, pipeline.tokenizer().decode(&tokens[..before]).unwrap());
    assert_eq!(answer.stats.generated_tokens, before);
    assert_eq!(answer.stats.finish_reason, Some(FinishReason::Stop));
}

#[test]
fn cancelled_before_the_prompt_is_read() {
    for pipeline in pipelines() {
        let mut stream = pipeline.complete_stream(&"word ".repeat(3000)).unwrap();
        stream.cancel_token().cancel();
        assert!(stream.next().is_none());
        let stats = stream.stats();
        assert_eq!(stats.finish_reason, Some(FinishReason::Cancelled));
        assert_eq!((stats.generated_tokens, stats.time_to_first_token), (0, None));
    }
}

#[test]
fn cancelled_from_another_thread() {
    for pipeline in pipelines() {
        let options = GenerationOptions::default().seed(5);
        let mut session = pipeline.with_options(options).session();
        let mut stream = session.complete_stream("The sea").unwrap();
        let token = stream.cancel_token();
        let first = stream.next().unwrap().unwrap();
        std::thread::spawn(move || token.cancel()).join().unwrap();
        let rest: Vec<String> = stream.by_ref().map(Result::unwrap).collect();
        assert!(!first.is_empty() && rest.len() <= 1, "only what was held back may follow: {rest:?}");
        assert_eq!(stream.stats().finish_reason, Some(FinishReason::Cancelled));
        drop(stream);
        // The session goes on as if nothing had happened.
        session.set_options(pipeline.options().clone());
        assert_eq!(
            session.complete("The sea is").unwrap().text,
            pipeline.complete("The sea is").unwrap().text
        );
    }
}

#[test]
fn sessions_in_threads_do_not_meet() {
    for pipeline in pipelines() {
        let prompts = ["The sea", "In 1905,", "Once upon a time", "A recipe for"];
        let alone = prompts.map(|prompt| pipeline.complete(prompt).unwrap().text);
        let together = std::thread::scope(|scope| {
            prompts
                .map(|p| scope.spawn(move || pipeline.session().complete(p).unwrap().text))
                .map(|t| t.join())
        });
        assert_eq!(together.map(Result::unwrap), alone);
    }
}

#[test]
fn a_saved_session_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.safetensors");
    for pipeline in pipelines() {
        let mut session = pipeline.session();
        let mut messages = question().to_vec();
        let answer = session.chat(&messages).unwrap();
        session.save(&path).unwrap();
        messages.push(Message::assistant(answer.text));
        messages.push(Message::user("And at sunset?"));
        let mut restored = pipeline.restore_session(&path).unwrap();
        assert_eq!(restored.cached_tokens(), session.cached_tokens());
        assert_eq!((restored.kv_mode(), restored.kv_bytes()), (session.kv_mode(), session.kv_bytes()));
        let [expected, found] = [&mut session, &mut restored].map(|session| session.chat(&messages).unwrap());
        assert_eq!(found.text, expected.text);
        assert!(found.stats.cached_tokens > 0 && found.stats.cached_tokens == expected.stats.cached_tokens);
        // Half a file is an error that names it, and leaves nothing behind.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = pipeline.restore_session(&path).unwrap_err().to_string();
        assert!(error.contains("session.safetensors"), "{error}");
    }
}

#[test]
fn a_session_answers_like_a_new_one_and_reads_less() {
    for pipeline in pipelines() {
        let mut session = pipeline.session();
        let mut messages = question().to_vec();
        for next in ["And at sunset?", "Tell me about the sea.", "Thank you 🙂"] {
            let answer = session.chat(&messages).unwrap();
            let fresh = pipeline.chat(&messages).unwrap();
            assert_eq!(answer.text, fresh.text);
            assert_eq!(answer.stats.prompt_tokens, fresh.stats.prompt_tokens);
            if messages.len() > 2 {
                let unread = answer.stats.prompt_tokens - answer.stats.cached_tokens;
                assert!(unread < 40, "{unread} tokens were read again");
            }
            messages.push(Message::assistant(answer.text));
            messages.push(Message::user(next));
        }
        // An edited past, and the same question twice.
        messages.truncate(2);
        messages[1] = Message::user("Why is grass green?");
        let edited = session.chat(&messages).unwrap();
        assert_eq!(edited.text, pipeline.chat(&messages).unwrap().text);
        assert!(edited.stats.cached_tokens > 0);
        let again = session.chat(&messages).unwrap();
        assert_eq!(again.text, edited.text);
        assert_eq!(again.stats.cached_tokens, again.stats.prompt_tokens - 1);
        session.reset();
        assert_eq!(session.cached_tokens(), 0);
        assert_eq!(session.chat(&messages).unwrap().stats.cached_tokens, 0);
    }
}

#[test]
fn a_request_brings_its_own_options() {
    for pipeline in pipelines() {
        let messages = question();
        let request = ChatRequest::new(&messages).options(GenerationOptions::greedy().max_tokens(3));
        assert_eq!(pipeline.chat(request).unwrap().stats.generated_tokens, 3);
        let bad = ChatRequest::new(&messages).options(GenerationOptions::default().top_p(2.0));
        assert!(matches!(pipeline.chat(bad), Err(Error::Option { field: "top_p", .. })));
    }
}

#[test]
fn nothing_to_answer_is_an_error() {
    for pipeline in pipelines() {
        assert!(matches!(pipeline.complete(""), Err(Error::EmptyPrompt)));
        assert!(matches!(pipeline.chat(&[]), Err(Error::EmptyPrompt)));
    }
}

#[test]
fn the_context_has_an_end() {
    let Some(dir) = changed("config.json", |config| config["max_position_embeddings"] = json!(24)) else {
        return;
    };
    let pipeline = Pipeline::builder().options(GenerationOptions::greedy()).build(&dir).unwrap();
    let answer = pipeline.complete("Once upon a time there was").unwrap();
    assert_eq!(answer.stats.prompt_tokens + answer.stats.generated_tokens, 24);
    assert_eq!(answer.stats.finish_reason, Some(FinishReason::Length));
    let long = pipeline.complete(&"word ".repeat(30)).unwrap_err();
    assert!(matches!(long, Error::PromptTooLong { context_length: 24, .. }), "{long}");
    let session = &mut pipeline.session();
    for _ in 0..2 {
        assert_eq!(session.complete("Once upon a time there was").unwrap().text, answer.text);
    }
}

#[test]
fn a_tokenizer_of_another_model_is_an_error() {
    let add_token = |tokenizer: &mut Value| {
        let far = json!({"id": 8192, "content": "<|far|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true});
        tokenizer["added_tokens"].as_array_mut().unwrap().push(far);
    };
    let Some(dir) = changed("tokenizer.json", add_token) else { return };
    let pipeline = Pipeline::from_dir(&dir).unwrap();
    let error = pipeline.complete("Hello <|far|>").unwrap_err();
    assert!(matches!(error, Error::Vocabulary { token: 8192, vocab_size: 8192 }), "{error}");
}

#[test]
fn without_a_template_there_is_no_chat() {
    let remove = |config: &mut Value| {
        config.as_object_mut().unwrap().remove("chat_template");
    };
    let Some(dir) = changed("tokenizer_config.json", remove) else { return };
    let options = GenerationOptions::greedy().max_tokens(4);
    let pipeline = Pipeline::builder().options(options).build(&dir).unwrap();
    assert!(matches!(pipeline.chat(&question()), Err(Error::NoChatTemplate)));
    assert!(!pipeline.complete("The").unwrap().text.is_empty());
}

#[test]
fn a_directory_without_a_checkpoint_is_named() {
    let error = Pipeline::from_dir(Path::new("/nowhere/at all")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at all"), "{error}");
}

#[test]
fn the_checkpoint_says_how_it_is_sampled() {
    for dir in checkpoints() {
        let pipeline = Pipeline::from_dir(dir).unwrap();
        let options = pipeline.options();
        assert_eq!((options.temperature, options.top_k, options.top_p), (0.7, Some(20), 0.8));
        assert_eq!(pipeline.eos_token_ids(), [2, 0]);
    }
}

#[test]
fn a_certificate_can_be_demanded() {
    for dir in checkpoints() {
        // No squished model is that close, and an original one has no certificate.
        let demand = CertificateDemand { max_kl: Some(0.0), ..CertificateDemand::default() };
        let error = Pipeline::builder().require_certificate(demand).build(&dir).unwrap_err();
        assert!(error.to_string().contains("model.safetensors: "), "{error}");
        assert!(matches!(error, Error::Model(squish_models::Error::Certificate { .. })), "{error}");
    }
}

/// A template that says whether it was told to think, and begins the reasoning itself.
const THINKING: &str = "{%- for m in messages %}{{ m.content }}{% endfor -%}\
    {%- if enable_thinking is not defined %} unasked unasked\
    {%- elif enable_thinking %} <think>{{ '\\n' }}{% else %} <think></think> told not to think at all{% endif -%}";

#[test]
fn whether_to_think_reaches_the_template() {
    let Some(dir) = changed("tokenizer_config.json", |json| json["chat_template"] = THINKING.into()) else {
        return;
    };
    let build = |thinking: Option<bool>| {
        let builder = Pipeline::builder().options(GenerationOptions::greedy().max_tokens(12));
        thinking.map_or(builder.clone(), |yes| builder.thinking(yes)).build(dir.path()).unwrap()
    };
    let messages = [Message::user("The sea is a body of salt water that")];
    let prompt_tokens = |pipeline: &Pipeline, thinking: Option<bool>| {
        let request = ChatRequest::new(&messages);
        let request = thinking.map_or(request.clone(), |yes| request.thinking(yes));
        pipeline.chat(request).unwrap().stats.prompt_tokens
    };
    let plain = build(None);
    let [unasked, yes, no] = [None, Some(true), Some(false)].map(|asked| prompt_tokens(&plain, asked));
    assert!(unasked != yes && yes != no && no != unasked, "{unasked} {yes} {no}");
    // The pipeline says it for requests that do not.
    for (says, expected) in [(true, yes), (false, no)] {
        let pipeline = build(Some(says));
        assert_eq!(prompt_tokens(&pipeline, None), expected);
        assert_eq!(prompt_tokens(&pipeline, Some(!says)), if says { no } else { yes });
        let other = pipeline.with_options(pipeline.options().clone().max_tokens(3));
        assert_eq!(prompt_tokens(&other, None), expected);
    }

    // The model goes on with the reasoning that the prompt began, and never ends it.
    let whole = plain.chat(ChatRequest::new(&messages).thinking(true)).unwrap();
    assert!(whole.reasoning.is_none() && !whole.text.trim().is_empty(), "{whole:?}");
    let split = || plain.chat_stream(ChatRequest::new(&messages).thinking(true)).unwrap().split_reasoning();
    let apart = split().into_completion().unwrap();
    assert_eq!((apart.reasoning.as_deref(), &*apart.text), (Some(whole.text.trim()), ""));
    assert_eq!(apart.stats.generated_tokens, whole.stats.generated_tokens);
    let pieces: Vec<Part> = split().map(Result::unwrap).collect();
    assert!(pieces.len() > 1 && pieces.iter().all(|part| matches!(part, Part::Reasoning(_))), "{pieces:?}");
    // Told not to, it answers.
    let answer = plain.chat_stream(ChatRequest::new(&messages).thinking(false)).unwrap();
    let answer = answer.split_reasoning().into_completion().unwrap();
    assert!(answer.reasoning.is_none() && !answer.text.is_empty());
}

#[test]
fn other_families_talk_too() {
    for (name, bos) in [("qwen3-tiny", None), ("gemma3-tiny", Some("<bos>"))] {
        let dir = Path::new(ORIGINAL).with_file_name(name);
        if !dir.is_dir() {
            eprintln!("skipped: needs {}", dir.display());
            continue;
        }
        let options = GenerationOptions::greedy().max_tokens(24);
        let pipeline = Pipeline::builder().options(options).build(&dir).unwrap();
        let tokenizer = pipeline.tokenizer();
        let messages = vec![Message::user("Why is the sky blue?")];
        let text = pipeline.chat_template().unwrap().render(&ChatRequest::from(&messages)).unwrap();
        for prompt in [tokenizer.encode(&text).unwrap(), tokenizer.encode_plain("The sea is").unwrap()] {
            // Once, whether the template writes it or the tokenizer is asked to add it.
            let bos = bos.map(|bos| tokenizer.token_id(bos).unwrap());
            let found: Vec<u32> = prompt.iter().copied().filter(|id| Some(*id) == bos).collect();
            assert!(found.iter().copied().eq(bos) && prompt.starts_with(&found), "{name}: {prompt:?}");
        }
        // Turns of a session answer as a cold run does, beyond a window of 256 too.
        let mut session = pipeline.session();
        let mut messages = messages;
        for question in ["And the sea?", &"Why is the sky blue, and the sea? ".repeat(40), "Why?"] {
            let answer = session.chat(&messages).unwrap();
            assert_eq!(answer.text, pipeline.chat(&messages).unwrap().text, "{name}");
            assert!(!answer.text.trim().is_empty() && !answer.text.contains("<|"), "{name}: {}", answer.text);
            messages.push(Message::assistant(answer.text));
            messages.push(Message::user(question));
        }
        assert!(session.cached_tokens() > 300, "{name}: {}", session.cached_tokens());
    }
}
