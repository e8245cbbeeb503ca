//! Reading the JSON files of a checkpoint.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Reads `path` as JSON. A file that does not exist is `None`.
pub(crate) fn read_optional<T: DeserializeOwned>(path: &Path, expected: &'static str) -> Result<Option<T>> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_str(&text).map_err(|source| Error::Json {
        path: path.to_owned(),
        expected,
        source,
    })?;
    Ok(Some(parsed))
}

/// Reads `path` as text. A file that does not exist is `None`.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}
