//! What distinguishes one family's decoder from another's.

use crate::{
    config::Sizes,
    layers::{Activation, AttentionShape, NormStyle, Rope},
};

/// What a decoder is made of.
#[derive(Debug, Clone)]
pub struct DecoderConfig {
    /// Sizes.
    pub sizes: Sizes,
    /// Where the tensors are: `embed_tokens`, `layers` and `norm` lie below this name.
    pub prefix: String,
    /// Name of the output head; `None` where it is tied to the embedding.
    pub head: Option<String>,
    /// Factor of the embeddings. transformers rounds it to the type that it computes in; here that is f32.
    pub embedding_scale: f64,
    /// Attention.
    pub attention: AttentionShape,
    /// Rotary embedding of layers that see all positions.
    pub rope: Rope,
    /// Layers that see a window, where there are such.
    pub sliding: Option<Sliding>,
    /// Norms.
    pub norm: NormStyle,
    /// Names of a block's norms.
    pub norms: BlockNorms,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Logits `l` become `c tanh(l / c)`.
    pub logit_cap: Option<f64>,
}

/// Layers whose positions see the latest ones only.
#[derive(Debug, Clone)]
pub struct Sliding {
    /// So many, itself counted.
    pub window: usize,
    /// Their rotary embedding.
    pub rope: Rope,
    /// Which blocks they are.
    pub blocks: SlidingBlocks,
}

/// Which blocks see a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlidingBlocks {
    /// All but each `n`-th: with 6, all but blocks 5, 11, 17, ...
    AllButEach(usize),
    /// Those with true.
    Listed(Vec<bool>),
}

impl SlidingBlocks {
    /// Whether this block does.
    pub(super) fn contains(&self, block: usize) -> bool {
        match self {
            Self::AllButEach(n) => !(block + 1).is_multiple_of(*n),
            Self::Listed(blocks) => blocks.get(block) == Some(&true),
        }
    }
}

/// Names of a block's norms: before a layer and, in sandwich form, after it as well.
#[derive(Debug, Clone, Copy)]
pub struct BlockNorms {
    /// Of the residual stream, for attention.
    pub before_attention: &'static str,
    /// Of attention's output.
    pub after_attention: Option<&'static str>,
    /// Of the residual stream, for the MLP.
    pub before_mlp: &'static str,
    /// Of the MLP's output.
    pub after_mlp: Option<&'static str>,
}

impl DecoderConfig {
    /// Pre-norm blocks without biases, a SwiGLU MLP, and one kind of attention.
    pub fn new(sizes: Sizes, rope: Rope) -> Self {
        let attention = AttentionShape {
            hidden_size: sizes.hidden_size,
            heads: sizes.num_attention_heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim: sizes.head_dim(),
            qkv_bias: false,
            output_bias: false,
            head_norms: None,
            score_scale: (sizes.head_dim() as f64).powf(-0.5),
            score_cap: None,
            window: None,
        };
        Self {
            prefix: "model".into(),
            head: Some("lm_head".into()),
            embedding_scale: 1.0,
            attention,
            rope,
            sliding: None,
            norm: sizes.norm(),
            norms: BlockNorms {
                before_attention: "input_layernorm",
                after_attention: None,
                before_mlp: "post_attention_layernorm",
                after_mlp: None,
            },
            activation: Activation::Silu,
            logit_cap: None,
            sizes,
        }
    }
}
