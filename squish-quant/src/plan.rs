//! The plan of a compression: what becomes of each tensor, and which file it goes to. Made before any
//! weight is read, so that every size is known in advance.

use crate::{
    Error, Result,
    matrix::MatrixSpec,
    output::Stored,
    recipe::{KEEP, Recipe, Rule, block_index},
    sparse,
};
use squish_kernels::{Packed, Rotation, scheme};
use squish_models::{Checkpoint, checkpoint::WEIGHTS_FILE};
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

/// What becomes of a tensor.
#[derive(Debug, Clone)]
pub enum Action {
    /// Its bytes are copied.
    Copy,
    /// It is packed.
    Encode(MatrixSpec),
}

/// The plan for one tensor of the source.
#[derive(Debug, Clone)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// What becomes of it.
    pub action: Action,
    /// What is stored for it.
    pub stored: Vec<Stored>,
    /// Index of the weights file.
    pub shard: usize,
}

/// The plan for a checkpoint.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The tensors of the source, by name.
    pub tensors: Vec<TensorPlan>,
    /// Number of weights files.
    pub shards: usize,
    /// Number of the model's blocks.
    pub blocks: usize,
    /// Weights of all tensors.
    pub parameters: usize,
    /// What a person should know: matrices that a rule matched but that could not be packed, for one.
    pub notes: Vec<String>,
}

impl Plan {
    /// The plan for a checkpoint under a recipe, in weights files of at most `max_shard_bytes` (but at least
    /// one tensor each).
    ///
    /// # Errors
    /// When a tensor is not what the configuration says, or the recipe asks for what cannot be.
    pub fn new(checkpoint: &Checkpoint, recipe: &Recipe, max_shard_bytes: usize) -> Result<Self> {
        let tied = checkpoint.config().get("tie_word_embeddings").and_then(|v| v.as_bool()) == Some(true);
        // An image encoder beside the language model is no matter of recipes.
        let beside = |name: &str| !squish_models::model::is_language(checkpoint, name);
        let of_language = checkpoint.names().filter(|name| !beside(name));
        let blocks = of_language.filter_map(block_index).max().map_or(0, |last| last + 1);
        let mut plan = Self { tensors: Vec::new(), shards: 1, blocks, parameters: 0, notes: Vec::new() };
        let mut rotations = HashMap::new();
        let mut filled = 0;
        for name in checkpoint.names() {
            if tied && name == "lm_head.weight" {
                plan.notes.push(format!("{name}: dropped, it is tied to the embeddings"));
                continue;
            }
            let (_, entry) = checkpoint.entry(name)?;
            let mut action = Action::Copy;
            let rule = recipe.rule(name, blocks).filter(|rule| rule.scheme != KEEP && !beside(name));
            if let (&[rows, cols], Some(rule)) = (&entry.shape[..], rule) {
                match spec(rows, cols, rule, recipe.seed, &mut rotations) {
                    Ok(spec) => action = Action::Encode(spec),
                    Err(reason) => plan.notes.push(format!("{name}: kept as it is, {reason}")),
                }
            }
            let stored = stored(name, entry, &action)?;
            let bytes: usize = stored.iter().map(|s| s.bytes).sum();
            if filled > 0 && filled + bytes > max_shard_bytes {
                (plan.shards, filled) = (plan.shards + 1, 0);
            }
            filled += bytes;
            plan.parameters += entry.shape.iter().product::<usize>();
            plan.tensors.push(TensorPlan { name: name.into(), action, stored, shard: plan.shards - 1 });
        }
        Ok(plan)
    }

    /// The tensors of a weights file.
    pub fn stored(&self, shard: usize) -> Vec<Stored> {
        self.tensors.iter().filter(|t| t.shard == shard).flat_map(|t| t.stored.clone()).collect()
    }

    /// Name of a weights file, as Hugging Face names shards.
    pub fn file_name(&self, shard: usize) -> String {
        match self.shards {
            1 => WEIGHTS_FILE.into(),
            n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        }
    }
}

/// What is stored for a tensor.
fn stored(name: &str, entry: &squish_models::checkpoint::Entry, action: &Action) -> Result<Vec<Stored>> {
    let part = |name: String, dtype: safetensors::Dtype, shape: Vec<usize>| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        Stored { name, dtype, shape, bytes }
    };
    match action {
        Action::Copy => Ok(vec![part(name.into(), entry.dtype, entry.shape.clone())]),
        Action::Encode(spec) => {
            let parts = spec.record().stored(name);
            let parts = parts.map_err(|source| Error::Matrix { name: name.into(), source })?;
            Ok(parts.into_iter().map(|p| part(p.name, p.dtype, p.shape)).collect())
        }
    }
}

/// A rule applied to a shape; the reason where it cannot be.
fn spec(
    rows: usize,
    cols: usize,
    rule: &Rule,
    seed: u64,
    rotations: &mut HashMap<usize, Arc<Rotation>>,
) -> squish_kernels::Result<MatrixSpec> {
    let scheme = scheme::by_name(&rule.scheme)?;
    let asked = rule.group.unwrap_or(scheme.default_group(cols));
    let fits = |group| Packed::layout(scheme, rows, cols, group).map(|_| group);
    let fallbacks = [gcd(asked, cols), scheme.default_group(cols)];
    let group = fits(asked).or_else(|e| fallbacks.iter().find_map(|&group| fits(group).ok()).ok_or(e))?;
    let mut spec = MatrixSpec::plain(scheme, rows, cols, group);
    if rule.rotate.unwrap_or(scheme.wants_rotation()) {
        // One rotation for all matrices of one input size, so that linears can share the rotated input.
        let rotation = match rotations.entry(cols) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(free) => {
                let block = Rotation::best_block(cols).unwrap_or(0);
                free.insert(Arc::new(Rotation::new(cols, block, seed)?))
            }
        };
        spec.rotation = Some(rotation.clone());
    }
    spec.rank = rule.rank.min(rows).min(cols);
    spec.entries = sparse::entry_count(rows, cols, rule.sparse);
    if spec.entries > 0 && cols > 1 << 16 {
        return Err(squish_kernels::Error::Sparse("more than 65536 columns"));
    }
    spec.seed = seed;
    Ok(spec)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
