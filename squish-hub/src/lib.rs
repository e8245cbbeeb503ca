//! From a model's name to a directory that is safe to load.
//!
//! | module | |
//! | --- | --- |
//! | [`scan`] | what files are by their bytes, and why some are refused |

mod error;
pub mod scan;

pub use error::{Error, Result};
