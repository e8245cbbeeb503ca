//! What can go wrong, and where.

use std::path::PathBuf;

/// Everything this crate reports as an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The catalog is not what it should be.
    #[error("catalog.toml: {reason}")]
    Catalog {
        /// What is wrong.
        reason: String,
    },
    /// Nothing has this name.
    #[error(
        "no model {name:?}: not a directory, not in the catalog (`squish-quant list --remote`), and no hf:org/repo"
    )]
    UnknownName {
        /// The name.
        name: String,
    },
    /// A model that is known, and not on this machine. The text says in three lines what would be done, what it needs, and how
    /// to go on.
    #[error(transparent)]
    Absent(Box<crate::store::Plan>),
    /// Not a repository or revision of a hub.
    #[error("`{found}` is not organisation/name[@revision]")]
    Repository {
        /// What was given.
        found: String,
    },
    /// Another process makes what was to be removed.
    #[error("{}: another process is at work on it", path.display())]
    Busy {
        /// The model's directory.
        path: PathBuf,
    },
    /// A recipe whose name cannot be part of a directory's name.
    #[error("the recipe's name `{name}` cannot be part of a directory's name; say --out DIR")]
    Recipe {
        /// The name.
        name: String,
    },
    /// A model of Ollama's store that cannot be run from here.
    #[error("ollama:{name}: {reason}")]
    Ollama {
        /// The name.
        name: String,
        /// Why.
        reason: String,
    },
    /// The network is not to be used.
    #[error("{url} is not in the cache, and HF_HUB_OFFLINE is set")]
    Offline {
        /// What would have been asked for.
        url: String,
    },
    /// The hub wants a token, or another one.
    #[error(
        "{url}: access denied; {}",
        if *token { "the token in HF_TOKEN has no access: accept the licence on the hub" } else { "set HF_TOKEN" }
    )]
    Unauthorised {
        /// What was asked for.
        url: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The hub lets nothing be written there.
    #[error(
        "{url}: may not be written to; {}",
        if *token { "the token in HF_TOKEN has no write access" } else { "set HF_TOKEN to a token with write access" }
    )]
    WriteDenied {
        /// What was to be written.
        url: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The hub has nothing there.
    #[error("{url}: no such repository, revision or file")]
    NotFound {
        /// What was asked for.
        url: String,
    },
    /// The hub, or the way to it, failed more often than is tried.
    #[error("{url}: {reason}")]
    Hub {
        /// What was asked for.
        url: String,
        /// The last failure.
        reason: String,
    },
    /// A file is not what the hub says it is.
    #[error("{name}: the digest is {found}, expected {expected}")]
    Checksum {
        /// The file.
        name: String,
        /// What the hub states.
        expected: String,
        /// What was fetched.
        found: String,
    },
    /// The disk has no room.
    #[error("{}: {needed} bytes are needed, {available} are free", path.display())]
    DiskFull {
        /// Where they would go.
        path: PathBuf,
        /// Bytes still to come.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// The scanner refuses it.
    #[error("{what} is not safe to load: {reason}")]
    Unsafe {
        /// A repository or a file.
        what: String,
        /// Why.
        reason: String,
    },
    /// Whoever watched asked to end; what has come is kept.
    #[error("interrupted; the same command goes on with what has come")]
    Cancelled,
}

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
