//! `squish-quant smoke`.

use super::{named, print, print_json, progress::Bar};
use anyhow::{Result, bail};
use clap::Args;
use squish_quant::eval::smoke;
use std::{fmt::Write, path::PathBuf};

/// Let a checkpoint continue five prompts, and fail if what it writes is no text.
///
/// Exit code 1, and one line that says why, when an answer is empty, repeats itself or holds control characters, or
/// when the model finds plain English as unlikely as chance would. docs/evaluation.md defines each.
///
/// With --json: passed, fault (null, or kind and what belongs to it), prompt_nll (nats per token of the prompts), answers: each prompt,
/// text, tokens, repetition (of the longest run that repeats itself: tokens, period; null without one).
#[derive(Debug, Args)]
pub struct Smoke {
    /// A checkpoint directory, squished or original, or a name (`list`).
    dir: PathBuf,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

impl Smoke {
    pub fn run(self) -> Result<()> {
        if self.tokens == 0 {
            bail!("--tokens is 0, expected at least 1");
        }
        let bar = Bar::new(!self.json)?;
        let smoke = smoke(&named::model(&self.dir)?, self.tokens, &bar)?;
        drop(bar);
        if self.json {
            print_json(&smoke)?;
        } else {
            let mut text = String::new();
            for answer in &smoke.answers {
                let plain = |c: char| c.is_control() && !c.is_whitespace();
                let written = answer.text.replace(plain, "\u{fffd}").replace('\r', "\u{fffd}");
                let _ = writeln!(text, "> {}{written}\n", answer.prompt);
            }
            print(&text)?;
        }
        match smoke.fault {
            None => Ok(()),
            Some(fault) => bail!("{}: {fault}", self.dir.display()),
        }
    }
}
