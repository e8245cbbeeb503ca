//! Models and sessions.

use crate::{
    Checkpoint, Error, ModelConfig, Result,
    causal_lm::CausalLm,
    config, gemma3,
    kv_cache::{KvCache, KvPolicy, SessionOptions},
    qwen2, qwen3,
    workspace::Workspace,
};
use candle_core::{Device, Tensor};
use squish_kernels::kv::{DeviceHistory, Mode as KvMode};
use std::{path::Path, sync::Arc};

/// Loads a checkpoint of one architecture.
pub type Loader = fn(&Checkpoint, &Device) -> Result<Box<dyn CausalLm>>;

/// The architectures of this build, by the name that `config.json` gives them.
pub const ARCHITECTURES: &[(&str, Loader)] = &[
    ("Qwen2ForCausalLM", qwen2::load),
    ("Qwen3ForCausalLM", qwen3::load),
    ("Gemma3ForCausalLM", gemma3::load),
    (gemma3::WITH_IMAGES, gemma3::load),
];

/// Whether a tensor belongs to the language model of a checkpoint, and not to an image encoder beside it.
pub fn is_language(checkpoint: &Checkpoint, tensor: &str) -> bool {
    config::architecture(checkpoint).ok() != Some(gemma3::WITH_IMAGES) || gemma3::is_language(tensor)
}

/// Tokens that one forward pass of a long prompt takes: bounds the memory of its attention scores.
pub const PREFILL_CHUNK: usize = 512;

/// A loaded model. Cloning shares the weights; any number of sessions, in any threads, run on them.
#[derive(Debug, Clone)]
pub struct Model(Arc<dyn CausalLm>);

impl Model {
    /// Loads a checkpoint directory, squished or original, of any supported architecture.
    ///
    /// # Errors
    /// See [`Error`]; every variant names the file.
    pub fn from_dir(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open(dir)?, device)
    }

    /// Loads an open checkpoint. The weights stay mapped after the checkpoint is dropped.
    ///
    /// # Errors
    /// As [`Model::from_dir`].
    pub fn from_checkpoint(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let found = config::architecture(checkpoint)?;
        let Some((_, load)) = ARCHITECTURES.iter().find(|(name, _)| *name == found) else {
            let supported = ARCHITECTURES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            return Err(Error::Architecture {
                path: checkpoint.config_path(),
                found: found.into(),
                supported,
            });
        };
        Ok(Self(load(checkpoint, device)?.into()))
    }

    /// The model's sizes.
    pub fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    /// The architecture's own interface: its layers, one at a time.
    pub fn layers(&self) -> &dyn CausalLm {
        &*self.0
    }

    /// A new session with an empty cache, of keys and values in f32: as exact as can be. [`Model::session_with`] has smaller ones.
    pub fn session(&self) -> Session {
        let options = SessionOptions::in_mode(KvMode::F32);
        self.with_cache(self.empty_cache(KvMode::F32, options.recent), options)
    }

    /// A new session with an empty cache.
    ///
    /// # Errors
    /// Those of [`Model::kv_mode`].
    pub fn session_with(&self, options: SessionOptions) -> Result<Session> {
        let mode = self.kv_mode(&options)?;
        Ok(self.with_cache(self.empty_cache(mode, options.recent), options))
    }

    /// How a session with these options stores keys and values, where the model computes: on the CPU as
    /// [`SessionOptions::mode`] says. A GPU packs heads of 64, 128, 192 or 256 channels; of others, the automatic choice is f16.
    ///
    /// # Errors
    /// Those of [`SessionOptions::check`], and [`Error::KvDevice`] where a packed mode was asked for by name for other heads on a GPU.
    pub fn kv_mode(&self, options: &SessionOptions) -> Result<KvMode> {
        options.check(self.config())?;
        let mode = options.mode(self.config());
        match options.kv {
            _ if self.0.device().is_cpu() || !mode.is_packed() => Ok(mode),
            _ if DeviceHistory::takes(mode, self.config().head_dim) => Ok(mode),
            KvPolicy::Auto => Ok(KvMode::F16),
            KvPolicy::Fixed(_) => Err(Error::KvDevice(mode)),
        }
    }

    /// A cache where the model computes.
    pub(crate) fn empty_cache(&self, mode: KvMode, recent: usize) -> KvCache {
        KvCache::new(self.config().num_hidden_layers, mode, recent, self.0.device())
    }

    pub(crate) fn with_cache(&self, cache: KvCache, options: SessionOptions) -> Session {
        Session { cache, options, model: self.clone(), workspace: Workspace::default() }
    }
}

/// One sequence: a model and the cache of the positions it has seen.
#[derive(Debug, Clone)]
pub struct Session {
    model: Model,
    cache: KvCache,
    options: SessionOptions,
    workspace: Workspace,
}

