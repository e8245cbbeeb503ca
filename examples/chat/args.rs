//! The command line.

use crate::device::DeviceChoice;
use clap::Parser;
use squish_engine::{GenerationOptions, KvPolicy};

/// Talk to a model.
///
/// Without --prompt: a conversation at the terminal, or one question a line when standard input is
/// not a terminal.
#[derive(Debug, Parser)]
#[command(
    name = "chat",
    after_help = "At the terminal: /reset, /stats, /help, /quit; Ctrl-C stops the answer, Ctrl-D leaves."
)]
pub struct Args {
    /// Directory of a checkpoint, squished or original; the name of one in assets/ or in
    /// $SQUISH_HOME/models; a name of the catalog (qwen2.5-7b-sqint2), or hf:org/repo[@rev]
    #[arg(long, default_value = "squish-tiny-sqint2")]
    pub model: String,

    /// Answer this and end, with nothing but the answer on standard output; "-" reads standard input
    #[arg(long)]
    pub prompt: Option<String>,

    /// Continue the text as it stands, without the chat template
    #[arg(long)]
    pub raw: bool,

    /// Instructions that hold for the whole conversation
    #[arg(long, conflicts_with = "raw")]
    pub system: Option<String>,

    /// Whether a model that can do both (Qwen3) thinks before it answers; absent, as it does unasked
    ///
    /// The reasoning goes to standard error.
    #[arg(long, value_name = "true|false", conflicts_with = "raw")]
    pub thinking: Option<bool>,

    /// With --prompt: print one JSON object
    ///
    /// Its fields: text; reasoning (where there was any); prompt_tokens; cached_tokens (of the prompt, not computed again);
    /// generated_tokens; time_to_first_token_seconds (null if there was no token); decode_seconds
    /// (from the first token to the last); tokens_per_second (in that time); seed (repeats the
    /// answer); finish_reason (stop, stop_string, length or cancelled).
    #[arg(long, requires = "prompt")]
    pub json: bool,

    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_tokens: usize,

    /// Where to compute; absent, on Metal where this is built with the feature `metal` and there is such a device, else on
    /// the CPU
    #[arg(long, value_name = "cpu|metal")]
    pub device: Option<DeviceChoice>,

    /// How keys and values of the conversation are stored: auto (by --context), f32, f16, k8v8, k8v4, k4v4, ...
    #[arg(long, value_name = "MODE", default_value_t = KvPolicy::Auto)]
    pub kv: KvPolicy,

    /// Most tokens of conversation and answer together; absent, the model's own, and --kv auto plans for 8192
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,

    #[command(flatten)]
    pub sampling: Sampling,
}

/// What replaces the checkpoint's own generation options.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling (defaults: the checkpoint's own)")]
pub struct Sampling {
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,

    /// Draw from the K likeliest tokens only; 0 turns it off
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// Draw from the likeliest tokens that together have probability P
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,

    /// Draw from tokens at least P times as probable as the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,

    /// Above 1 makes tokens already in the text less likely
    #[arg(long, value_name = "R")]
    repetition_penalty: Option<f64>,

    /// The same seed gives the same answer
    #[arg(long)]
    seed: Option<u64>,

    /// Text that ends an answer, without being part of it; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl Args {
    /// The checkpoint's options with those of the command line in their place.
    ///
    /// # Errors
    /// The first option out of its range.
    pub fn options(&self, defaults: &GenerationOptions) -> Result<GenerationOptions, squish_engine::Error> {
        let given = &self.sampling;
        let mut options = defaults.clone().max_tokens(self.max_tokens);
        options.temperature = given.temperature.unwrap_or(options.temperature);
        options.top_p = given.top_p.unwrap_or(options.top_p);
        options.min_p = given.min_p.unwrap_or(options.min_p);
        options.repetition_penalty = given.repetition_penalty.unwrap_or(options.repetition_penalty);
        options.seed = given.seed.or(options.seed);
        if let Some(k) = given.top_k {
            options.top_k = Some(k).filter(|&k| k > 0);
        }
        if !given.stop.is_empty() {
            options.stop = given.stop.clone();
        }
        options.validate()?;
        Ok(options)
    }
}
