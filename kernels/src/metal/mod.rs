//! Shaders for Apple's GPUs, and how each op is made of launches of them.
//!
//! The shaders are one library ([`SOURCE`]), compiled by the system when a device first needs it. A [`Launch`] says what
//! kernel runs, over which grid, and what its arguments are; it is data, so that tests run the very launches that a
//! device would be given, and compare the arguments' names and order with those of the shader.
//!
//! | file | its kernels |
//! | --- | --- |
//! | `gemv_units.metal`, `gemv_trellis.metal`, `gemv_float.metal` | products with up to 8 inputs, straight from the codes |
//! | `gemm.metal` | products with more inputs, by matrices of a simdgroup |
//! | `rotate.metal` | the rotation of an input, alone or behind a norm or a gated product |
//! | `elementwise.metal` | the norm and the gated product alone |
//! | `heads.metal` | queries, keys and values made ready for attention, and kept |
//! | `decode.metal` | embedding look-up, low-rank and sparse corrections |
//! | `attention.metal` | attention over keys and values in whole tensors |
//! | `attention_tiled.metal` | attention of many queries, over both |
//! | `pages.metal`, `append_pages.metal`, `attention_pages.metal` | keys and values in pages, packed or not, and attention over them |

#[cfg(feature = "metal")]
pub(crate) mod device;
mod launch;
#[cfg(feature = "metal")]
pub(crate) mod memory;

pub use launch::{
    Argument, Before, GEMV_BATCH, HeadsShape, Launch, PagesShape, Sum, append_pages, attention,
    attention_pages, gated, gather, joined, norm, product, products, rotate, sparse, split_heads, transposed,
};

/// The first Metal device; `None` where there is none, or the crate is built without the feature `metal`.
pub fn first_device() -> Option<candle_core::Device> {
    #[cfg(feature = "metal")]
    if !candle_metal_kernels::metal::Device::all().is_empty() {
        return candle_core::Device::new_metal(0).ok();
    }
    None
}

/// A file of the library, under its own name in the compiler's messages.
macro_rules! file {
    ($name:literal) => {
        concat!("#line 1 \"", $name, "\"\n", include_str!($name))
    };
}

/// The library's source.
pub const SOURCE: &str = concat!(
    file!("common.metal"),
    file!("gemv_units.metal"),
    file!("gemv_trellis.metal"),
    file!("gemv_float.metal"),
    file!("rotate.metal"),
    file!("elementwise.metal"),
    file!("heads.metal"),
    file!("decode.metal"),
    file!("gemm.metal"),
    file!("attention.metal"),
    file!("pages.metal"),
    file!("append_pages.metal"),
    file!("attention_pages.metal"),
    file!("attention_tiled.metal"),
);