impl Session {
    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What the session may hold, and how.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Keys and values: how they are stored, and what they take.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The most positions.
    pub fn context_length(&self) -> usize {
        self.options.context(self.model.config())
    }

    /// Positions in the cache.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Takes the next tokens, one or many, and returns the logits `[vocab_size]` f32 of the token after the last.
    ///
    /// # Errors
    /// [`Error::NoTokens`], [`Error::ContextFull`] and [`Error::Token`] before anything is computed, or a failed tensor operation; the
    /// cache then holds what it held before, or, after a failure in the midst of many tokens, what [`Session::truncate`] leaves of it.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Tensor> {
        if let &[id] = tokens
            && self.model.0.decodes_without_tensors()
        {
            self.decode(id)?;
            return Ok(Tensor::new(self.logits(), self.model.0.device())?);
        }
        let (model, end) = (self.model.clone(), tokens.len());
        let mut logits = None;
        self.forward(tokens, |start, hidden| {
            let n = hidden.dim(0)?;
            if start + n == end {
                logits = Some(model.0.head(hidden.narrow(0, n - 1, 1)?)?.squeeze(0)?);
            }
            Ok(())
        })?;
        logits.ok_or(Error::NoTokens)
    }

    /// [`Session::feed`], with the logits in a buffer of the session's: [`Session::logits`]. On a CPU nothing is allocated for a single
    /// token after the first one, but where a page of 64 positions begins: for the page, and for what attention needs then.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn advance(&mut self, tokens: &[u32]) -> Result<()> {
        match tokens {
            &[id] if self.model.0.decodes_without_tensors() => self.decode(id),
            _ => {
                let before = self.len();
                let logits = self.feed(tokens)?;
                self.workspace.set_logits(&logits).map_err(|error| {
                    self.truncate(before);
                    error.into()
                })
            }
        }
    }

    /// The logits `[vocab_size]` after the last token, where [`Session::advance`] took it; none after going back.
    pub fn logits(&self) -> &[f32] {
        &self.workspace.logits
    }

    /// Takes a token without tensors.
    fn decode(&mut self, id: u32) -> Result<()> {
        self.check(&[id])?;
        let before = self.len();
        self.model.0.decode(id, &mut self.cache, &mut self.workspace).map_err(|error| {
            self.workspace.logits.clear();
            self.truncate(before);
            error.into()
        })
    }

    /// Takes the next tokens and hands the logits of all of them to `visit`, a chunk at a time:
    /// `visit(index of the chunk's first token, logits [chunk, vocab_size])`.
    ///
    /// # Errors
    /// As [`Session::feed`], and whatever `visit` returns.
    pub fn feed_all(
        &mut self,
        tokens: &[u32],
        mut visit: impl FnMut(usize, Tensor) -> candle_core::Result<()> + Send,
    ) -> Result<()> {
        let model = self.model.clone();
        self.forward(tokens, |start, hidden| visit(start, model.0.head(hidden)?))
    }

    /// Runs the blocks over the tokens, chunk by chunk. On an error the cache is as it was, as far as it can go back.
    fn forward(
        &mut self,
        tokens: &[u32],
        mut visit: impl FnMut(usize, Tensor) -> candle_core::Result<()> + Send,
    ) -> Result<()> {
        self.check(tokens)?;
        self.workspace.logits.clear();
        let before = self.len();
        // Inside the thread pool, so that the many parallel ops of a step start without a hand-over from outside.
        rayon::scope(|_| {
            for (i, chunk) in tokens.chunks(PREFILL_CHUNK).enumerate() {
                let hidden = self.model.0.hidden(chunk, &mut self.cache);
                if let Err(error) = hidden.and_then(|hidden| visit(i * PREFILL_CHUNK, hidden)) {
                    self.truncate(before);
                    return Err(error.into());
                }
            }
            Ok(())
        })
    }

    /// Refuses what cannot be taken.
    fn check(&self, tokens: &[u32]) -> Result<()> {
        let vocab_size = self.model.config().vocab_size;
        let (needed, limit) = (self.len() + tokens.len(), self.context_length());
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        if needed > limit {
            return Err(Error::ContextFull { needed, limit });
        }
        match tokens.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(Error::Token { id, vocab_size }),
            None => Ok(()),
        }
    }

    /// Forgets the positions from `len` on, and as many before it as the cache cannot give back exactly: those must be fed
    /// again. Returns the positions left. Without packed or sliding layers nothing is lost; a few positions can
    /// always be taken back, and so can all since [`Session::set_mark`].
    pub fn truncate(&mut self, len: usize) -> usize {
        let before = self.len();
        let left = self.cache.truncate(len);
        if left < before {
            self.workspace.logits.clear();
        }
        left
    }

    /// Remembers the present length as one to which [`Session::truncate`] can go back whatever follows.
    pub fn set_mark(&mut self) {
        self.cache.set_mark();
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.cache.reset();
        self.workspace.logits.clear();
    }
}
