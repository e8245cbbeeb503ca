//! A checkpoint in, a squished checkpoint out, tensor by tensor.

use crate::{
    Error, Inspection, Progress, Recipe, Result,
    allocate::allocate,
    calibrate::{
        calibrate,
        text::{Amount, Text, Tokens},
    },
    certificate::{TOOL, hash_checkpoint},
    fit::{Memory, Target},
    guard, inspect,
    matrix::Encoded,
    output::{OutputDir, Stored, WeightsFile, io_error},
    plan::{Action, Plan, TensorPlan},
    resume::Resume,
    source::Source,
    stream::Job,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use squish_models::{
    Checkpoint, Device, Model,
    checkpoint::{Certificate, FORMAT, INDEX_FILE, MANIFEST_KEY, Manifest, QUANT_METHOD, TensorRecord},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// Files of a checkpoint, beside configuration and weights, that are copied where present.
pub(crate) const COPIED_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

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
    let mut checkpoint = Checkpoint::open(source)?;
    if checkpoint.manifest().is_some() {
        return Err(Error::AlreadySquished(source.into()));
    }
    // Loading maps the weights and reads no more than norms and biases, but finds what is missing or misshapen.
    let model = Model::from_checkpoint(&checkpoint, &Device::Cpu)?;
    // Before anything long: what speaks against the recipe, and what is in the way of the output.
    let pass = match &options.certified {
        _ if options.force_recipe => guard::Pass::Forced,
        Some(squished) => guard::Pass::Certified(squished),
        None => guard::Pass::None,
    };
    guard::check(&checkpoint, &options.recipe, options.calibration.is_some(), pass)?;
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

    let mut certificate = Certificate {
        command: options.command.clone(),
        original: Some(hash_checkpoint(&checkpoint)?),
        calibration: calibration.as_ref().map(Tokens::record),
        ..Certificate::new(plan.parameters as u64, 0)
    };
    let placeholders = placeholder_manifests(&plan, &recipe, &certificate);
    let layouts: Vec<Vec<Stored>> = (0..plan.shards).map(|shard| plan.stored(shard)).collect();
    let sizes =
        layouts.iter().zip(&placeholders).map(|(layout, metadata)| WeightsFile::size(layout, metadata));
    let output = OutputDir::create(out, sizes.sum::<usize>() as u64)?;
    let mut files = Vec::new();
    for (shard, (layout, metadata)) in layouts.into_iter().zip(&placeholders).enumerate() {
        files.push(WeightsFile::create(&output.path().join(plan.file_name(shard)), layout, metadata)?);
    }

    certificate.count(files.iter().map(WeightsFile::file_bytes).sum());
    let mut job = Job::new(progress, plan.parameters);
    let mut records = vec![BTreeMap::new(); plan.shards];
    for tensor in plan.tensors.iter().filter(|t| matches!(t.action, Action::Copy)) {
        job.copy(&Source::new(&checkpoint, &tensor.name)?, &mut files[tensor.shard])?;
    }
    let mut emit = |tensor: &TensorPlan, encoded: Encoded| -> Result<()> {
        let layout = encoded.record.stored(&tensor.name);
        let layout = layout.map_err(|source| Error::Matrix { name: tensor.name.clone(), source })?;
        for (part, bytes) in layout.iter().zip(&encoded.parts) {
            files[tensor.shard].write(&part.name, 0, bytes)?;
        }
        records[tensor.shard].insert(tensor.name.clone(), encoded.record);
        Ok(())
    };
    match &calibration {
        Some(calibration) => {
            let resume = Resume::open(out, &resume_key(&recipe, &certificate))?;
            calibrate(&mut checkpoint, &calibration.windows, &plan, &resume, &mut job, &mut emit)
                .map_err(|e| resume.paused(e))?;
            resume.finish()?;
        }
        None => {
            for tensor in &plan.tensors {
                let Action::Encode(spec) = &tensor.action else { continue };
                emit(tensor, job.encode(&Source::new(&checkpoint, &tensor.name)?, spec)?)?;
            }
        }
    }
    let mut certificate = Some(certificate);
    for (file, records) in files.into_iter().zip(records) {
        file.finish(metadata(&recipe, records, certificate.take()))?;
    }
    write_small_files(&checkpoint, &plan, options, &output)?;
    output.finish()?;
    let inspection = inspect(out)?;
    if let Some(memory) = &mut memory {
        memory.weights_bytes = inspection.file_bytes;
    }
    Ok(Report { inspection, memory, notes: plan.notes, seconds: start.elapsed().as_secs_f64() })
}

/// What makes two compressions the same work, as far as their matrices go.
fn resume_key(recipe: &Recipe, certificate: &Certificate) -> String {
    let Certificate { original, calibration, .. } = certificate;
    json!({"tool": TOOL, "recipe": recipe, "original": original, "calibration": calibration}).to_string()
}

/// The metadata of a weights file with these records; the first file carries the certificate.
fn metadata(
    recipe: &Recipe,
    tensors: BTreeMap<String, TensorRecord>,
    certificate: Option<Certificate>,
) -> Map<String, Value> {
    let manifest =
        Manifest { format: FORMAT, tool: TOOL.into(), recipe: recipe.name.clone(), tensors, certificate };
    let text = serde_json::to_string(&manifest).expect("a manifest has string keys and finite numbers");
    Map::from_iter([(MANIFEST_KEY.to_string(), text.into()), ("format".to_string(), "pt".into())])
}

/// For each weights file, metadata as long as the final one can get: every measured number in its longest form.
fn placeholder_manifests(plan: &Plan, recipe: &Recipe, certificate: &Certificate) -> Vec<Map<String, Value>> {
    /// As long as any ratio between -200 and 200 with two decimals.
    const LONGEST: f64 = -111.11;
    let of_shard = |shard: usize| {
        let tensors = plan.tensors.iter().filter(|t| t.shard == shard).filter_map(|t| {
            let Action::Encode(spec) = &t.action else { return None };
            let mut record = spec.record();
            record.snr_db = Some(LONGEST);
            record.low_rank.iter_mut().for_each(|l| l.gain_db = LONGEST);
            record.sparse.iter_mut().for_each(|s| s.gain_db = LONGEST);
            Some((t.name.clone(), record))
        });
        metadata(recipe, tensors.collect(), (shard == 0).then(|| certificate.reserved()))
    };
    (0..plan.shards).map(of_shard).collect()
}

/// Configuration, index and the files that are copied as they are.
pub(crate) fn write_small_files(
    checkpoint: &Checkpoint,
    plan: &Plan,
    options: &Options,
    output: &OutputDir,
) -> Result<()> {
    let pretty = |value: &Value| format!("{value:#}\n").into_bytes();
    let mut config = checkpoint.config().clone();
    config["quantization_config"] =
        json!({"quant_method": QUANT_METHOD, "format": FORMAT, "recipe": options.recipe.name});
    output.write("config.json", &pretty(&config))?;
    if plan.shards > 1 {
        let stored = || plan.tensors.iter().flat_map(|t| t.stored.iter().map(move |s| (t, s)));
        let map: BTreeMap<_, _> = stored().map(|(t, s)| (&s.name, plan.file_name(t.shard))).collect();
        let bytes: usize = stored().map(|(_, s)| s.bytes).sum();
        output.write(INDEX_FILE, &pretty(&json!({"metadata": {"total_size": bytes}, "weight_map": map})))?;
    }
    for name in COPIED_FILES {
        let path = checkpoint.dir().join(name);
        match fs::read(&path) {
            Ok(contents) => output.write(name, &contents)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io_error(&path)(e)),
        }
    }
    Ok(())
}
