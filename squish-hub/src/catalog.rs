//! Models that have a name: `catalog.toml`, built in.

use crate::{Error, Result, memory::Widths};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// A model of the catalog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// Other names for it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Where the original is: `organisation/name` on the hub.
    pub repository: String,
    /// Branch, tag or commit of the original.
    pub revision: String,
    /// As in `config.json`.
    pub architecture: String,
    /// Its sizes.
    pub shape: Shape,
    /// The licence's name on the hub.
    pub licence: String,
    /// Whether the licence has to be accepted on the hub first.
    #[serde(default)]
    pub gated: bool,
    /// Squished checkpoints that have been published, by variant.
    #[serde(default)]
    pub published: BTreeMap<String, String>,
    /// What else to know.
    #[serde(default)]
    pub note: Option<String>,
}

/// The sizes that decide how many weights a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width of the MLP.
    pub intermediate: u64,
    /// Blocks.
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Token ids.
    pub vocabulary: u64,
    /// Whether the head is the embedding.
    pub tied: bool,
}

impl Shape {
    /// Weights of the linear layers of all blocks.
    pub fn linear(&self) -> u64 {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        self.layers * self.hidden * (2 * queries + 2 * keys + 3 * self.intermediate)
    }

    /// Weights of the embedding, and of the head where it is another matrix.
    pub fn embedding(&self) -> u64 {
        self.vocabulary * self.hidden * if self.tied { 1 } else { 2 }
    }
}

/// In which weights a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// The recipe `sqint2`: 2.5 bits for each parameter of the whole file.
    Sqint2,
    /// The recipe `int3`.
    Int3,
    /// The recipe `int4`.
    Int4,
    /// The original.
    Bf16,
}

impl Variant {
    /// All of them, smallest first.
    pub const ALL: [Self; 4] = [Self::Sqint2, Self::Int3, Self::Int4, Self::Bf16];

