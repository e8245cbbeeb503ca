//! Calibration text that the model writes itself (LLM-QAT, Liu et al. 2023): sampled at temperature 1, it has
//! the statistics of what the model believes, and needs no data.

use super::text::Amount;
use crate::{Error, Progress, Result, eval::sample};
use candle_core::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use squish_models::{Model, kv_cache::LayerCache};

/// Sequences that are written side by side, so that one reading of the MLPs' weights serves them all.
const SIDE_BY_SIDE: usize = 64;

/// `amount.windows` sequences of `amount.window` tokens, deterministic in the seed. Each begins with `prefix` and a token
/// drawn uniformly from the vocabulary; a sequence that reaches an end of text goes on with the next, as in training data.
///
/// # Errors
/// When the logits are no numbers, or the caller interrupts.
pub fn self_written(
    model: &Model,
    prefix: &[u32],
    amount: Amount,
    seed: u64,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u32>>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let vocabulary = model.config().vocab_size as u32;
    let mut begin = || [prefix, &[rng.random_range(0..vocabulary)]].concat();
    let mut windows: Vec<Vec<u32>> = (0..amount.windows).map(|_| begin()).collect();
    let total = amount.windows * amount.window;
    for (group, sequences) in windows.chunks_mut(SIDE_BY_SIDE).enumerate() {
        let mut writers = Writers::new(model, sequences.len());
        for position in 1..amount.window {
            let done = group * SIDE_BY_SIDE * amount.window + position * sequences.len();
            progress.at(done, total, "calibration text");
            if progress.interrupted() {
                return Err(Error::Interrupted);
            }
            let last: Vec<u32> = sequences.iter().map(|ids| ids[position - 1]).collect();
            let logits = writers.next(&last, position - 1)?;
            if position <= prefix.len() {
                continue;
            }
            let logits = logits.to_vec2::<f32>()?;
            // Drawn in order, looked up in parallel: the same for any number of threads.
            let draws: Vec<f64> = sequences.iter().map(|_| rng.random()).collect();
            let drawn: Vec<Option<u32>> =
                logits.par_iter().zip(draws).map(|(logits, draw)| sample(logits, 1.0, draw)).collect();
            for (i, (ids, id)) in sequences.iter_mut().zip(drawn).enumerate() {
                let window = group * SIDE_BY_SIDE + i;
                ids.push(id.ok_or_else(|| Error::NotFiniteLogits {
                    model: "the model".into(),
                    part: "calibration window",
                    index: window,
                })?);
            }
        }
    }
    windows.iter_mut().for_each(|ids| ids.truncate(amount.window));
    Ok(windows)
}

/// Sequences of one length, each with a cache of its own.
struct Writers<'a> {
    model: &'a Model,
    /// By sequence, then by block.
    caches: Vec<Vec<LayerCache>>,
}

impl<'a> Writers<'a> {
    fn new(model: &'a Model, sequences: usize) -> Self {
        let blocks = model.config().num_hidden_layers;
        let caches = (0..sequences).map(|_| (0..blocks).map(|_| LayerCache::default()).collect());
        Self { model, caches: caches.collect() }
    }

    /// Takes a token of each sequence, at the same position, and returns the logits `[sequences, vocab_size]` of the next.
    fn next(&mut self, ids: &[u32], position: usize) -> candle_core::Result<Tensor> {
        let layers = self.model.layers();
        let step = layers.step(position, 1)?;
        let mut x = layers.embed(ids)?;
        for block in 0..self.model.config().num_hidden_layers {
            let attended: Vec<Tensor> = self
                .caches
                .par_iter_mut()
                .enumerate()
                .map(|(i, caches)| layers.attention(block, &x.narrow(0, i, 1)?, &step, &mut caches[block]))
                .collect::<candle_core::Result<_>>()?;
            x = layers.mlp(block, &Tensor::cat(&attended, 0)?)?;
        }
        layers.head(layers.norm(&x)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    fn bundled() -> Model {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/squish-tiny-sqint2");
        crate::eval::exact(dir.as_ref()).unwrap()
    }

    #[test]
    fn the_seed_decides_the_text() {
        let model = bundled();
        let amount = Amount { window: 6, windows: 3 };
        let write = |seed| self_written(&model, &[7, 8], amount, seed, &Silent).unwrap();
        let text = write(1);
        assert_eq!(text, write(1));
        assert_ne!(text, write(2));
        assert!(text.len() == 3 && text.iter().all(|ids| ids.len() == 6 && ids.starts_with(&[7, 8])));
    }

    #[test]
    fn sequences_side_by_side_do_not_see_each_other() {
        let model = bundled();
        let sequences = [[3u32, 70, 9], [500, 3, 4]];
        let mut writers = Writers::new(&model, 2);
        let mut sessions = [model.session(), model.session()];
        for position in 0..3 {
            let ids = sequences.map(|ids| ids[position]);
            let together = writers.next(&ids, position).unwrap().to_vec2::<f32>().unwrap();
            for (i, session) in sessions.iter_mut().enumerate() {
                let alone = session.feed(&ids[i..=i]).unwrap().to_vec1::<f32>().unwrap();
                let far = together[i].iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(far < 1e-3, "{position} {i}: {far}");
            }
        }
    }

    #[test]
    fn sampling_follows_the_distribution() {
        let logits = [0.0, 3f32.ln(), f32::NEG_INFINITY];
        assert_eq!(
            [0.0, 0.24, 0.26, 0.999].map(|draw| sample(&logits, 1.0, draw)),
            [Some(0), Some(0), Some(1), Some(1)]
        );
        assert_eq!(sample(&[f32::NAN, 1.0], 1.0, 0.5), None);
        assert_eq!(sample(&[f32::NEG_INFINITY; 2], 1.0, 0.5), None);
    }
}
