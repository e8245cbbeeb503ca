//! What a person types for a model.

use crate::{
    Catalog, Error, Result,
    catalog::{Model, Variant},
};
use std::path::PathBuf;

/// A model's name, understood but not yet looked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Name {
    /// A directory that is there.
    Directory(PathBuf),
    /// A model of the catalog in one of its variants.
    Catalog(Box<Model>, Variant),
    /// `hf:organisation/name[@revision]`.
    Hub {
        /// `organisation/name`.
        repository: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// `ollama:NAME[:TAG]`: in that program's local store.
    Ollama(String),
}

impl Name {
    /// Understands a name: a prefix decides; then a directory that is there; then the catalog.
    ///
    /// # Errors
    /// [`Error::UnknownName`] or [`Error::Repository`].
    pub fn parse(name: &str) -> Result<Self> {
        if let Some(hub) = name.strip_prefix("hf:") {
            let (repository, revision) = hub.split_once('@').unwrap_or((hub, "main"));
            check_repository(repository)?;
            check_revision(revision)?;
            return Ok(Self::Hub { repository: repository.into(), revision: revision.into() });
        }
        if let Some(ollama) = name.strip_prefix("ollama:") {
            return Ok(Self::Ollama(ollama.into()));
        }
        let path = PathBuf::from(name);
        if path.is_dir() {
            return Ok(Self::Directory(path));
        }
        let catalog = Catalog::built_in();
        match catalog.find(name) {
            Some((model, variant)) => Ok(Self::Catalog(Box::new(model.clone()), variant)),
            None => Err(Error::UnknownName { name: name.into() }),
        }
    }
}

/// Whether text can be one component of a path and of an address.
fn is_component(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=96).contains(&text.len())
        && text.chars().all(plain)
        && !text.starts_with('.')
        && !text.contains("--")
}

/// Checks `organisation/name`.
///
/// # Errors
/// [`Error::Repository`].
pub(crate) fn check_repository(repository: &str) -> Result<()> {
    match repository.split_once('/') {
        Some((organisation, name)) if is_component(organisation) && is_component(name) => Ok(()),
        _ => Err(Error::Repository { found: crate::scan::printable(repository) }),
    }
}

/// Checks a branch, tag or commit: it becomes part of an address and of a path.
///
/// # Errors
/// [`Error::Repository`].
pub(crate) fn check_revision(revision: &str) -> Result<()> {
    let fine = revision.len() <= 128 && revision.split('/').all(is_component);
    if fine { Ok(()) } else { Err(Error::Repository { found: crate::scan::printable(revision) }) }
}

/// Whether a file's name from a repository's list can be used as a path below a directory.
pub(crate) fn is_relative_file(name: &str) -> bool {
    let fine = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.len() <= 255
            && !part.contains(['\\', ':', '\0'])
            && !part.chars().any(char::is_control)
    };
    name.len() <= 1024 && name.split('/').all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let hub = |repository: &str, revision: &str| Name::Hub {
            repository: repository.into(),
            revision: revision.into(),
        };
        assert_eq!(Name::parse("hf:a/b").unwrap(), hub("a/b", "main"));
        assert_eq!(Name::parse("hf:a/b@refs/pr/1").unwrap(), hub("a/b", "refs/pr/1"));
        assert_eq!(Name::parse("ollama:x:1b").unwrap(), Name::Ollama("x:1b".into()));
        assert!(matches!(Name::parse("qwen3:8b").unwrap(), Name::Catalog(_, Variant::Sqint2)));
        for bad in [
            "hf:",
            "hf:a",
            "hf:../b",
            "hf:a/b/c",
            "hf:a/b@..",
            "hf:a/b@",
            "hf:a/b@x/../y",
            "hf:a/b?x",
            "nothing",
        ] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
        assert!(is_relative_file("a/b.json") && !is_relative_file("/a") && !is_relative_file("a/../b"));
    }
}
