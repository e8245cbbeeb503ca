//! The conversation at a terminal, or line by line from a pipe.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use anyhow::Result;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use squish_engine::{FinishReason, Stats};

use crate::conversation::Conversation;
use crate::{interrupt, is_broken_pipe, one_line};

const HELP: &str = "\
/reset   forget the conversation
/stats   counts and times of the last answer, and the memory of the conversation
/help    this list
/quit    leave (or Ctrl-D)
Ctrl-C   stop the answer; Up and Down walk through what you have typed";

/// One question a line until the end of the input.
pub fn lines(conversation: &mut Conversation, input: impl BufRead, out: &mut impl Write) -> Result<()> {
    for line in input.lines() {
        let line = line?;
        if !line.trim().is_empty() {
            conversation.ask(line.trim(), out)?;
        }
    }
    Ok(())
}

/// Talks at the terminal until /quit or Ctrl-D.
pub fn interactive(conversation: &mut Conversation, name: &str, out: &mut impl Write) -> Result<()> {
    interrupt::install()?;
    let style = Style::new();
    let mut editor = DefaultEditor::new()?;
    let history = history_file();
    if let Some(path) = &history {
        // The first time there is none.
        let _ = editor.load_history(path);
    }
    writeln!(out, "{}", style.dim(&format!("{name}. /help lists commands, Ctrl-D leaves.")))?;
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                writeln!(out, "{}", style.dim("(Ctrl-D or /quit leaves)"))?;
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let _ = editor.add_history_entry(line);
        match line {
            "/quit" | "/exit" => break,
            "/help" => writeln!(out, "{HELP}")?,
            "/reset" => {
                conversation.reset();
                writeln!(out, "{}", style.dim("(forgotten)"))?;
            }
            "/stats" => {
                match conversation.last() {
                    Some(stats) => writeln!(out, "{}", describe(stats))?,
                    None => writeln!(out, "no answer yet")?,
                }
                writeln!(out, "{}", conversation.memory())?;
            }
            _ if line.starts_with('/') && !line.contains(' ') => {
                writeln!(out, "unknown command {line}; /help lists them")?;
            }
            question => answer(conversation, question, out, &style)?,
        }
    }
    if let Some(path) = &history
        && let Err(error) = editor.save_history(path)
    {
        eprintln!("warning: cannot save the history to {}: {error}", path.display());
    }
    Ok(())
}

/// An error of one answer does not end the conversation.
fn answer(
    conversation: &mut Conversation,
    question: &str,
    out: &mut impl Write,
    style: &Style,
) -> Result<()> {
    let _answering = interrupt::Answering::new();
    match conversation.ask(question, out) {
        Err(error) if is_broken_pipe(&error) => return Err(error),
        Err(error) => eprintln!("error: {}", one_line(&error)),
        Ok(()) => {
            let note = match conversation.last().and_then(|stats| stats.finish_reason) {
                Some(FinishReason::Cancelled) => "(stopped)",
                Some(FinishReason::Length) => "(cut short: --max-tokens, or the context is full)",
                _ => return Ok(()),
            };
            writeln!(out, "{}", style.dim(note))?;
        }
    }
    Ok(())
}

fn describe(stats: &Stats) -> String {
    let first = match stats.time_to_first_token {
        Some(time) => format!("{:.3} s", time.as_secs_f64()),
        None => "never".to_owned(),
    };
    format!(
        "prompt      {} tokens, {} of them in the cache\n\
         first token {first} ({:.1} tokens/s)\n\
         answer      {} tokens in {:.2} s after the first ({:.1} tokens/s)\n\
         seed        {}",
        stats.prompt_tokens,
        stats.cached_tokens,
        stats.prompt_tokens_per_second(),
        stats.generated_tokens,
        stats.decode_time.as_secs_f64(),
        stats.tokens_per_second(),
        stats.seed,
    )
}

/// History outlives the program only where the user has made a home for it.
fn history_file() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os("SQUISH_HOME")?);
    home.is_dir().then(|| home.join("chat_history"))
}

struct Style {
    colour: bool,
}

impl Style {
    /// Used only at a terminal; <https://no-color.org>.
    fn new() -> Self {
        Style { colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    fn dim(&self, text: &str) -> String {
        if self.colour { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}
