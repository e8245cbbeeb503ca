//! Writes an original checkpoint of a true model's shape with random bf16 weights, to measure speed and memory on.
//!
//!     cargo run --release -p squish-quant --example synthetic -- CONFIG_DIR OUT_DIR [SHARDS]
//!
//! CONFIG_DIR holds the `config.json` of a Qwen2 model; tokenizer files there are copied along. The weights are in one file, or in
//! SHARDS files of about the same size, with their index.

use anyhow::{Context, Result};
use half::bf16;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Map, Value};
use squish_quant::output::{OutputDir, Stored, WeightsFile};
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let (source, out, shards) = match &args[..] {
        [_, source, out] => (source, out, 1),
        [_, source, out, shards] => (source, out, shards.parse().context("SHARDS is no number")?),
        _ => anyhow::bail!("usage: synthetic CONFIG_DIR OUT_DIR [SHARDS]"),
    };
    let config: Value = serde_json::from_slice(&std::fs::read(Path::new(source).join("config.json"))?)?;
    let files = split(tensors(&config)?, shards);

    let metadata = Map::from_iter([("format".to_string(), Value::from("pt"))]);
    let needed: usize = files.iter().map(|(_, tensors)| WeightsFile::size(tensors, &metadata)).sum();
    let output = OutputDir::create(Path::new(out), needed as u64)?;
    let (mut seed, mut index) = (0, Map::new());
    for (name, tensors) in &files {
        let mut file = WeightsFile::create(&output.path().join(name), tensors.clone(), &metadata)?;
        for tensor in tensors {
            fill(&mut file, tensor, seed)?;
            seed += 1;
            index.insert(tensor.name.clone(), name.as_str().into());
        }
        file.finish(metadata.clone())?;
    }
    if files.len() > 1 {
        let index = serde_json::json!({"metadata": {}, "weight_map": index});
        output.write("model.safetensors.index.json", index.to_string().as_bytes())?;
    }
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        if let Ok(contents) = std::fs::read(Path::new(source).join(name)) {
            output.write(name, &contents)?;
        }
    }
    output.finish()?;
    println!("wrote {needed} bytes of weights to {out}");
    Ok(())
}

/// The tensors of each weights file, in the order of the tensors.
fn split(tensors: Vec<Stored>, shards: usize) -> Vec<(String, Vec<Stored>)> {
    let most = tensors.iter().map(|tensor| tensor.bytes).sum::<usize>().div_ceil(shards.max(1));
    let mut files = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        if filled >= most {
            files.push(Vec::new());
            filled = 0;
        }
        filled += tensor.bytes;
        files.last_mut().expect("there is a first file").push(tensor);
    }
    let count = files.len();
    let name = |i: usize| match count {
        1 => "model.safetensors".to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    files.into_iter().enumerate().map(|(i, tensors)| (name(i), tensors)).collect()
}

/// Norms are ones; everything else is Gaussian enough: a sum of four uniform values, sigma 0.02.
fn fill(file: &mut WeightsFile, tensor: &Stored, seed: usize) -> Result<()> {
    for (i, start) in (0..tensor.bytes).step_by(CHUNK).enumerate() {
        let mut bytes = vec![0; CHUNK.min(tensor.bytes - start)];
        if tensor.name.ends_with("norm.weight") {
            bytes.as_chunks_mut::<2>().0.fill(bf16::ONE.to_le_bytes());
        } else {
            bytes.par_chunks_mut(1 << 16).enumerate().for_each(|(j, bytes)| {
                let mut rng = StdRng::seed_from_u64((seed << 40 | i << 20 | j) as u64);
                for out in bytes.as_chunks_mut::<2>().0 {
                    let sum: f32 = rng.random::<[f32; 4]>().iter().sum();
                    *out = bf16::from_f32(0.02 * (sum - 2.0) * 3f32.sqrt()).to_le_bytes();
                }
            });
        }
        file.write(&tensor.name, start, &bytes)?;
    }
    Ok(())
}

/// Bytes that are made at once.
const CHUNK: usize = 1 << 24;

/// The tensors of a Qwen2 model of this configuration.
fn tensors(config: &Value) -> Result<Vec<Stored>> {
    let size = |name: &str| {
        let value = config
            .get(name)
            .and_then(Value::as_u64)
            .with_context(|| format!("config.json has no `{name}`"))?;
        anyhow::Ok(value as usize)
    };
    let (hidden, intermediate, heads) =
        (size("hidden_size")?, size("intermediate_size")?, size("num_attention_heads")?);
    let kv = hidden / heads * size("num_key_value_heads")?;
    let vocab = size("vocab_size")?;
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let bytes = 2 * shape.iter().product::<usize>();
        all.push(Stored { name, dtype: Dtype::BF16, shape: shape.to_vec(), bytes });
    };
    add("model.embed_tokens.weight".into(), &[vocab, hidden]);
    add("model.norm.weight".into(), &[hidden]);
    if config.get("tie_word_embeddings").and_then(Value::as_bool) != Some(true) {
        add("lm_head.weight".into(), &[vocab, hidden]);
    }
    for i in 0..size("num_hidden_layers")? {
        let at = format!("model.layers.{i}");
        add(format!("{at}.input_layernorm.weight"), &[hidden]);
        add(format!("{at}.post_attention_layernorm.weight"), &[hidden]);
        for (name, out) in [("q", hidden), ("k", kv), ("v", kv)] {
            add(format!("{at}.self_attn.{name}_proj.weight"), &[out, hidden]);
            add(format!("{at}.self_attn.{name}_proj.bias"), &[out]);
        }
        add(format!("{at}.self_attn.o_proj.weight"), &[hidden, hidden]);
        add(format!("{at}.mlp.gate_proj.weight"), &[intermediate, hidden]);
        add(format!("{at}.mlp.up_proj.weight"), &[intermediate, hidden]);
        add(format!("{at}.mlp.down_proj.weight"), &[hidden, intermediate]);
    }
    Ok(all)
}
