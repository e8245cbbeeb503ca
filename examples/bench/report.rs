//! What was measured, as a table and as JSON.

use serde::Serialize;
use squish_quant::Inspection;
use std::{fmt, time::Instant};

/// The fields of `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub device: &'static str,
    pub isa: &'static str,
    pub threads: usize,
    pub arithmetic: String,
    pub kv: String,
    pub rounds: usize,
    pub file_bytes: usize,
    pub bytes_per_token: usize,
    pub load_seconds: f64,
    pub first_token_seconds: f64,
    pub prefill: Prefill,
    pub decode: Vec<Decoding>,
    pub peak_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct Prefill {
    pub tokens: usize,
    pub tokens_per_second: Summary,
}

#[derive(Debug, Serialize)]
pub struct Decoding {
    pub depth: usize,
    pub tokens: usize,
    pub tokens_per_second: Summary,
    pub gigabytes_per_second: Summary,
}

/// Of the rates of several rounds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Summary {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Summary {
    pub fn scaled(self, factor: f64) -> Self {
        let Self { median, least, most } = self;
        Self { median: factor * median, least: factor * least, most: factor * most }
    }
}

/// Tokens a second, round by round.
#[derive(Debug, Clone)]
pub struct Rates(Vec<f64>);

impl Rates {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// So many tokens since `start`.
    pub fn push(&mut self, tokens: usize, start: Instant) {
        self.0.push(tokens as f64 / start.elapsed().as_secs_f64());
    }

    /// Of at least one round.
    pub fn summary(&self) -> Summary {
        let mut rates = self.0.clone();
        rates.sort_by(f64::total_cmp);
        Summary { median: rates[rates.len() / 2], least: rates[0], most: rates[rates.len() - 1] }
    }
}

/// Bytes of the weights that one token needs: all of them, but for an embedding that is not the head as well.
pub fn bytes_per_token(inspection: &Inspection) -> usize {
    let bytes = |name: &str| {
        let tensors = inspection.tensors.iter().filter(|tensor| tensor.name.ends_with(name));
        tensors.map(|tensor| tensor.bytes).sum::<usize>()
    };
    let untied = inspection.tensors.iter().any(|tensor| tensor.name == "lm_head.weight");
    bytes("") - if untied { bytes("embed_tokens.weight") } else { 0 }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mega = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        writeln!(f, "{}: {} on disk", self.model, mega(self.file_bytes as u64))?;
        writeln!(
            f,
            "{}, {} threads, {}, {}, keys and values in {}",
            self.device, self.threads, self.isa, self.arithmetic, self.kv
        )?;
        writeln!(f, "medians of {} rounds, in brackets the slowest and the fastest", self.rounds)?;
        writeln!(f, "start to model       {:>9.3} s", self.load_seconds)?;
        writeln!(f, "start to first token {:>9.3} s", self.first_token_seconds)?;
        let rate = |rate: &Summary| format!("{:>9.1} [{:.1}, {:.1}]", rate.median, rate.least, rate.most);
        let Prefill { tokens, tokens_per_second } = &self.prefill;
        writeln!(f, "prefill of {tokens:<6}    {} tokens/s", rate(tokens_per_second))?;
        for Decoding { depth, tokens_per_second, gigabytes_per_second, .. } in &self.decode {
            let bandwidth = gigabytes_per_second.median;
            writeln!(
                f,
                "decode at {depth:<6}     {} tokens/s, {bandwidth:.1} GB/s",
                rate(tokens_per_second)
            )?;
        }
        writeln!(f, "weights per token    {}", mega(self.bytes_per_token as u64))?;
        writeln!(f, "peak memory          {}", self.peak_bytes.map_or("unknown".into(), mega))
    }
}
