//! A step of decoding on the CPU without tensors.
//!
//! It is [`CausalLm::hidden`](crate::causal_lm::CausalLm::hidden) and the head for a single token, with the same results to the bit. What
//! a step works with lies in a [`Workspace`] that the next one uses again: nothing is allocated but where a page of keys and values begins,
//! for it and for what attention needs then.

use super::Decoder;
use crate::{kv_cache::KvCache, workspace::Workspace};
use squish_kernels::ops::Added;

impl Decoder {
    /// [`CausalLm::decode`](crate::causal_lm::CausalLm::decode).
    pub(super) fn decode_in(
        &self,
        id: u32,
        cache: &mut KvCache,
        workspace: &mut Workspace,
    ) -> candle_core::Result<()> {
        self.check(&[id])?;
        let Workspace { stream, layer, rotary, sliding_rotary, attention, mlp, logits } = workspace;
        stream.resize(self.config.hidden_size, 0.0);
        self.embedding.row(id, stream);
        if self.embedding_scale != 1.0 {
            let scale = self.embedding_scale as f32;
            stream.iter_mut().for_each(|x| *x *= scale);
        }
        self.rotary.row(cache.len(), rotary);
        self.sliding_rotary.iter().for_each(|of| of.row(cache.len(), sliding_rotary));

        // What each layer leaves in `layer` is added to the stream by the norm of the next.
        let mut added = Added::Nothing;
        for (i, block) in self.blocks.iter().enumerate() {
            let rotary = if block.sliding { &*sliding_rotary } else { &*rotary };
            block.before_attention.of_layer(stream, layer, added, block.attention.rotation())?;
            block.attention.decode(layer, rotary, cache.layer(i), attention)?;
            added = block.after_attention.as_ref().map_or(Added::AsItIs, Added::Normed);
            block.before_mlp.of_layer(stream, layer, added, block.mlp.rotation())?;
            block.mlp.decode(layer, mlp)?;
            added = block.after_mlp.as_ref().map_or(Added::AsItIs, Added::Normed);
        }
        self.norm.of_layer(stream, layer, added, None)?;

        logits.resize(self.config.vocab_size, 0.0);
        self.head.decode(layer, logits)?;
        if let Some(cap) = self.logit_cap {
            // A tensor is divided by a number so.
            let (inverse, cap) = ((1.0 / cap) as f32, cap as f32);
            logits.iter_mut().for_each(|l| *l = (*l * inverse).tanh() * cap);
        }
        Ok(())
    }
}
