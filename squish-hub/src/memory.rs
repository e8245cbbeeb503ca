//! What a running model takes beside its weights and its keys and values, from its widths alone: one formula for what the catalog
//! predicts and for what is counted of a checkpoint.

/// The program and its tokenizer: Qwen2.5's, of 151,643 words, was measured to take 166 MB while it is loaded, the program some 12 MB.
pub const PROGRAM: u64 = 200_000_000;

/// Activations of a token that exist at the same time, in widths of the block's widest matrix: gate, up, their product
/// and its rotated copy; twice, since an allocator does not give back at once what is freed.
const WIDEST: u64 = 8;
/// And in widths of the residual stream: the stream, its norm, the rotated norm, the sum, and queries, keys and values as they are laid out;
/// twice. With a prompt of 1,797 tokens, a model of Qwen2.5-1.5B's shape was measured to take 946 MB, where this counts 968.
const HIDDEN: u64 = 16;

/// The widths that decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Widths {
    /// Tokens of a prompt that are taken at once.
    pub chunk: u64,
    /// Of the widest matrix inside a block.
    pub widest: u64,
    /// Of the residual stream.
    pub hidden: u64,
    /// Token ids.
    pub vocabulary: u64,
}

impl Widths {
    /// Bytes of a prefill's activations, of the logits, and of the program.
    pub fn working_bytes(&self) -> u64 {
        let activations = self.chunk * (WIDEST * self.widest + HIDDEN * self.hidden);
        // Logits, their probabilities, and their order, for a sampler.
        let logits = 4 * self.vocabulary;
        PROGRAM + size_of::<f32>() as u64 * (activations + logits)
    }
}
