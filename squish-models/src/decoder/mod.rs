//! The decoder that the families share: what makes each of them is data.

mod config;
mod decode;

use crate::{
    Checkpoint, Error, Result,
    causal_lm::{CausalLm, Step},
    checkpoint::Tensors,
    config::{ModelConfig, architecture},
    kv_cache::{KvCache, LayerCache},
    layers::{Attention, AttentionShape, Embedding, GatedMlp, Linear, RmsNorm, Rope, Rotary, Stream},
    workspace::Workspace,
};
use candle_core::{Device, Tensor};
pub use config::{BlockNorms, DecoderConfig, Sliding, SlidingBlocks};
use squish_kernels::Input;

/// A loaded model.
#[derive(Debug)]
struct Decoder {
    config: ModelConfig,
    embedding: Embedding,
    embedding_scale: f64,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    logit_cap: Option<f64>,
    rotary: Rotary,
    sliding_rotary: Option<Rotary>,
    device: Device,
    /// Whether somebody sees the inputs of linears.
    observed: bool,
}

#[derive(Debug)]
struct Block {
    sliding: bool,
    before_attention: RmsNorm,
    attention: Attention,
    after_attention: Option<RmsNorm>,
    before_mlp: RmsNorm,
    mlp: GatedMlp,
    after_mlp: Option<RmsNorm>,
}

/// Loads a decoder from the tensors of a checkpoint.
///
/// # Errors
/// When a tensor is missing or not what the configuration says.
pub fn load(checkpoint: &Checkpoint, c: DecoderConfig, device: &Device) -> Result<Box<dyn CausalLm>> {
    let s = &c.sizes;
    let tensors = checkpoint.tensors(&c.prefix);
    let norm = |name: &str, at: &Tensors| RmsNorm::load(&at.pp(name), s.hidden_size, c.norm, device);
    let embedding = Embedding::load(&tensors.pp("embed_tokens"), s.vocab_size, s.hidden_size)?;
    let head = match &c.head {
        None => embedding.as_head(),
        Some(name) => Linear::load(&checkpoint.tensors(name), s.vocab_size, s.hidden_size, false, device)?,
    };
    let block = |i| {
        let at = tensors.pp("layers").pp(i);
        let sliding = c.sliding.as_ref().filter(|sliding| sliding.blocks.contains(i));
        let shape = AttentionShape { window: sliding.map(|sliding| sliding.window), ..c.attention };
        Ok(Block {
            sliding: sliding.is_some(),
            before_attention: norm(c.norms.before_attention, &at)?,
            attention: Attention::load(&at.pp("self_attn"), shape, device)?,
            after_attention: c.norms.after_attention.map(|name| norm(name, &at)).transpose()?,
            before_mlp: norm(c.norms.before_mlp, &at)?,
            mlp: GatedMlp::load(&at.pp("mlp"), s.hidden_size, s.intermediate_size, c.activation, device)?,
            after_mlp: c.norms.after_mlp.map(|name| norm(name, &at)).transpose()?,
        })
    };
    let rotary = |rope: &Rope| Rotary::new(c.attention.head_dim, rope, s.max_position_embeddings);
    Ok(Box::new(Decoder {
        config: ModelConfig {
            architecture: architecture(checkpoint)?.into(),
            vocab_size: s.vocab_size,
            context_length: c.rope.context_length(s.max_position_embeddings),
            hidden_size: s.hidden_size,
            num_hidden_layers: s.num_hidden_layers,
            num_key_value_heads: s.num_key_value_heads,
            head_dim: s.head_dim(),
            sliding_window: c.sliding.as_ref().map(|sliding| sliding.window),
            num_sliding_layers: c.sliding.as_ref().map_or(0, |sliding| {
                (0..s.num_hidden_layers).filter(|&i| sliding.blocks.contains(i)).count()
            }),
        },
        embedding,
        embedding_scale: c.embedding_scale,
        blocks: (0..s.num_hidden_layers).map(block).collect::<Result<_>>()?,
        norm: norm("norm", &tensors)?,
        head,
        logit_cap: c.logit_cap,
        rotary: rotary(&c.rope),
        sliding_rotary: c.sliding.as_ref().map(|sliding| rotary(&sliding.rope)),
        device: device.clone(),
        observed: checkpoint.is_observed(),
    }))
}

