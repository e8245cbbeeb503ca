//! Recipes: which tensor gets which scheme. Data, not code: a TOML file.
//!
//! ```toml
//! name = "mine"
//! description = "gate and up at 2 bits, the rest at 4"
//! seed = 1
//!
//! [[rules]]
//! tensors = ["*.gate_proj.weight", "*.up_proj.weight"]
//! scheme = "nf2"
//!
//! [[rules]]
//! tensors = ["*_proj.weight"]
//! scheme = "int4r"
//! ```
//!
//! The first rule that matches a matrix decides; a matrix that no rule matches, and every tensor that is
//! not a matrix, is kept as it is.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use squish_kernels::scheme;
use std::path::Path;

/// The built-in recipes, by name.
const BUILT_IN: &[(&str, &str)] = &[
    ("sqint2", include_str!("../recipes/sqint2.toml")),
    ("sqint2-plan", include_str!("../recipes/sqint2-plan.toml")),
    ("int3", include_str!("../recipes/int3.toml")),
    ("int4", include_str!("../recipes/int4.toml")),
];

/// A recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Its name, which the squished checkpoint records.
    pub name: String,
    /// One line for a person.
    #[serde(default)]
    pub description: String,
    /// Seed of the rotations' signs and of the low-rank factorisation.
    #[serde(default)]
    pub seed: u64,
    /// Whether matrices are encoded with calibration, over text that the model writes where no other is given.
    #[serde(default)]
    pub calibrate: bool,
    /// Bits per parameter of the whole file, within which a scheme is chosen for each matrix whose rule gives
    /// choices; absent, each rule's own scheme is taken.
    #[serde(default)]
    pub target_bits: Option<f64>,
    /// The rules, tried in order.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// What becomes of some matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Patterns of tensor names; `*` stands for any run of characters. One of them must match.
    pub tensors: Vec<String>,
    /// Only these blocks; absent, all blocks and what is in no block.
    #[serde(default)]
    pub blocks: Option<Blocks>,
    /// Name of the weight scheme, or `keep` to store the tensor as it is.
    pub scheme: String,
    /// Schemes to choose from where a number of bits is aimed at.
    #[serde(default)]
    pub choices: Vec<String>,
    /// Weights of one row that share a scale; absent, the scheme's default. Where it does not divide
    /// the columns, the longest group that does takes its place.
    #[serde(default)]
    pub group: Option<usize>,
    /// Whether the input is rotated; absent, as the scheme wants it.
    #[serde(default)]
    pub rotate: Option<bool>,
    /// Rank of the low-rank correction; 0 for none.
    #[serde(default)]
    pub rank: usize,
    /// Fraction of the weights that the sparse correction holds; 0 for none.
    #[serde(default)]
    pub sparse: f64,
}

/// Blocks counted from either end of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocks {
    /// The first so many blocks.
    #[serde(default)]
    pub first: usize,
    /// The last so many blocks.
    #[serde(default)]
    pub last: usize,
}

/// The scheme name that stores a tensor as it is.
pub const KEEP: &str = "keep";

impl Recipe {
    /// Names of the built-in recipes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The text of a built-in recipe, to start one's own from.
    pub fn text(name: &str) -> Option<&'static str> {
        BUILT_IN.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
    }

    /// A built-in recipe by name, or one from a TOML file.
    ///
    /// # Errors
    /// [`Error::UnknownRecipe`], [`Error::Io`] or [`Error::Recipe`].
    pub fn load(name_or_file: &str) -> Result<Self> {
        if let Some(text) = Self::text(name_or_file) {
            return Self::parse(name_or_file, text);
        }
        let path = Path::new(name_or_file);
        if !path.is_file() {
            let known = Self::names().collect::<Vec<_>>().join(", ");
            return Err(Error::UnknownRecipe { name: name_or_file.into(), known });
        }
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
        Self::parse(name_or_file, &text)
    }

    /// Parses and checks a recipe; `origin` names it in errors.
    ///
    /// # Errors
    /// [`Error::Recipe`].
    pub fn parse(origin: &str, text: &str) -> Result<Self> {
        let refuse = |reason: String| Error::Recipe { name: origin.into(), reason };
        // The parser's message spans lines and shows the place; the first line says what is wrong.
        let recipe: Self = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
            refuse(format!("line {line}: {}", e.message().lines().next().unwrap_or_default()))
        })?;
        if let Some(bits) = recipe.target_bits.filter(|bits| !(bits.is_finite() && *bits > 0.0)) {
            return Err(refuse(format!("`target_bits` is {bits}, expected a positive number")));
        }
        for (i, rule) in recipe.rules.iter().enumerate() {
            let refuse = |reason: String| Err(refuse(format!("rule {}: {reason}", i + 1)));
            if rule.tensors.is_empty() {
                return refuse("`tensors` is empty".into());
            }
            if rule.scheme != KEEP
                && let Err(e) = scheme::by_name(&rule.scheme)
            {
                return refuse(e.to_string());
            }
            if let Some(Err(e)) = rule.choices.iter().map(|name| scheme::by_name(name)).find(Result::is_err) {
                return refuse(e.to_string());
            }
            if rule.group == Some(0) {
                return refuse("`group` is 0".into());
            }
            if !(0.0..0.5).contains(&rule.sparse) {
                return refuse(format!("`sparse` is {}, expected at least 0 and below 0.5", rule.sparse));
            }
        }
        Ok(recipe)
    }

    /// The rule for a matrix, if any. `blocks` is the model's number of blocks.
    pub fn rule(&self, tensor: &str, blocks: usize) -> Option<&Rule> {
        let block = block_index(tensor);
        self.rules.iter().find(|rule| {
            let in_blocks = match (rule.blocks, block) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(Blocks { first, last }), Some(b)) => b < first || b + last >= blocks,
            };
            in_blocks && rule.tensors.iter().any(|pattern| matches(pattern, tensor))
        })
    }
}

