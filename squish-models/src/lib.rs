//! Language models that run from squished or original Hugging Face checkpoints.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`checkpoint`] | a checkpoint directory: shards, memory mapping, the squish manifest, tensors by name |
//! | [`config`] | what is read from `config.json` |
//! | [`layers`] | linear, embedding, RMS norm, rotary embedding, grouped-query attention, gated MLP |
//! | [`kv_cache`] | keys and values of the positions a session has seen |
//! | [`causal_lm`], [`decoder`] | what an architecture implements, and the decoder that all of them are |
//! | [`qwen2`], [`qwen3`], [`gemma3`] | one file for each architecture: from its configuration to the decoder's |
//! | [`workspace`] | the buffers of a step of decoding |
//! | [`model`] | [`Model`] and [`Session`], the list of architectures |
//! | `snapshot` | [`Session::save`] and [`Model::restore`]: a session on disk |
//!
//! To add an architecture: write its file, list it in [`model::ARCHITECTURES`].
//!
//! ```no_run
//! use squish_models::{Device, Model};
//!
//! let model = Model::from_dir("assets/squish-tiny-sqint2", &Device::Cpu)?;
//! let mut session = model.session();
//! let logits = session.feed(&[1, 42, 7])?; // [vocabulary], of the token after the last
//! # Ok::<(), squish_models::Error>(())
//! ```

pub mod causal_lm;
pub mod checkpoint;
pub mod config;
pub mod decoder;
mod error;
pub mod gemma3;
pub mod kv_cache;
mod layer_cache;
pub mod layers;
pub mod model;
pub mod qwen2;
pub mod qwen3;
mod snapshot;
pub mod workspace;

pub use candle_core::{Device, Tensor};
pub use checkpoint::{CertificateDemand, Checkpoint};
pub use config::ModelConfig;
pub use error::{Error, Result};
pub use kv_cache::{KvPolicy, SessionOptions};
pub use model::{Model, Session};
pub use squish_kernels::{
    Arithmetic, keep_freed_memory, kv::Mode as KvMode, metal::first_device as metal_device,
};
