//! Where a squished checkpoint's original is from, and what the result is known by: a small file beside the weights.
//!
//! The key is a hash of the original's contents, the recipe, the tool and the schemes' versions. A result with the same key is the same result, whatever
//! name it was asked for by.

use crate::{
    Recipe,
    certificate::{hash_bytes, maker},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;

/// Its name in the directory of a checkpoint.
pub const ORIGIN_FILE: &str = "squish_origin.json";

/// Where an original is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `organisation/name` on the hub.
    pub repository: String,
    /// The commit.
    pub commit: String,
    /// What the result is known by: SHA-256 in hexadecimal.
    pub key: String,
    /// SHA-256 of the recipe: another one may have the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
}

impl Origin {
    /// The origin of what a recipe makes of these files, each a name and a digest, sorted.
    pub fn new(repository: &str, commit: &str, files: &[(&str, &str)], recipe: &Recipe) -> Self {
        let is_part = |(name, _): &&(&str, &str)| !matches!(*name, "README.md" | "LICENSE");
        let files: Vec<_> = files.iter().filter(is_part).collect();
        let key = json!({"maker": maker(), "recipe": recipe, "files": files}).to_string();
        let key = hash_bytes("key", key.as_bytes()).sha256;
        let recipe = Some(hash_recipe(recipe));
        Self { repository: repository.into(), commit: commit.into(), key, recipe }
    }

    /// Its file.
    pub fn text(&self) -> String {
        let value = serde_json::to_value(self).expect("an origin is a few texts");
        format!("{value:#}\n")
    }

    /// What a checkpoint says of its origin, if it says anything that can be read.
    pub fn of(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(ORIGIN_FILE)).ok()?).ok()
    }
}

/// What a recipe is known by, whatever its file is called.
pub fn hash_recipe(recipe: &Recipe) -> String {
    hash_bytes("recipe", json!(recipe).to_string().as_bytes()).sha256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_contents_and_recipes_apart() {
        let recipe = |name| Recipe::load(name).unwrap();
        let key = |files: &[(&str, &str)], name| Origin::new("a/b", "c", files, &recipe(name)).key;
        let one = key(&[("README.md", "1"), ("model.safetensors", "2")], "int4");
        assert_eq!(one, key(&[("README.md", "3"), ("model.safetensors", "2")], "int4"));
        assert_ne!(one, key(&[("model.safetensors", "3")], "int4"));
        assert_ne!(one, key(&[("model.safetensors", "2")], "int3"));
        assert_eq!(one.len(), 64);
    }
}
