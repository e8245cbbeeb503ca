//! A Hugging Face hub: its settings, its cache on disk, and downloads into it.
//!
//! The layout of the cache and the variables are those of Hugging Face's own clients, so that a model which one of them
//! has fetched is found here, and the other way round. The client is this crate's own: the `hf-hub` crate (0.5) resumes,
//! but compares no digest with what it got, knows neither `HF_HUB_OFFLINE` nor `Retry-After`, and gives a file its name
//! before anybody could look at its bytes.

mod cache;
mod client;
mod digest;
mod download;
mod listing;
mod pull;
mod staging;
mod unlisted;
mod upload;

pub use client::Timing;
pub use listing::{Listing, RemoteFile};
pub use pull::{Pulled, Silent, Transfer};
pub use staging::Staging;
pub use upload::{LocalFile, Push};

use std::path::PathBuf;

/// Where to fetch from, and where to keep it.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Address without a slash at the end.
    pub endpoint: String,
    /// The directory of `models--organisation--name`.
    pub cache: PathBuf,
    /// Another cache, whose files are used where they are, and never removed.
    pub beside: Option<PathBuf>,
    /// Sent to the endpoint, and to no other host.
    pub token: Option<String>,
    /// Whether the network must not be used.
    pub offline: bool,
    /// Files that are fetched at the same time.
    pub parallel: usize,
    /// Bytes of the disk that a download leaves free.
    pub reserve: u64,
    /// How long to wait, and how often to try.
    pub timing: Timing,
}

impl Hub {
    /// A hub at this address with this cache directory.
    pub fn new(endpoint: impl Into<String>, cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: endpoint.into().trim_end_matches('/').into(),
            cache: cache.into(),
            beside: None,
            token: None,
            offline: false,
            parallel: 4,
            reserve: 100_000_000,
            timing: Timing::default(),
        }
    }

    /// As the environment says: `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_CACHE`, `HF_TOKEN` (or the file `token` in `HF_HOME`),
    /// `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")));
            cache.unwrap_or_default().join("huggingface")
        });
        let cache = set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let file = || std::fs::read_to_string(home.join("token")).ok();
        let token = set("HF_TOKEN").or_else(file).map(|token| token.trim().to_owned());
        let on = |value: &str| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        Self {
            token: token.filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| on(&value)),
            ..Self::new(set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()), cache)
        }
    }
}