    /// As it ends a name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqint2 => "sqint2",
            Self::Int3 => "int3",
            Self::Int4 => "int4",
            Self::Bf16 => "bf16",
        }
    }

    /// The recipe that makes it of the original; `None` for the original itself.
    pub fn recipe(self) -> Option<&'static str> {
        Some(self.name()).filter(|_| self != Self::Bf16)
    }

    /// Whether the recipe runs the model over a text, for which the whole original has to be there.
    pub fn calibrates(self) -> bool {
        self == Self::Sqint2
    }

    /// Bits of a weight in linear layers, and in embeddings and head.
    fn bits(self) -> (f64, f64) {
        match self {
            Self::Sqint2 => (2.5, 2.5),
            Self::Int3 => (3.25, 8.125),
            Self::Int4 => (5.0, 8.125),
            Self::Bf16 => (16.0, 16.0),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Positions for which [`Model::memory`] counts the cache.
pub const CONTEXT: u64 = 8192;

impl Model {
    /// Predicted bytes of the weights files, from the shape and the variant's bits; norms and biases, below a thousandth,
    /// are left out.
    pub fn bytes(&self, variant: Variant) -> u64 {
        let (linear, embedding) = variant.bits();
        ((self.shape.linear() as f64 * linear + self.shape.embedding() as f64 * embedding) / 8.0) as u64
    }

    /// Predicted bytes of disk, at most, while the variant is made: the result with the largest file of the original, which
    /// publishers keep below 5 GB; where the recipe calibrates, the whole original, the result, and the matrices that go into it.
    pub fn disk(&self, variant: Variant) -> u64 {
        const LARGEST_FILE: u64 = 5_000_000_000;
        let (original, result) = (self.bytes(Variant::Bf16), self.bytes(variant));
        match variant {
            Variant::Bf16 => original,
            _ if variant.calibrates() => original + 2 * result,
            _ => original.min(LARGEST_FILE) + result,
        }
    }

    /// Predicted bytes while it runs with [`CONTEXT`] positions: weights, the cache in f16, as it is at this length, and what
    /// a prefill works on, as `squish_quant::fit` counts it.
    pub fn memory(&self, variant: Variant) -> u64 {
        let shape = &self.shape;
        let cache = 2 * 2 * CONTEXT * shape.layers * shape.kv_heads * shape.head_dim;
        let widest = shape.intermediate.max(shape.hidden).max(shape.heads * shape.head_dim);
        let widths = Widths { chunk: 512, widest, hidden: shape.hidden, vocabulary: shape.vocabulary };
        self.bytes(variant) + cache + widths.working_bytes()
    }
}

/// All models.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// In the order of the file.
    pub models: Vec<Model>,
}

impl Catalog {
    /// The built-in catalog.
    pub fn built_in() -> Self {
        Self::parse(include_str!("../catalog.toml")).expect("a test parses it")
    }

    /// Parses a catalog and checks that its names are unambiguous and plain.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn parse(text: &str) -> Result<Self> {
        /// No real model is wider, deeper or longer.
        const LARGEST: u64 = 1 << 20;
        let refuse = |reason: String| Error::Catalog { reason };
        let catalog: Self = toml::from_str(text)
            .map_err(|e| refuse(e.message().lines().next().unwrap_or_default().into()))?;
        let mut seen = std::collections::BTreeSet::new();
        for model in &catalog.models {
            for name in std::iter::once(&model.name).chain(&model.aliases) {
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:".contains(c);
                if name.is_empty() || !name.chars().all(plain) || name.starts_with(['.', '-']) {
                    return Err(refuse(format!("`{}` is not a plain name", crate::scan::printable(name))));
                }
                if Variant::ALL.iter().any(|v| name.ends_with(&format!("-{v}"))) {
                    return Err(refuse(format!("`{name}` ends as a variant does")));
                }
                if !seen.insert(name) {
                    return Err(refuse(format!("two models are called `{name}`")));
                }
            }
            for repository in std::iter::once(&model.repository).chain(model.published.values()) {
                crate::name::check_repository(repository)?;
            }
            crate::name::check_revision(&model.revision)?;
            if model.licence.is_empty() || model.licence.contains(char::is_control) {
                return Err(refuse(format!("`{}` has no licence", model.name)));
            }
            let s = &model.shape;
            let sizes = [s.hidden, s.intermediate, s.layers, s.heads, s.kv_heads, s.head_dim, s.vocabulary];
            if sizes.iter().any(|size| !(1..LARGEST).contains(size)) {
                return Err(refuse(format!("`{}`: a size is 0 or {LARGEST} or more", model.name)));
            }
        }
        Ok(catalog)
    }

    /// A model by its name or an alias, without a variant.
    pub fn named(&self, name: &str) -> Option<&Model> {
        let same = |own: &String| own.eq_ignore_ascii_case(name);
        self.models.iter().find(|m| same(&m.name) || m.aliases.iter().any(same))
    }

    /// A model by its name or an alias, and the variant that ends it; `sqint2` where none does.
    pub fn find(&self, name: &str) -> Option<(&Model, Variant)> {
        if let Some(model) = self.named(name) {
            return Some((model, Variant::Sqint2));
        }
        let name = name.to_ascii_lowercase();
        let (stem, variant) =
            Variant::ALL.iter().find_map(|v| Some((name.strip_suffix(v.name())?.strip_suffix('-')?, *v)))?;
        self.named(stem).map(|model| (model, variant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_their_models() {
        let catalog = Catalog::built_in();
        for (name, repository, variant) in [
            ("qwen2.5-7b-sqint2", "Qwen/Qwen2.5-7B-Instruct", Variant::Sqint2),
            ("qwen2.5:7b", "Qwen/Qwen2.5-7B-Instruct", Variant::Sqint2),
            ("Qwen2.5-7B-Instruct-int4", "Qwen/Qwen2.5-7B-Instruct", Variant::Int4),
            ("qwen3-8b-base-bf16", "Qwen/Qwen3-8B-Base", Variant::Bf16),
            ("gemma3:1b-int3", "google/gemma-3-1b-it", Variant::Int3),
        ] {
            let (model, found) = catalog.find(name).unwrap();
            assert_eq!((model.repository.as_str(), found), (repository, variant), "{name}");
        }
        assert!(catalog.find("qwen2.5-7b-int5").is_none() && catalog.find("").is_none());
    }

    /// The parameters that the model cards state, in billions, embeddings counted and not. This checks shapes of which no
    /// configuration is at hand.
    #[test]
    fn parameters() {
        let catalog = Catalog::built_in();
        for (name, all, without) in [
            ("qwen2.5-0.5b", 0.49, 0.36),
            ("qwen2.5-1.5b", 1.54, 1.31),
            ("qwen2.5-3b", 3.09, 2.77),
            ("qwen2.5-7b", 7.61, 6.53),
            ("qwen2.5-14b", 14.7, 13.1),
            ("qwen2.5-32b", 32.5, 31.0),
            ("qwen2.5-72b", 72.7, 70.0),
            ("qwen3-0.6b", 0.6, 0.44),
            ("qwen3-1.7b", 1.7, 1.4),
            ("qwen3-4b", 4.0, 3.6),
            ("qwen3-8b", 8.2, 6.95),
            ("qwen3-14b", 14.8, 13.2),
            ("qwen3-32b", 32.8, 31.2),
            ("gemma-3-270m", 0.268, 0.1),
            ("gemma-3-1b", 1.0, 0.698),
            ("gemma-3-4b", 3.88, 3.21),
            ("gemma-3-12b", 11.77, 10.76),
            ("gemma-3-27b", 27.01, 25.6),
        ] {
            let names = [name.to_owned(), format!("{name}-base")];
            for shape in names.iter().filter_map(|name| Some(catalog.find(name)?.0.shape)) {
                let linear = shape.linear() as f64 / 1e9;
                let counted = linear + shape.embedding() as f64 / 1e9;
                // As many digits as the cards give; biases and norms are not counted here.
                let near = |counted: f64, stated: f64| (counted - stated).abs() < 0.006 + 0.013 * stated;
                assert!(near(counted, all) && near(linear, without), "{name}: {counted} {linear}");
            }
        }
    }

    /// Base and instruct of every size; Qwen3-32B has been published as one of them only.
    #[test]
    fn every_size_is_there_in_both_kinds() {
        let catalog = Catalog::built_in();
        let sizes = [
            ("qwen2.5", "0.5b 1.5b 3b 7b 14b 32b 72b"),
            ("qwen3", "0.6b 1.7b 4b 8b 14b 32b"),
            ("gemma-3", "270m 1b 4b 12b 27b"),
        ];
        let mut counted = 0;
        for (family, size) in sizes.iter().flat_map(|(family, all)| all.split(' ').map(move |s| (family, s)))
        {
            let alias = format!("{}:{size}", family.replace("gemma-3", "gemma3"));
            let (instruct, variant) = catalog.find(&format!("{family}-{size}")).unwrap();
            assert_eq!(variant, Variant::Sqint2);
            assert_eq!(catalog.find(&alias), Some((instruct, Variant::Sqint2)), "{alias}");
            let base = catalog.find(&format!("{family}-{size}-base"));
            assert_eq!(base.is_none(), (*family, size) == ("qwen3", "32b"), "{family}-{size}");
            if let Some((base, _)) = base {
                assert_eq!((base.shape, &base.licence), (instruct.shape, &instruct.licence));
                assert_ne!(base.repository, instruct.repository);
            }
            counted += 1 + usize::from(base.is_some());
        }
        assert_eq!(counted, catalog.models.len());
        let gated = |m: &&Model| m.gated != m.repository.starts_with("google/");
        assert!(!catalog.models.iter().any(|m| gated(&m)));
    }

    /// Where real configurations are at hand (`../shared/real`), the catalog's shapes are theirs.
    #[test]
    fn shapes_are_those_of_real_configurations() {
        let real = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/real");
        let Ok(dirs) = std::fs::read_dir(real) else { return };
        let catalog = Catalog::built_in();
        for dir in dirs.flatten() {
            let name = dir.file_name().to_string_lossy().into_owned();
            let Some((model, _)) = catalog.find(&name) else { panic!("{name} is not in the catalog") };
            let text = std::fs::read(dir.path().join("config.json")).unwrap();
            let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let size = |key: &str| config[key].as_u64();
            let shape = Shape {
                hidden: size("hidden_size").unwrap(),
                intermediate: size("intermediate_size").unwrap(),
                layers: size("num_hidden_layers").unwrap(),
                heads: size("num_attention_heads").unwrap(),
                kv_heads: size("num_key_value_heads").unwrap(),
                head_dim: size("head_dim")
                    .unwrap_or_else(|| size("hidden_size").unwrap() / size("num_attention_heads").unwrap()),
                vocabulary: size("vocab_size").unwrap(),
                tied: config["tie_word_embeddings"].as_bool().unwrap_or(true),
            };
            assert_eq!(model.shape, shape, "{name}");
            assert_eq!(config["architectures"][0], model.architecture.as_str(), "{name}");
        }
    }

    #[test]
    fn a_wrong_catalog_is_refused() {
        let deep = format!("models = {}", "[".repeat(100_000));
        for text in ["models = 3", "[[models]]\nname = 'a'", "x = 1", &deep] {
            assert!(Catalog::parse(text).is_err(), "{text}");
        }
        let text = include_str!("../catalog.toml");
        assert!(Catalog::parse(&format!("{text}\n{}", &text[text.find("[[models]]").unwrap()..])).is_err());
        for (from, to) in [
            ("revision = \"main\"", "revision = \"../main\""),
            ("revision = \"main\"", "revision = \"\""),
            ("repository = \"Qwen/", "repository = \"../"),
            ("licence = \"apache-2.0\"", "licence = \"\""),
            ("name = \"qwen2.5-0.5b\"", "name = \"qwen2.5-0.5b-int4\""),
            ("name = \"qwen2.5-0.5b\"", "name = \"a/b\""),
            ("qwen2.5:0.5b\"", "qwen2.5:1.5b\""),
            ("layers = 24", "layers = 0"),
            ("licence =", "published = { int4 = \"a\" }\nlicence ="),
        ] {
            assert!(text.contains(from), "{from}");
            assert!(Catalog::parse(&text.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