impl Decoder {
    /// Refuses what is no token. Done here for every device: a GPU's look-up would give a row that is no number.
    fn check(&self, ids: &[u32]) -> candle_core::Result<()> {
        let vocab_size = self.config.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(candle_core::Error::wrap(Error::Token { id, vocab_size })),
            None => Ok(()),
        }
    }

    /// [`CausalLm::attention`] from stream to stream.
    fn attend<'a>(
        &'a self,
        block: usize,
        stream: Stream<'a>,
        step: &Step,
        cache: &mut LayerCache,
    ) -> candle_core::Result<Stream<'a>> {
        let block = &self.blocks[block];
        let rotary = step.sliding_rotary.as_ref().filter(|_| block.sliding).unwrap_or(&step.rotary);
        let (stream, x) = block.before_attention.of_stream(stream, block.attention.rotation())?;
        let y = block.attention.forward(&x, rotary, cache)?;
        Ok(stream.plus(y, block.after_attention.as_ref()))
    }

    /// [`CausalLm::mlp`] from stream to stream.
    fn feed_forward<'a>(&'a self, block: usize, stream: Stream<'a>) -> candle_core::Result<Stream<'a>> {
        let block = &self.blocks[block];
        let (stream, x) = block.before_mlp.of_stream(stream, block.mlp.rotation())?;
        let y = block.mlp.forward(&x)?;
        Ok(stream.plus(y, block.after_mlp.as_ref()))
    }
}

impl CausalLm for Decoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn embed(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        self.check(ids)?;
        let x = self.embedding.forward(&Tensor::new(ids, &self.device)?)?;
        if self.embedding_scale == 1.0 { Ok(x) } else { x * self.embedding_scale }
    }

    fn step(&self, past: usize, n: usize) -> candle_core::Result<Step> {
        let table = |rotary: &Rotary| rotary.table(past, n, &self.device);
        let sliding_rotary = self.sliding_rotary.as_ref().map(table).transpose()?;
        Ok(Step { rotary: table(&self.rotary)?, sliding_rotary })
    }

    fn attention(
        &self,
        block: usize,
        x: &Tensor,
        step: &Step,
        cache: &mut LayerCache,
    ) -> candle_core::Result<Tensor> {
        self.attend(block, Stream::new(x)?, step, cache)?.sum()
    }

    fn mlp(&self, block: usize, x: &Tensor) -> candle_core::Result<Tensor> {
        self.feed_forward(block, Stream::new(x)?)?.sum()
    }

    fn adds_plainly(&self) -> bool {
        self.blocks.iter().all(|block| block.after_attention.is_none() && block.after_mlp.is_none())
    }

    fn norm(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.norm.forward(x)
    }

    /// Each norm adds up what the layer before it left to be added.
    fn hidden(&self, ids: &[u32], cache: &mut KvCache) -> candle_core::Result<Tensor> {
        let step = self.step(cache.len(), ids.len())?;
        let mut stream = Stream::new(&self.embed(ids)?)?;
        for block in 0..self.blocks.len() {
            stream = self.attend(block, stream, &step, cache.layer(block))?;
            stream = self.feed_forward(block, stream)?;
        }
        let (_, hidden) = self.norm.of_stream(stream, None)?;
        Ok(hidden.plain()?.clone())
    }

    fn head(&self, hidden: Tensor) -> candle_core::Result<Tensor> {
        let logits = self.head.forward(&Input::new(hidden))?;
        match self.logit_cap {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }

    fn decodes_without_tensors(&self) -> bool {
        self.device.is_cpu() && !self.observed
    }

    fn decode(&self, id: u32, cache: &mut KvCache, workspace: &mut Workspace) -> candle_core::Result<()> {
        self.decode_in(id, cache, workspace)
    }
}
