//! Low-bit weight matrices, and the Candle ops that multiply by them.
//!
//! A weight matrix `W` of a linear layer has the shape `[rows, cols]` = `[out_features, in_features]`
//! and computes `y = W x`. This crate stores such a matrix in a few bits a weight and multiplies by
//! it without ever materialising it.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`scheme`] | one file per way of storing a matrix: its layout, pack and unpack, a scalar reference, a fast decode |
//! | [`packed`] | [`Packed`]: a matrix in some scheme, over bytes that may be memory-mapped |
//! | [`hadamard`], [`rotation`] | the Walsh-Hadamard transform and the randomised rotation `H D x` built on it |
//! | [`low_rank`], [`sparse`] | the corrections that may be added to a packed matrix |
//! | [`weight`] | [`Weight`]: packed matrix + rotation + corrections, the unit a model multiplies by |
//! | `input`, `single_input` | what it is multiplied by: [`Input`], a tensor; [`SingleInput`], buffers for one position on the CPU |
//! | [`kv`] | keys and values of past positions, in 32 to 2 bits a number |
//! | [`arch`] | the vector kernels, one thin instance per instruction set, chosen at run time |
//! | [`ops`] | Candle custom ops over all of these |
//! | [`metal`] | the shaders of Apple's GPUs, and what each op launches of them |
//!
//! The layouts are specified bit for bit in `docs/format.md`; [`scheme::Scheme::weight`] is their
//! scalar reference, and every fast path is property-tested against it.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use squish_kernels::{Input, Packed, Weight, scheme};
//!
//! // Two rows of 64 weights in bf16; quantised schemes are loaded in the same way.
//! let bytes: Vec<u8> = (0..128).flat_map(|_| half::bf16::ONE.to_le_bytes()).collect();
//! let packed = Packed::new(scheme::by_name("bf16")?, 2, 64, 64, vec![bytes.into()])?;
//! let y = Weight::from(packed).forward(&Input::new(Tensor::ones((1, 64), candle_core::DType::F32, &Device::Cpu)?))?;
//! assert_eq!(y.to_vec2::<f32>()?, [[64.0, 64.0]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod arch;
mod disjoint;
mod error;
mod freed_memory;
pub mod hadamard;
mod input;
pub mod kv;
pub mod low_rank;
pub mod metal;
pub mod ops;
pub mod packed;
pub mod quantized_batch;
pub mod quantized_input;
pub mod rotation;
pub mod scheme;
mod single_input;
pub mod sparse;
mod team;
pub mod weight;

pub use error::{Error, Result};
pub use freed_memory::keep_freed_memory;
pub use input::Input;
pub use low_rank::LowRank;
pub use packed::Packed;
pub use quantized_batch::QuantizedBatch;
pub use quantized_input::QuantizedInput;
pub use rotation::Rotation;
pub use single_input::SingleInput;
pub use sparse::Sparse;
pub use weight::{Arithmetic, Weight};
