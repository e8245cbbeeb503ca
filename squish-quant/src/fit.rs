//! The memory that a model takes while it runs, and what a limit on it leaves for the weights.

use crate::{Error, Recipe, Result, plan::Plan, recipe::block_index};
use serde::Serialize;
use squish_hub::memory::Widths;
use squish_models::{
    Checkpoint, KvMode, KvPolicy, Model, SessionOptions,
    kv_cache::{KvCache, PLANNED_CONTEXT},
    model::PREFILL_CHUNK,
};

/// What a running model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Positions of the session.
    pub context: usize,
    /// Bytes of the weights files, all of them resident.
    pub weights_bytes: usize,
    /// How keys and values are stored, as `--kv` takes it.
    #[serde(serialize_with = "by_name")]
    pub kv: KvMode,
    /// Bytes of the keys and values of all positions, at most.
    pub kv_cache_bytes: usize,
    /// Bytes of a prefill's activations, of the logits, and of the program.
    pub working_bytes: usize,
}

impl Memory {
    /// What a checkpoint takes for one session of `context` positions, weights not counted.
    ///
    /// # Errors
    /// [`Error::Parameter`] when the context is empty or longer than the model's.
    pub fn without_weights(
        checkpoint: &Checkpoint,
        model: &Model,
        context: usize,
        kv: KvMode,
    ) -> Result<Self> {
        let config = model.config();
        if !(1..=config.context_length).contains(&context) {
            let value = format!("{context} (this model has {})", config.context_length);
            return Err(Error::Parameter { name: "the context", value, expected: "1 to the model's" });
        }
        let options = SessionOptions::in_mode(kv);
        options.check(config)?;
        let in_blocks = checkpoint.names().filter(|name| block_index(name).is_some());
        let mut widest = config.hidden_size;
        for name in in_blocks {
            widest = checkpoint.entry(name)?.1.shape.iter().copied().fold(widest, usize::max);
        }
        let widths = Widths {
            chunk: PREFILL_CHUNK as u64,
            widest: widest as u64,
            hidden: config.hidden_size as u64,
            vocabulary: config.vocab_size as u64,
        };
        Ok(Self {
            context,
            weights_bytes: 0,
            kv,
            kv_cache_bytes: KvCache::most_bytes(config, kv, options.recent, context),
            working_bytes: widths.working_bytes() as usize,
        })
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.weights_bytes + self.kv_cache_bytes + self.working_bytes
    }
}

/// A mode as its name.
pub(crate) fn by_name<S: serde::Serializer>(mode: &KvMode, out: S) -> std::result::Result<S::Ok, S::Error> {
    out.collect_str(mode)
}

/// Modes that are weighed against more bits for the weights, and the nats that each loses: the largest of the three models in
/// docs/kv_cache.md, rounded up.
const KV_LOSS: [(KvMode, f64); 3] = [(KvMode::F16, 0.0), (KvMode::K8V8, 0.0005), (KvMode::K8V4, 0.003)];

/// Nats that weights of so many bits lose, about: an exponential through the losses of allocated trellis codes at 3.02, 2.52 and 2.27 bits
/// (0.011, 0.028, 0.049). It is used to compare sizes of one model, for which its slope matters and its height does not.
fn weights_loss(bits: f64) -> f64 {
    0.028 * (-2.0 * (bits - 2.52)).exp()
}

/// What the weights files may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// This many bits for each parameter, everything counted.
    BitsPerParameter(f64),
    /// As much as this memory has room for, beside a session of so many positions.
    Memory {
        /// Bytes.
        limit: usize,
        /// Positions; absent, [`PLANNED_CONTEXT`], or the model's if it has fewer.
        context: Option<usize>,
        /// How keys and values are stored. Automatically: the mode that loses least together with the weights it leaves room for.
        kv: KvPolicy,
    },
}

impl Target {
    /// The bits per parameter of this target, and what is taken beside the weights where that matters.
    ///
    /// # Errors
    /// [`Error::Fit`] when nothing is left for the weights; those of [`Memory::without_weights`].
    pub fn bits(
        &self,
        checkpoint: &Checkpoint,
        model: &Model,
        recipe: &Recipe,
    ) -> Result<(f64, Option<Memory>)> {
        match *self {
            Self::BitsPerParameter(bits) => Ok((bits, None)),
            Self::Memory { limit, context, kv } => {
                let context = context.unwrap_or(PLANNED_CONTEXT.min(model.config().context_length));
                let parameters = Plan::new(checkpoint, recipe, usize::MAX)?.parameters;
                let modes: Vec<(KvMode, f64)> = match kv {
                    KvPolicy::Fixed(mode) => vec![(mode, 0.0)],
                    KvPolicy::Auto => KV_LOSS.to_vec(),
                };
                let mut best: Option<(f64, f64, Memory)> = None;
                let mut refused = None;
                for (mode, kv_loss) in modes {
                    if kv == KvPolicy::Auto && SessionOptions::in_mode(mode).check(model.config()).is_err() {
                        continue;
                    }
                    let memory = Memory::without_weights(checkpoint, model, context, mode)?;
                    let Some(room) = limit.checked_sub(memory.total()) else {
                        refused = Some(memory);
                        continue;
                    };
                    let bits = 8.0 * room as f64 / parameters as f64;
                    let loss = kv_loss + weights_loss(bits);
                    if best.is_none_or(|(least, ..)| loss < least) {
                        best = Some((loss, bits, memory));
                    }
                }
                match (best, refused) {
                    (Some((_, bits, memory)), _) => Ok((bits, Some(memory))),
                    (None, Some(memory)) => Err(Error::Fit { limit, memory, least: None }),
                    (None, None) => unreachable!("f16 can always be weighed"),
                }
            }
        }
    }

    /// An error of the allocation within this target, in the target's own terms.
    pub(crate) fn refused(&self, error: Error, memory: Option<Memory>) -> Error {
        match (error, *self, memory) {
            (Error::Budget { least_bytes, .. }, Self::Memory { limit, .. }, Some(memory)) => {
                Error::Fit { limit, memory, least: Some(least_bytes) }
            }
            (error, ..) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up() {
        let memory =
            Memory { context: 10, weights_bytes: 1, kv: KvMode::F16, kv_cache_bytes: 20, working_bytes: 300 };
        assert_eq!(memory.total(), 321);
    }
}
