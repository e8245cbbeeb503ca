//! From a model's name to a directory that is safe to load.
//!
//! | module | |
//! | --- | --- |
//! | [`catalog`] | the models that have a name, their sizes and licences |
//! | [`name`] | what a person types for a model |
//! | [`store`] | where squished models lie, and what a name stands for |
//! | [`locate()`] | from a name to a directory, for every command |
//! | [`hub`] | Hugging Face hubs: settings, cache, downloads |
//! | [`ollama`] | another program's local store, read only |
//! | [`memory`] | what a running model takes beside its weights |
//! | [`scan`] | what files are by their bytes, and why some are refused |
//!
//! This is a crate of its own since both who runs models and who compresses them need it, and neither may know the other;
//! it knows neither tensors nor models, and nothing else of this project.

pub mod catalog;
mod error;
pub mod hub;
mod locate;
pub mod memory;
pub mod name;
pub mod ollama;
pub mod scan;
pub mod store;

pub use catalog::{Catalog, Model};
pub use error::{Error, Result};
pub use hub::Hub;
pub use locate::{locate, locate_in, locate_original};
pub use name::Name;
