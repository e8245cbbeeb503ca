//! The original's weights files, as they arrive from the hub.

use super::{progress::Bars, scan::refused};
use anyhow::Result;
use squish_hub::hub::{RemoteFile, Staging};
use squish_quant::Arrivals;
use std::path::{Path, PathBuf};

/// The weights files of a repository on the hub.
pub struct FromHub<'a> {
    staging: Staging,
    outline: PathBuf,
    weights: Vec<RemoteFile>,
    bars: &'a Bars,
}

impl<'a> FromHub<'a> {
    /// Brings what is needed to plan by.
    pub fn new(staging: Staging, bars: &'a Bars) -> Result<Self> {
        let (outline, weights) = staging.outline(bars).map_err(refused)?;
        Ok(Self { staging, outline, weights, bars })
    }

    fn file(&self, name: &str) -> squish_quant::Result<&RemoteFile> {
        let missing = || squish_hub::Error::NotFound { url: name.into() };
        Ok(self.weights.iter().find(|file| file.name == name).ok_or_else(missing)?)
    }
}

impl Arrivals for FromHub<'_> {
    fn outline(&self) -> &Path {
        &self.outline
    }

    fn sha256(&self, name: &str) -> Option<String> {
        // A file that is small enough is known by another hash.
        self.file(name).ok().map(|file| file.etag.clone()).filter(|etag| etag.len() == 64)
    }

    fn missing(&self, name: &str) -> u64 {
        self.file(name).map_or(0, |file| self.staging.missing(file))
    }

    fn bring(&self, name: &str) -> squish_quant::Result<PathBuf> {
        Ok(self.staging.bring(self.file(name)?, self.bars)?)
    }

    fn discard(&self, name: &str) -> squish_quant::Result<()> {
        Ok(self.staging.discard(self.file(name)?)?)
    }
}
