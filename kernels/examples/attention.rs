//! Times attention of one token over a long history, in each KV mode, in one run.
//!
//!     cargo run --release -p squish-kernels --example attention [positions] [kv_heads] [group] [head_dim] [layers]
//!
//! The defaults are Qwen2.5-1.5B's shape. Modes take turns, and each time is the least of several rounds.

use candle_core::{DType, Device, Result, Tensor};
use squish_kernels::{
    kv::{History, Mode, RECENT},
    ops::Attention,
};
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;

fn main() -> Result<()> {
    let given: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let size = |i: usize, default| given.get(i).copied().unwrap_or(default);
    let (len, kv_heads, group, head_dim, layers) =
        (size(0, 4096), size(1, 2), size(2, 6), size(3, 128), size(4, 28));
    let device = Device::Cpu;
    let random = |n: usize, heads: usize| Tensor::randn(0f32, 1.0, (heads, n, head_dim), &device);
    let q = random(1, kv_heads * group)?.to_dtype(DType::F32)?;
    let mut modes = Vec::new();
    for mode in Mode::NAMED {
        let mut histories = vec![History::new(mode, RECENT); layers];
        for history in &mut histories {
            while history.len() < len {
                let n = (len - history.len()).min(512);
                history.append(&random(n, kv_heads)?, &random(n, kv_heads)?, None)?;
                history.prune();
            }
        }
        modes.push((mode, histories, Duration::MAX));
    }
    for _ in 0..ROUNDS {
        for (_, histories, least) in &mut modes {
            let start = Instant::now();
            for history in histories.iter() {
                let op = Attention { scale: (head_dim as f32).powf(-0.5), softcap: None, history };
                q.apply_op1_no_bwd(&op)?;
            }
            *least = start.elapsed().min(*least);
        }
    }
    let (_, _, f16) = modes.iter().find(|(mode, ..)| *mode == Mode::F16).expect("a mode");
    println!("{layers} layers of {kv_heads} x {group} heads of {head_dim}, {len} positions");
    println!("mode   ms a token   time over f16's   MB   bytes a position");
    for (mode, histories, time) in &modes {
        let bytes: usize = histories.iter().map(History::bytes).sum();
        println!(
            "{mode:5} {:10.2} {:17.2} {:7.1} {:8.0}",
            time.as_secs_f64() * 1e3,
            time.as_secs_f64() / f16.as_secs_f64(),
            bytes as f64 / 1e6,
            bytes as f64 / len as f64,
        );
    }
    Ok(())
}
