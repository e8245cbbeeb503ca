//! Synthetic checkpoints: a true model's shape with random weights, to measure speed and memory on.
//!
//! The weights are drawn in packed form: random codes, and constant scales under which they have the standard deviation of
//! freshly initialised weights. No original is read or made, so that billions of weights take seconds. What such a
//! checkpoint says means nothing; it carries no certificate, and its manifest names it synthetic.
//!
//! A compression is planned for an original. Here that is a stand-in: a weights file whose header lists the shape's
//! tensors and whose data is one hole, of which nothing is ever read but a few zeros. So the routing, the layout and all
//! checks are those of a compression.

mod content;
mod routing;
mod shape;

use crate::{
    Error, Options, Progress, Recipe, Report, Result,
    assembly::{COPIED_FILES, write_small_files},
    certificate::TOOL,
    inspect,
    output::{OutputDir, Stored, WeightsFile, io_error},
    plan::{Action, Plan},
    stream::Job,
};
use safetensors::Dtype;
use serde_json::{Map, Value};
use shape::{Fill, Shape};
use squish_models::{
    Checkpoint, Device, Model,
    checkpoint::{FORMAT, MANIFEST_KEY, Manifest, WEIGHTS_FILE},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};
use tempfile::TempDir;

/// Most bytes of a weights file, as `compress` has it unless told otherwise.
const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// What to make.
#[derive(Debug, Clone)]
pub struct Synthetic {
    /// Which tensor gets which scheme.
    pub recipe: Recipe,
    /// Bits per parameter of all weights files, in the place of what the recipe aims at.
    pub target_bits: Option<f64>,
    /// Seed of the random codes.
    pub seed: u64,
}

impl Synthetic {
    /// Writes a checkpoint of the shape that `config` describes into the directory `out`, which must be absent or empty.
    ///
    /// `config` is a `config.json`, or a directory with one, of which tokenizer files are copied as well. The same shape,
    /// recipe and seed give the same bytes.
    ///
    /// # Errors
    /// See [`Error`]; an architecture that this build cannot run is one. On any error, `out` is as it was.
    pub fn write(&self, config: &Path, out: &Path, progress: &dyn Progress) -> Result<Report> {
        let start = Instant::now();
        let (config, files) = config_and_files(config)?;
        let shape = Shape::read(&config)?;
        let stand_in = StandIn::new(&shape, files)?;
        let original = stand_in.open().map_err(|e| named(e, &config))?;

        let (recipe, note) = self.routed(&original)?;
        let mut plan = Plan::new(&original, &recipe, MAX_SHARD_BYTES)?;
        plan.notes.splice(0..0, note);
        plan.notes.push("the weights are random: good for speed and memory, for nothing else".into());

        let manifests: Vec<_> = (0..plan.shards).map(|shard| metadata(&plan, &recipe, shard)).collect();
        let layouts: Vec<Vec<Stored>> = (0..plan.shards).map(|shard| plan.stored(shard)).collect();
        let sizes = layouts.iter().zip(&manifests).map(|(layout, text)| WeightsFile::size(layout, text));
        let output = OutputDir::create(out, sizes.sum::<usize>() as u64)?;
        let mut weights = Vec::new();
        for (shard, (layout, metadata)) in layouts.into_iter().zip(&manifests).enumerate() {
            let path = output.path().join(plan.file_name(shard));
            weights.push(WeightsFile::create(&path, layout, metadata)?);
        }
        let mut job = Job::new(progress, plan.parameters);
        for (index, tensor) in plan.tensors.iter().enumerate() {
            job.at(&tensor.name)?;
            let mut content = content::Content::new(self.seed, index, &mut weights[tensor.shard]);
            let fill = shape.tensors[&tensor.name].fill;
            match &tensor.action {
                Action::Copy => content.plain(&tensor.stored[0], fill)?,
                Action::Encode(spec) => content.packed(&tensor.name, &spec.record())?,
            }
            job.advance(shape.tensors[&tensor.name].weights());
        }
        for (file, metadata) in weights.into_iter().zip(manifests) {
            file.finish(metadata)?;
        }
        write_small_files(&original, &plan, &Options::new(recipe), &output)?;
        output.finish()?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Report { inspection: inspect(out)?, memory: None, notes: plan.notes, seconds })
    }

    /// The recipe with its choices made, where a number of bits is aimed at; and what a person should know of that.
    fn routed(&self, original: &Checkpoint) -> Result<(Recipe, Option<String>)> {
        let Some(bits) = self.target_bits.or(self.recipe.target_bits) else {
            return Ok((self.recipe.clone(), None));
        };
        match routing::under_budget(original, &self.recipe, bits) {
            Ok(recipe) => Ok((recipe, None)),
            // As in a compression: what a caller asks for is meant, what a recipe aims at suits larger models.
            Err(e @ Error::Budget { .. }) if self.target_bits.is_none() => {
                Ok((self.recipe.clone(), Some(format!("{e}; its fixed schemes are taken"))))
            }
            Err(e) => Err(e),
        }
    }
}

