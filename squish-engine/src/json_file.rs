//! Reading the JSON files of a checkpoint.

use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use squish_models::checkpoint::text_file;

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
    let text = text_file::read(path).and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other));
    match text {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}
