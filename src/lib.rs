//! Squish runs large language models from 2-, 3- and 4-bit weights.
//!
//! This package holds the examples and re-exports [`squish_engine`], where the documentation is:
//!
//! ```no_run
//! use squish::{Message, Pipeline};
//!
//! let pipeline = Pipeline::from_dir("assets/squish-tiny-sqint2")?;
//! println!("{}", pipeline.chat(&[Message::user("What is the sea?")])?.text);
//! # Ok::<(), squish::Error>(())
//! ```
//!
//! The `squish-quant` tool makes such a directory from a Hugging Face checkpoint.

pub use squish_engine::*;
