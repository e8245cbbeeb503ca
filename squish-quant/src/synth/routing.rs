//! A mix of schemes under a budget, where there is no model on which sensitivities could be measured.
//!
//! Every matrix begins with the smallest of its rule's choices. Then, as long as one fits, a matrix is raised by one choice:
//! all kinds of matrices once before any of them twice, in the order of [`KINDS`], and within a kind from the first block
//! on. The kinds that measurements find sensitive come first; gate and up, of which there is most, last.

use crate::{
    Error, Recipe, Result,
    output::WeightsFile,
    plan::Plan,
    recipe::{Rule, block_index},
};
use serde_json::Map;
use squish_models::Checkpoint;

/// Kinds of matrices, in the order in which they are raised; all others come after them.
const KINDS: &[&str] = &[
    "v_proj.weight",
    "k_proj.weight",
    "embed_tokens.weight",
    "lm_head.weight",
    "down_proj.weight",
    "o_proj.weight",
    "q_proj.weight",
    "up_proj.weight",
    "gate_proj.weight",
];

/// The header of a weights file, for each of its tensors: names, offsets, and the record.
const HEADER_BYTES: usize = 512;

/// A matrix with a choice of schemes.
struct Candidate<'a> {
    name: String,
    rule: &'a Rule,
    /// Bytes of each choice.
    bytes: Vec<usize>,
    chosen: usize,
}

/// The recipe with a scheme for every matrix whose rule gives choices, so that the weights files take at most `bits` per
/// parameter.
///
/// # Errors
/// [`Error::Budget`] when even the smallest choices take more; see [`Error`] for the rest.
pub fn under_budget(original: &Checkpoint, recipe: &Recipe, bits: f64) -> Result<Recipe> {
    let longest = recipe.rules.iter().map(|rule| rule.choices.len()).max().unwrap_or(0);
    let plans = (0..longest.max(1))
        .map(|choice| Plan::new(original, &with_choice(recipe, choice), usize::MAX))
        .collect::<Result<Vec<_>>>()?;
    let smallest = &plans[0];
    let budget = (bits * smallest.parameters as f64 / 8.0) as usize;
    let least_bytes =
        WeightsFile::size(&smallest.stored(0), &Map::new()) + HEADER_BYTES * smallest.tensors.len();
    let mut room = budget.checked_sub(least_bytes).ok_or_else(|| Error::Budget {
        bits,
        least: 8.0 * least_bytes as f64 / smallest.parameters as f64,
        least_bytes,
    })?;

    let mut candidates = Vec::new();
    for (t, tensor) in smallest.tensors.iter().enumerate() {
        let rule = recipe.rule(&tensor.name, smallest.blocks).filter(|rule| !rule.choices.is_empty());
        // Norms match the rules of no recipe worth the name; what is stored as it is has nothing to choose.
        let Some(rule) = rule.filter(|_| tensor.stored.len() > 1) else { continue };
        let of_choice = |plan: &Plan| plan.tensors[t].stored.iter().map(|part| part.bytes).sum();
        let bytes = plans.iter().take(rule.choices.len()).map(of_choice).collect();
        candidates.push(Candidate { name: tensor.name.clone(), rule, bytes, chosen: 0 });
    }
    candidates.sort_by_key(|candidate| {
        let kind = KINDS.iter().position(|kind| candidate.name.ends_with(kind)).unwrap_or(KINDS.len());
        (kind, block_index(&candidate.name))
    });
    for choice in 1..longest {
        for candidate in candidates.iter_mut().filter(|candidate| candidate.chosen + 1 == choice) {
            let Some(&bytes) = candidate.bytes.get(choice) else { continue };
            let more = bytes.saturating_sub(candidate.bytes[candidate.chosen]);
            if more > 0 && more <= room {
                room -= more;
                candidate.chosen = choice;
            }
        }
    }
    let rule = |c: &Candidate| Rule {
        tensors: vec![c.name.clone()],
        blocks: None,
        scheme: c.rule.choices[c.chosen].clone(),
        choices: Vec::new(),
        ..c.rule.clone()
    };
    let rules = candidates.iter().map(rule).chain(recipe.rules.iter().cloned()).collect();
    Ok(Recipe { rules, ..recipe.clone() })
}

/// The recipe in which every rule with choices takes its `index`-th, or its last.
fn with_choice(recipe: &Recipe, index: usize) -> Recipe {
    let mut recipe = recipe.clone();
    for rule in recipe.rules.iter_mut().filter(|rule| !rule.choices.is_empty()) {
        rule.scheme = rule.choices[index.min(rule.choices.len() - 1)].clone();
    }
    recipe
}
