//! What families of models are known not to bear: `guards.toml`, built in.

use crate::{Error, Recipe, Result, certificate::hash_checkpoint};
use serde::Deserialize;
use squish_models::{CertificateDemand, Checkpoint, config};
use std::{collections::BTreeMap, path::Path};

/// A family, and what it does not bear.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// What it is about.
    pub name: String,
    /// Names in `config.json`.
    pub architectures: Vec<String>,
    /// Fields of `config.json` that must have these values.
    #[serde(default)]
    pub sizes: BTreeMap<String, u64>,
    /// Weight schemes that must not be rounded to without calibration.
    pub schemes: Vec<String>,
    /// A certificate that states at most this divergence, in nats per token, lifts the guard.
    pub max_kl: f64,
    /// What was measured.
    pub reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Guards {
    guards: Vec<Guard>,
}

/// What may pass a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass<'a> {
    /// Nothing.
    None,
    /// Everything: the caller means it.
    Forced,
    /// What this squished checkpoint's certificate shows.
    Certified(&'a Path),
}

impl Guard {
    /// The built-in guards.
    pub fn all() -> Vec<Self> {
        let guards: Guards = toml::from_str(include_str!("../guards.toml")).expect("a test parses it");
        guards.guards
    }

    fn is_about(&self, checkpoint: &Checkpoint) -> Result<bool> {
        let architecture = config::architecture(checkpoint)?;
        let has = |(key, value): (&String, &u64)| {
            checkpoint.config().get(key).and_then(serde_json::Value::as_u64) == Some(*value)
        };
        Ok(self.architectures.iter().any(|name| name == architecture) && self.sizes.iter().all(has))
    }

    /// Whether this squished checkpoint was made of the original by the recipe, and diverges little enough.
    fn is_lifted(&self, original: &Checkpoint, recipe: &Recipe, squished: &Path) -> Result<()> {
        let squished = Checkpoint::open(squished)?;
        let demand = CertificateDemand { max_kl: Some(self.max_kl), ..CertificateDemand::default() };
        let certificate = squished.require_certificate(&demand)?;
        let refuse = |reason| {
            let path = squished.shards()[0].path().into();
            Err(Error::Model(squish_models::Error::Certificate { path, reason }))
        };
        let made_by = squished.manifest().map_or("", |manifest| &manifest.recipe);
        if made_by != recipe.name {
            return refuse(format!("made by recipe {made_by}, which says nothing of recipe {}", recipe.name));
        }
        let wanted = hash_checkpoint(original)?;
        match &certificate.original {
            Some(of) if of.sha256 == wanted.sha256 => Ok(()),
            Some(of) => refuse(format!("made from `{}`, which is not this original", of.name)),
            None => refuse("the certificate names no original".into()),
        }
    }
}

/// Refuses a recipe that the model's family is known not to bear.
///
/// # Errors
/// [`Error::Guarded`] with the reason, or what is wrong with the certificate that should let it pass.
pub fn check(checkpoint: &Checkpoint, recipe: &Recipe, calibrated: bool, pass: Pass) -> Result<()> {
    if calibrated || pass == Pass::Forced {
        return Ok(());
    }
    for guard in Guard::all() {
        let Some(rule) = recipe.rules.iter().find(|rule| guard.schemes.contains(&rule.scheme)) else {
            continue;
        };
        if !guard.is_about(checkpoint)? {
            continue;
        }
        match pass {
            Pass::Certified(squished) => guard.is_lifted(checkpoint, recipe, squished)?,
            _ => {
                return Err(Error::Guarded {
                    path: checkpoint.config_path(),
                    recipe: recipe.name.clone(),
                    scheme: rule.scheme.clone(),
                    guard: guard.into(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use squish_kernels::scheme;

    #[test]
    fn the_built_in_guards_are_well_formed() {
        let guards = Guard::all();
        assert!(!guards.is_empty());
        for guard in guards {
            assert!(guard.max_kl > 0.0 && !guard.reason.is_empty() && !guard.architectures.is_empty());
            let known =
                |name: &String| squish_models::model::ARCHITECTURES.iter().any(|(known, _)| known == name);
            assert!(guard.architectures.iter().all(known), "{guard:?}");
            assert!(guard.schemes.iter().all(|name| scheme::by_name(name).is_ok()), "{guard:?}");
        }
    }
}
