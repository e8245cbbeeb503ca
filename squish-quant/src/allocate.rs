//! Where the bits go: the scheme of each matrix, chosen by what its errors cost, under a budget for the whole file.
//!
//! How much a matrix matters is measured, not guessed: it alone is packed, with the smallest of its rule's choices and
//! by rounding, and the model's divergence from the original is taken on a few windows. Small errors act alike
//! whatever their form, so that the divergence grows in proportion to their energy; for the other choices it is that
//! of the first times the ratio of the energies, which a sample of the rows shows.
//!
//! Matrices inside the blocks are then encoded with error feedback, which takes off more than half: their divergences are
//! divided by what that was measured to be.
//!
//! With a divergence and a size for every choice, the bits are spent where they save most: beginning with the smallest
//! choices, the step of the most divergence saved per byte is taken, as long as one fits.

use crate::{
    Error, Progress, Recipe, Reference, Result, Silent,
    matrix::MatrixSpec,
    output::WeightsFile,
    plan::{Action, Plan},
    recipe::{Rule, block_index},
    source::Source,
    stream::Job,
};
use rayon::prelude::*;
use serde_json::Map;
use squish_models::{Checkpoint, Device, Model};

/// Windows on which divergences are measured, and tokens of each.
const WINDOWS: usize = 2;
const WINDOW: usize = 512;
/// Models that are compared with the original at the same time.
const MODELS_AT_ONCE: usize = 4;
/// What error feedback divides the divergence by: 0.287 to 0.124 nats per token, rounded against calibrated, for the
/// testbed's model with every linear at 2 bits (docs/recipes.md). Embeddings and heads, outside the blocks, have none.
const FEEDBACK_GAIN: f64 = 2.3;
/// Rows that show the energies of a matrix's errors.
const SAMPLED_ROWS: usize = 256;
/// The header of a weights file, for each of its tensors: names, offsets, and the record.
const HEADER_BYTES: usize = 512;

/// The recipe with a scheme chosen for every matrix whose rule gives choices, so that the weights files take at most
/// `bits` per parameter.
///
/// # Errors
/// [`Error::Budget`] when even the smallest choices take more; see [`Error`] for the rest.
pub fn allocate(
    checkpoint: &mut Checkpoint,
    recipe: &Recipe,
    bits: f64,
    windows: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Recipe> {
    let smallest = Plan::new(checkpoint, &with_choice(recipe, 0), usize::MAX)?;
    let parameters = smallest.parameters;
    let budget = (bits * parameters as f64 / 8.0) as usize;
    let mut candidates = candidates(checkpoint, recipe, &smallest, windows, progress)?;
    let mut size =
        WeightsFile::size(&smallest.stored(0), &Map::new()) + HEADER_BYTES * smallest.tensors.len();
    if size > budget {
        let least = 8.0 * size as f64 / parameters as f64;
        return Err(Error::Budget { bits, least, least_bytes: size });
    }
    while let Some((i, to)) = best_step(&candidates, budget - size) {
        let candidate = &mut candidates[i];
        size += candidate.choices[to].bytes - candidate.choices[candidate.chosen].bytes;
        candidate.chosen = to;
    }
    let rule = |c: &Candidate| Rule {
        tensors: vec![c.name.clone()],
        blocks: None,
        scheme: c.choices[c.chosen].scheme.clone(),
        choices: Vec::new(),
        ..c.rule.clone()
    };
    let rules = candidates.iter().map(rule).chain(recipe.rules.iter().cloned()).collect();
    Ok(Recipe { rules, ..recipe.clone() })
}

/// A matrix with a choice of schemes.
#[derive(Debug)]
struct Candidate {
    name: String,
    rule: Rule,
    /// In order of size.
    choices: Vec<Choice>,
    chosen: usize,
}

#[derive(Debug)]
struct Choice {
    scheme: String,
    bytes: usize,
    /// Divergence of the model with this matrix alone packed so, in nats per token.
    cost: f64,
}

/// The step of the most divergence saved per byte, of those that take at most `room` bytes: `(candidate, choice)`.
fn best_step(candidates: &[Candidate], room: usize) -> Option<(usize, usize)> {
    let steps = candidates.iter().enumerate().flat_map(|(i, candidate)| {
        let now = &candidate.choices[candidate.chosen];
        candidate.choices.iter().enumerate().skip(candidate.chosen + 1).filter_map(move |(to, choice)| {
            let bytes = choice.bytes.checked_sub(now.bytes).filter(|&b| b > 0 && b <= room)?;
            let saved = now.cost - choice.cost;
            (saved > 0.0).then_some((saved / bytes as f64, (i, to)))
        })
    });
    steps.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, step)| step)
}

/// The recipe in which every rule with choices takes its `index`-th, or its last.
fn with_choice(recipe: &Recipe, index: usize) -> Recipe {
    let mut recipe = recipe.clone();
    for rule in recipe.rules.iter_mut().filter(|rule| !rule.choices.is_empty()) {
        rule.scheme = rule.choices[index.min(rule.choices.len() - 1)].clone();
    }
    recipe
}

