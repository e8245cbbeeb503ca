//! Talk to a model: `cargo run --release --example chat -- --help`.

mod args;
mod conversation;
mod device;
mod interrupt;
mod model_dir;
mod repl;

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use squish_engine::{Message, Pipeline, hub};

use args::Args;
use conversation::Conversation;

fn main() -> ExitCode {
    squish_engine::keep_freed_memory();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has had enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<hub::Error>() {
                Some(absent @ hub::Error::Absent(_)) => eprintln!("{absent}"),
                _ => eprintln!("error: {}", one_line(&error)),
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let dir = model_dir::resolve(&args.model)?;
    let builder = Pipeline::builder().device(device::chosen(args.device)?).kv(args.kv);
    let builder = args.context.map_or(builder.clone(), |tokens| builder.context(tokens));
    let pipeline = args.thinking.map_or(builder.clone(), |yes| builder.thinking(yes)).build(&dir)?;
    let pipeline = pipeline.with_options(args.options(pipeline.options())?);
    let mut out = std::io::stdout();

    if args.json {
        return answer_json(args, &pipeline, &mut out);
    }
    let mut conversation = Conversation::new(pipeline.session(), args.system.clone(), args.raw);
    if let Some(prompt) = &args.prompt {
        return conversation.ask(&read_prompt(prompt)?, &mut out);
    }
    let stdin = std::io::stdin();
    if stdin.is_terminal() && out.is_terminal() {
        let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy();
        return repl::interactive(&mut conversation, &name, &mut out);
    }
    repl::lines(&mut conversation, stdin.lock(), &mut out)
}

fn answer_json(args: &Args, pipeline: &Pipeline, out: &mut impl Write) -> Result<()> {
    let prompt = read_prompt(args.prompt.as_deref().unwrap_or("-"))?;
    let completion = if args.raw {
        pipeline.complete(&prompt)?
    } else {
        let mut messages: Vec<_> = args.system.iter().map(Message::system).collect();
        messages.push(Message::user(prompt));
        pipeline.chat_stream(&messages)?.split_reasoning().into_completion()?
    };
    writeln!(out, "{}", serde_json::to_string(&completion)?)?;
    Ok(())
}

/// The prompt itself, or standard input for "-".
fn read_prompt(prompt: &str) -> Result<String> {
    if prompt != "-" {
        return Ok(prompt.to_owned());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("standard input is not UTF-8 text")?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(text)
}

/// An error's message without line breaks and escape sequences, which names from files may hold.
fn one_line(error: &anyhow::Error) -> String {
    error.to_string().replace(char::is_control, "\u{fffd}")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
