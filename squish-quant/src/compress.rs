//! A checkpoint in, a squished checkpoint out, tensor by tensor.

use crate::{
    Error, Inspection, Origin, Progress, Recipe, Result,
    allocate::allocate,
    assembly::{Assembly, each_copied},
    calibrate::{
        calibrate,
        text::{Amount, Text, Tokens},
    },
    certificate::{hash_checkpoint, maker},
    fit::{Memory, Target},
    guard, inspect,
    output::OutputDir,
    plan::{Action, Plan, TensorPlan},
    resume::Resume,
    source::Source,
    stream::Job,
};
use serde::Serialize;
use serde_json::json;
use squish_models::{Checkpoint, Device, Model, checkpoint::Certificate};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// How to compress.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which tensor gets which scheme.
    pub recipe: Recipe,
    /// What the weights files may take, in the place of what the recipe aims at.
    pub target: Option<Target>,
    /// Weights files are split above this size.
    pub max_shard_bytes: usize,
    /// What to calibrate on; `None` for rounding alone.
    pub calibration: Option<Text>,
    /// How much of it.
    pub amount: Amount,
    /// The command line, for the certificate.
    pub command: Option<String>,
    /// Whether a recipe is taken that the model's family is known not to bear ([`guard`](crate::guard)).
    pub force_recipe: bool,
    /// A squished checkpoint of this original by this recipe, whose certificate shows that the model bears it.
    pub certified: Option<PathBuf>,
    /// Where the original is from, to be kept beside the result.
    pub origin: Option<Origin>,
}

impl Options {
    /// A recipe with weights files of at most 5 GB, calibrated on text of the model's own where the recipe asks
    /// for calibration.
    pub fn new(recipe: Recipe) -> Self {
        let calibration = recipe.calibrate.then_some(Text::SelfWritten);
        Self {
            recipe,
            target: None,
            max_shard_bytes: 5_000_000_000,
            calibration,
            amount: Amount::default(),
            command: None,
            force_recipe: false,
            certified: None,
            origin: None,
        }
    }
}

impl Options {
    /// What may pass the guards.
    pub(crate) fn pass(&self) -> guard::Pass<'_> {
        match &self.certified {
            _ if self.force_recipe => guard::Pass::Forced,
            Some(squished) => guard::Pass::Certified(squished),
            None => guard::Pass::None,
        }
    }
}

/// What came of a compression.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What the output holds.
    #[serde(flatten)]
    pub inspection: Inspection,
    /// What it takes while it runs, where a memory was to be fitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Wall-clock time.
    pub seconds: f64,
}

/// Compresses the checkpoint in `source` into the directory `out`, which must be absent or empty.
///
/// Memory holds the parts of a tensor and a few chunks of its source (all of it where a correction is asked for),
/// never the model; calibration adds the activations of its text and one stage's Hessians. The same source, recipe and
/// text give the same bytes on the same kind of processor.
///
/// # Errors
/// See [`Error`]. On any error, `out` is as it was; what a calibration has finished is kept beside it, for the same call to
/// go on from.
pub fn compress(source: &Path, out: &Path, options: &Options, progress: &dyn Progress) -> Result<Report> {
    let start = Instant::now();
    // Before anything long: what speaks against the original or the recipe, and what is in the way of the output.
    let (mut checkpoint, model) = examine(source, options)?;
    OutputDir::create(out, 0)?;
    let calibration = match &options.calibration {
        Some(text) => Some(text.read(&checkpoint, &model, options.amount, options.recipe.seed, progress)?),
        None => None,
    };
    let target = match (options.target, options.recipe.target_bits) {
        (None, Some(bits)) => Some(Target::BitsPerParameter(bits)),
        (target, _) => target,
    };
    let (mut recipe, mut note, mut memory) = (options.recipe.clone(), None, None);
    if let (Some(target), Some(calibration)) = (target, &calibration) {
        let (bits, beside) = target.bits(&checkpoint, &model, &recipe)?;
        memory = beside;
        match allocate(&mut checkpoint, &recipe, bits, &calibration.windows, progress) {
            Ok(allocated) => recipe = allocated,
            // What a recipe aims at suits models of some size; what a caller asks for is meant.
            Err(e @ Error::Budget { .. }) if options.target.is_none() => {
                note = Some(format!("{e}; its fixed schemes are taken"));
            }
            Err(e) => return Err(target.refused(e, memory)),
        }
    }
    let mut plan = Plan::new(&checkpoint, &recipe, options.max_shard_bytes)?;
    plan.notes.splice(0..0, note);

    let certificate = Certificate {
        command: options.command.clone(),
        original: Some(hash_checkpoint(&checkpoint)?),
        calibration: calibration.as_ref().map(Tokens::record),
        ..Certificate::new(plan.parameters as u64, 0)
    };
    let mut assembly = Assembly::new(&plan, &recipe, certificate, |needed| OutputDir::create(out, needed))?;
    let mut job = Job::new(progress, plan.parameters);
    let (copied, encoded): (Vec<_>, Vec<_>) =
        plan.tensors.iter().partition(|tensor| matches!(tensor.action, Action::Copy));
    for tensor in copied {
        assembly.add(tensor, &Source::new(&checkpoint, &tensor.name)?, &mut job)?;
    }
    match &calibration {
        Some(calibration) => {
            let resume = Resume::open(out, &resume_key(&recipe, &assembly.certificate))?;
            let mut emit = |tensor: &TensorPlan, encoded| assembly.emit(tensor, encoded);
            calibrate(&mut checkpoint, &calibration.windows, &plan, &resume, &mut job, &mut emit)
                .map_err(|e| resume.paused(e))?;
            resume.finish()?;
        }
        None => {
            for tensor in encoded {
                assembly.add(tensor, &Source::new(&checkpoint, &tensor.name)?, &mut job)?;
            }
        }
    }
    assembly.finish(&checkpoint, options)?;
    let inspection = inspect(out)?;
    if let Some(memory) = &mut memory {
        memory.weights_bytes = inspection.file_bytes;
    }
    Ok(Report { inspection, memory, notes: plan.notes, seconds: start.elapsed().as_secs_f64() })
}

/// Opens an original that is to be compressed, of which the weights need not have come yet: their headers are enough.
///
/// # Errors
/// What would end a compression later: what is missing, misshapen, too long to be copied, or known not to bear the recipe.
pub fn examine(source: &Path, options: &Options) -> Result<(Checkpoint, Model)> {
    let checkpoint = Checkpoint::open(source)?;
    if checkpoint.manifest().is_some() {
        return Err(Error::AlreadySquished(source.into()));
    }
    // Loading maps the weights and reads no more than norms and biases, but finds what is missing or misshapen.
    let model = Model::from_checkpoint(&checkpoint, &Device::Cpu)?;
    guard::check(&checkpoint, &options.recipe, options.calibration.is_some(), options.pass())?;
    each_copied(source, |_, _| Ok(()))?;
    Ok((checkpoint, model))
}

/// What makes two compressions the same work, as far as their matrices go.
pub(crate) fn resume_key(recipe: &Recipe, certificate: &Certificate) -> String {
    let Certificate { original, calibration, .. } = certificate;
    json!({"maker": maker(), "recipe": recipe, "original": original, "calibration": calibration}).to_string()
}