/// Every matrix with choices, and what each of them costs.
fn candidates(
    checkpoint: &mut Checkpoint,
    recipe: &Recipe,
    smallest: &Plan,
    windows: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Vec<Candidate>> {
    let blocks = smallest.blocks;
    let longest = recipe.rules.iter().map(|rule| rule.choices.len()).max().unwrap_or(0);
    let plans: Vec<Plan> = (0..longest)
        .map(|i| Plan::new(checkpoint, &with_choice(recipe, i), usize::MAX))
        .collect::<Result<_>>()?;
    let windows: Vec<Vec<u32>> = (0..WINDOWS.min(windows.len()))
        .map(|i| &windows[i * windows.len() / WINDOWS.min(windows.len())])
        .map(|ids| ids[..ids.len().min(WINDOW)].to_vec())
        .collect();
    let original = Model::from_checkpoint(checkpoint, &Device::Cpu)?;
    let reference = Reference::new(&original, windows, &Silent)?;

    let mut candidates = Vec::new();
    for (t, tensor) in smallest.tensors.iter().enumerate() {
        let Some(rule) = recipe.rule(&tensor.name, blocks).filter(|rule| !rule.choices.is_empty()) else {
            continue;
        };
        let mut choices = Vec::new();
        for (scheme, plan) in rule.choices.iter().zip(&plans) {
            let Action::Encode(spec) = &plan.tensors[t].action else { continue };
            let bytes = plan.tensors[t].stored.iter().map(|s| s.bytes).sum();
            // For now the energy of the error, as a share of the weights'.
            let cost = error_energy(&Source::new(checkpoint, &tensor.name)?, spec)?;
            choices.push(Choice { scheme: scheme.clone(), bytes, cost });
        }
        choices.sort_by_key(|choice| choice.bytes);
        if !choices.is_empty() {
            candidates.push(Candidate { name: tensor.name.clone(), rule: rule.clone(), choices, chosen: 0 });
        }
    }

    let mut done = 0;
    let total = candidates.len();
    for group in candidates.chunks_mut(MODELS_AT_ONCE) {
        let mut models = Vec::new();
        for candidate in &*group {
            progress.at(done + models.len(), total, &format!("sensitivity of {}", candidate.name));
            if progress.interrupted() {
                return Err(Error::Interrupted);
            }
            let tensor = smallest.tensors.iter().find(|t| t.name == candidate.name);
            let Some(Action::Encode(spec)) = tensor.map(|t| &t.action) else { continue };
            let encoded = Job::new(&Silent, 0).encode(&Source::new(checkpoint, &candidate.name)?, spec)?;
            checkpoint.replace(&candidate.name, encoded.weight);
            models.push(Model::from_checkpoint(checkpoint, &Device::Cpu)?);
            checkpoint.restore(&candidate.name);
        }
        let measured: Vec<f64> = models
            .par_iter()
            .map(|model| Ok(reference.divergence(model, &Silent)?.kl_mean))
            .collect::<Result<_>>()?;
        for (candidate, kl) in group.iter_mut().zip(measured) {
            let gain = if block_index(&candidate.name).is_some() { FEEDBACK_GAIN } else { 1.0 };
            let first = candidate.choices[0].cost.max(f64::MIN_POSITIVE);
            candidate.choices.iter_mut().for_each(|choice| choice.cost *= kl / gain / first);
        }
        done += group.len();
    }
    Ok(candidates)
}

/// Energy of what rounding to a spec's codes misses, as a share of the weights', on a sample of the rows.
fn error_energy(source: &Source, spec: &MatrixSpec) -> Result<f64> {
    let matrix = source.matrix()?;
    let rows = SAMPLED_ROWS.min(matrix.rows());
    let mut weights = source.rows(&matrix, 0, rows)?;
    let rows = spec.encode_rows(&mut weights).map_err(|e| source.error(e))?;
    Ok(rows.noise / rows.signal.max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, choices: &[(usize, f64)]) -> Candidate {
        let choices = choices.iter().map(|&(bytes, cost)| Choice { scheme: String::new(), bytes, cost });
        let rule = Recipe::load("int4").unwrap().rules[0].clone();
        Candidate { name: name.into(), rule, choices: choices.collect(), chosen: 0 }
    }

    #[test]
    fn bits_go_where_they_save_most() {
        let mut candidates = [
            candidate("a", &[(10, 8.0), (20, 2.0), (40, 1.9)]),
            candidate("b", &[(10, 1.0), (20, 0.5)]),
            // Nothing to be had here.
            candidate("c", &[(10, 0.0), (20, 0.0)]),
        ];
        assert_eq!(best_step(&candidates, 9), None);
        assert_eq!(best_step(&candidates, 100), Some((0, 1)));
        candidates[0].chosen = 1;
        assert_eq!(best_step(&candidates, 100), Some((1, 1)));
        candidates[1].chosen = 1;
        assert_eq!(best_step(&candidates, 19), None);
        assert_eq!(best_step(&candidates, 20), Some((0, 2)));
    }
}
