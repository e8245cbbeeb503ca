//! Launches: what each op asks of the device.
//!
//! | module | launches of |
//! | --- | --- |
//! | [`products`] | matrices times inputs |
//! | [`rotation`] | rotations, norms and gated products |
//! | [`heads`] | queries, keys and values made ready for attention |
//! | [`attention`] | attention |
//! | [`pages`] | keys and values put into pages |
//! | [`rows`] | embedding look-up, low-rank and sparse corrections |

mod attention;
mod heads;
mod pages;
mod products;
mod rotation;
mod rows;

pub use attention::{attention, attention_pages};
pub use heads::{HeadsShape, split_heads};
pub use pages::{PagesShape, append_pages};
pub use products::{GEMV_BATCH, joined, product, products};
pub use rotation::{Before, Sum, gated, norm, rotate};
pub use rows::{gather, sparse, transposed};

/// Threads of a simdgroup.
const SIMDGROUP: usize = 32;

/// Threads of kernels that use no simd operations.
const PLAIN_THREADS: usize = 64;

/// What a kernel's argument is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A part of the stored matrix; of several, those of the first matrix come first.
    Part(usize),
    /// An input of the op.
    Input(usize),
    /// An input of the op that it also writes.
    Written(usize),
    /// The op's output.
    Output,
    /// These bytes.
    Bytes(Vec<u8>),
}

/// One run of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The kernel's name in the library.
    pub kernel: String,
    /// Threadgroups of the grid.
    pub groups: [usize; 3],
    /// Threads of a threadgroup.
    pub threads: usize,
    /// Bytes of each piece of threadgroup memory, multiples of 16.
    pub shared: Vec<usize>,
    /// The kernel's buffers, in order of their index: the parameter's name and what is bound to it.
    pub arguments: Vec<(&'static str, Argument)>,
}

/// Words of a parameter block, as a shader's struct has them.
fn words(words: &[u32]) -> Argument {
    Argument::Bytes(words.iter().flat_map(|w| w.to_le_bytes()).collect())
}

/// `Product` of `common.metal`.
fn shape(rows: usize, cols: usize, batch: usize, group: usize) -> Argument {
    words(&[rows, cols, batch, group].map(|n| n as u32))
}