/// The configuration file, and what is copied from beside it.
fn config_and_files(given: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    if !fs::metadata(given).map_err(io_error(given))?.is_dir() {
        return Ok((given.into(), Vec::new()));
    }
    let files = COPIED_FILES.iter().map(|name| given.join(name)).filter(|path| path.exists());
    Ok((given.join("config.json"), files.collect()))
}

/// An error of the stand-in's configuration, of the file that it was copied from.
fn named(error: squish_models::Error, config: &Path) -> Error {
    match error {
        squish_models::Error::Config { reason, .. } => {
            squish_models::Error::Config { path: config.into(), reason }.into()
        }
        other => other.into(),
    }
}

/// The metadata of a weights file: final from the beginning, since nothing is measured.
fn metadata(plan: &Plan, recipe: &Recipe, shard: usize) -> Map<String, Value> {
    let records = plan.tensors.iter().filter(|t| t.shard == shard).filter_map(|t| match &t.action {
        Action::Encode(spec) => Some((t.name.clone(), spec.record())),
        Action::Copy => None,
    });
    let manifest = Manifest {
        format: FORMAT,
        tool: format!("{TOOL} synth, random weights"),
        recipe: recipe.name.clone(),
        tensors: records.collect::<BTreeMap<_, _>>(),
        certificate: None,
    };
    let text = serde_json::to_string(&manifest).expect("a manifest has string keys and finite numbers");
    Map::from_iter([(MANIFEST_KEY.to_string(), text.into()), ("format".to_string(), "pt".into())])
}

/// An original checkpoint without weights, in a directory of its own that is removed with it.
struct StandIn(TempDir);

impl StandIn {
    fn new(shape: &Shape, files: Vec<PathBuf>) -> Result<Self> {
        let temporary = std::env::temp_dir();
        let dir = tempfile::tempdir().map_err(io_error(&temporary))?;
        let write = |name: &str, contents: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, contents).map_err(io_error(&path))
        };
        write("config.json", shape.config.to_string().as_bytes())?;
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            write(&name, &fs::read(&file).map_err(io_error(&file))?)?;
        }
        let stored = shape.tensors.iter().map(|(name, tensor)| Stored {
            name: name.clone(),
            dtype: Dtype::BF16,
            shape: tensor.shape.clone(),
            bytes: 2 * tensor.weights(),
        });
        // Created at its full length and never written to, but for the header: a hole on every common file system.
        let path = dir.path().join(WEIGHTS_FILE);
        WeightsFile::create(&path, stored.collect(), &Map::new())?.finish(Map::new())?;
        Ok(Self(dir))
    }

    /// The checkpoint, of which a model could be made.
    fn open(&self) -> squish_models::Result<Checkpoint> {
        let checkpoint = Checkpoint::open(self.0.path())?;
        Model::from_checkpoint(&checkpoint, &Device::Cpu)?;
        Ok(checkpoint)
    }
}
