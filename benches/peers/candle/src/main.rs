//! `candle-peer MODEL.gguf PROMPT GENERATE DEPTH ROUNDS`: tokens a second of Candle's quantised Qwen2, as one JSON object.
//!
//! Fields: prefill and decode (tokens per second, medians of the rounds; prefill is null at a depth), and first_token (seconds from
//! the start of the program to one token's logits).

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, quantized::gguf_file};
use candle_transformers::models::quantized_qwen2::ModelWeights;
use std::{fs::File, io::BufReader, time::Instant};

fn main() -> Result<()> {
    let start = Instant::now();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, sizes @ ..] = &args[..] else {
        anyhow::bail!("usage: candle-peer MODEL.gguf PROMPT GENERATE DEPTH ROUNDS")
    };
    let sizes = sizes.iter().map(|size| size.parse()).collect::<Result<Vec<usize>, _>>()?;
    let &[prompt, generate, depth, rounds] = &sizes[..] else { anyhow::bail!("four numbers are expected") };

    let device = Device::Cpu;
    let mut file = BufReader::new(File::open(path).with_context(|| path.clone())?);
    let content = gguf_file::Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &device)?;
    // Position 0 makes the model forget what was before.
    let mut feed = |tokens: std::ops::Range<usize>, at: usize| -> Result<()> {
        let ids: Vec<u32> = tokens.map(|id| id as u32).collect();
        let ids = Tensor::new(ids, &device)?.unsqueeze(0)?;
        model.forward(&ids, at)?.to_device(&Device::Cpu)?;
        Ok(())
    };
    feed(0..1, 0)?;
    let first_token = start.elapsed().as_secs_f64();

    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        if depth == 0 {
            let start = Instant::now();
            feed(0..prompt, 0)?;
            prefill.push(prompt as f64 / start.elapsed().as_secs_f64());
        }
        // At least one token lies before those that are timed.
        let before = depth.max(1);
        feed(0..before, 0)?;
        let start = Instant::now();
        (0..generate).try_for_each(|i| feed(i..i + 1, before + i))?;
        decode.push(generate as f64 / start.elapsed().as_secs_f64());
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied()
    };
    let found = serde_json::json!({
        "prefill": median(&mut prefill), "decode": median(&mut decode), "first_token": first_token,
    });
    println!("{found}");
    Ok(())
}