/// The number after `layers.` in a tensor's name; `None` for one that no model has, where sums could overflow.
pub fn block_index(tensor: &str) -> Option<usize> {
    let number: u32 = tensor.split_once("layers.")?.1.split('.').next()?.parse().ok()?;
    usize::try_from(number).ok()
}

/// Whether a name matches a pattern in which `*` stands for any run of characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    // Without a star the whole name must be used up; with one, the last piece is anchored at the end.
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("a.weight", "a.weight", true),
            ("a.weight", "aa.weight", false),
            ("*.gate_proj.weight", "model.layers.3.mlp.gate_proj.weight", true),
            ("*.gate_proj.weight", "model.layers.3.mlp.gate_proj.bias", false),
            ("model.*.q_proj.*", "model.layers.1.self_attn.q_proj.weight", true),
            ("*ab*ab", "ab", false),
            ("*ab*ab", "xabyab", true),
            ("*", "", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn the_plans_recipe_mixes_as_the_plan_says() {
        let recipe = Recipe::load("sqint2-plan").unwrap();
        let scheme = |name: &str| recipe.rule(name, 10).map(|r| r.scheme.as_str());
        for (name, expected) in [
            ("model.embed_tokens.weight", "int4r"),
            ("lm_head.weight", "int4r"),
            ("model.layers.0.mlp.gate_proj.weight", "int4r"),
            ("model.layers.1.self_attn.q_proj.weight", "int4r"),
            ("model.layers.2.mlp.gate_proj.weight", "nf2"),
            ("model.layers.7.mlp.up_proj.weight", "nf2"),
            ("model.layers.7.mlp.down_proj.weight", "int4r"),
            ("model.layers.7.self_attn.o_proj.weight", "int3"),
            ("model.layers.8.mlp.up_proj.weight", "int4r"),
        ] {
            assert_eq!(scheme(name), Some(expected), "{name}");
        }
        assert_eq!(scheme("model.something.else.weight"), None);
    }

    #[test]
    fn built_in_recipes_say_their_own_name() {
        for name in Recipe::names() {
            assert_eq!(Recipe::load(name).unwrap().name, name);
        }
    }

    #[test]
    fn a_wrong_recipe_is_one_clear_line() {
        let message = |text: &str| Recipe::parse("r.toml", text).unwrap_err().to_string();
        let unknown = message("name = 'r'\n[[rules]]\ntensors = ['*']\nscheme = 'nf1'");
        assert!(unknown.contains("rule 1: unknown scheme `nf1`"), "{unknown}");
        let field = message("name = 'r'\n[[rules]]\ntensors = ['*']\nscheme = 'nf2'\nrnk = 3");
        assert!(field.contains("rnk") && !field.contains('\n'), "{field}");
        assert!(
            message("name = 'r'\n[[rules]]\ntensors = []\nscheme = 'nf2'").contains("`tensors` is empty")
        );
        assert!(
            message("name = 'r'\n[[rules]]\ntensors = ['*']\nscheme = 'nf2'\nsparse = 0.7").contains("0.7")
        );
        assert!(message("= 3").starts_with("recipe r.toml: line 1"));
        assert!(
            Recipe::load("nonesuch").unwrap_err().to_string().contains("sqint2, sqint2-plan, int3, int4")
        );
    }
}
