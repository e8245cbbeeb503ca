//! A checkpoint in, a squished checkpoint out, tensor by tensor.

use crate::{
    Error, Inspection, Progress, Recipe, Result,
    encode::LARGEST,
    inspect,
    matrix::{Corrections, MatrixSpec, first_unfit},
    output::{OutputDir, Stored, WeightsFile, io_error},
    plan::{Action, Plan, TensorPlan},
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use squish_kernels::Packed;
use squish_models::{
    Checkpoint, Device, Model,
    checkpoint::{Entry, FORMAT, INDEX_FILE, MANIFEST_KEY, Manifest, QUANT_METHOD, Shard, TensorRecord},
};
use std::{collections::BTreeMap, fs, path::Path, time::Instant};

/// Weights that are worked on at once: bounds the memory that a tensor of any size needs.
const CHUNK_WEIGHTS: usize = 1 << 22;

/// Files of a checkpoint, beside configuration and weights, that are copied where present.
const COPIED_FILES: &[&str] = &[
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
    /// Weights files are split above this size.
    pub max_shard_bytes: usize,
}

impl Options {
    /// A recipe with weights files of at most 5 GB.
    pub fn new(recipe: Recipe) -> Self {
        Self { recipe, max_shard_bytes: 5_000_000_000 }
    }
}

/// What came of a compression.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What the output holds.
    #[serde(flatten)]
    pub inspection: Inspection,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Wall-clock time.
    pub seconds: f64,
}

/// Compresses the checkpoint in `source` into the directory `out`, which must be absent or empty.
///
/// Memory holds a few chunks of a tensor (all of it where a correction is asked for), never the model. The same
/// source and recipe give the same bytes.
///
/// # Errors
/// See [`Error`]. On any error, `out` is as it was.
pub fn compress(source: &Path, out: &Path, options: &Options, progress: &dyn Progress) -> Result<Report> {
    let start = Instant::now();
    let checkpoint = Checkpoint::open(source)?;
    if checkpoint.manifest().is_some() {
        return Err(Error::AlreadySquished(source.into()));
    }
    // Loading maps the weights and reads no more than norms and biases, but finds what is missing or misshapen.
    Model::from_checkpoint(&checkpoint, &Device::Cpu)?;
    let plan = Plan::new(&checkpoint, &options.recipe, options.max_shard_bytes)?;

    let placeholders = placeholder_manifests(&plan, &options.recipe);
    let layouts: Vec<Vec<Stored>> = (0..plan.shards).map(|shard| plan.stored(shard)).collect();
    let sizes =
        layouts.iter().zip(&placeholders).map(|(layout, metadata)| WeightsFile::size(layout, metadata));
    let output = OutputDir::create(out, sizes.sum::<usize>() as u64)?;
    let mut files = Vec::new();
    for (shard, (layout, metadata)) in layouts.into_iter().zip(&placeholders).enumerate() {
        files.push(WeightsFile::create(&output.path().join(plan.file_name(shard)), layout, metadata)?);
    }

    let weights = |t: &TensorPlan| checkpoint.entry(&t.name).map_or(0, |(_, e)| e.shape.iter().product());
    let mut job = Job { progress, done: 0, total: plan.tensors.iter().map(weights).sum() };
    let mut records = vec![BTreeMap::new(); plan.shards];
    for tensor in &plan.tensors {
        let (shard, entry) = checkpoint.entry(&tensor.name)?;
        let source = Source { shard, entry, name: &tensor.name };
        let file = &mut files[tensor.shard];
        match &tensor.action {
            Action::Copy => job.copy(&source, file)?,
            Action::Encode(spec) => {
                let record = job.encode(&source, spec, file)?;
                records[tensor.shard].insert(tensor.name.clone(), record);
            }
        }
    }
    for (file, records) in files.into_iter().zip(records) {
        file.finish(metadata(&options.recipe, records))?;
    }
    write_small_files(&checkpoint, &plan, options, &output)?;
    output.finish()?;
    Ok(Report { inspection: inspect(out)?, notes: plan.notes, seconds: start.elapsed().as_secs_f64() })
}

/// The metadata of a weights file with these records.
fn metadata(recipe: &Recipe, tensors: BTreeMap<String, TensorRecord>) -> Map<String, Value> {
    let tool = concat!("squish-quant ", env!("CARGO_PKG_VERSION")).into();
    let manifest = Manifest { format: FORMAT, tool, recipe: recipe.name.clone(), tensors };
    let text = serde_json::to_string(&manifest).expect("a manifest has string keys and finite numbers");
    Map::from_iter([(MANIFEST_KEY.to_string(), text.into()), ("format".to_string(), "pt".into())])
}

/// For each weights file, metadata as long as the final one can get: every measured number in its longest form.
fn placeholder_manifests(plan: &Plan, recipe: &Recipe) -> Vec<Map<String, Value>> {
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
        metadata(recipe, tensors.collect())
    };
    (0..plan.shards).map(of_shard).collect()
}

/// Configuration, index and the files that are copied as they are.
fn write_small_files(
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

/// A tensor of the original checkpoint.
struct Source<'a> {
    shard: &'a Shard,
    entry: &'a Entry,
    name: &'a str,
}

impl Source<'_> {
    /// The tensor as an unquantised matrix; one row where it has another number of dimensions than two.
    fn matrix(&self) -> Result<Packed> {
        let scheme = self.shard.float_scheme(self.name, self.entry)?;
        let (rows, cols) = match self.entry.shape[..] {
            [rows, cols] => (rows, cols),
            _ => (1, self.entry.shape.iter().product()),
        };
        Packed::new(scheme, rows, cols, 1, vec![self.shard.bytes(self.entry)]).map_err(|e| self.error(e))
    }

    fn error(&self, source: squish_kernels::Error) -> Error {
        Error::Matrix { name: self.name.into(), source }
    }

    /// Refuses weights that are not finite or too large, naming the first. `row` is that of the first weight.
    fn check(&self, weights: &[f32], row: usize, cols: usize) -> Result<()> {
        let Some(index) = first_unfit(weights) else { return Ok(()) };
        let (path, name) = (self.shard.path().into(), self.name.into());
        let (row, col, value) = (row + index / cols, index % cols, weights[index]);
        Err(if value.is_finite() {
            Error::TooLarge { path, name, row, col, value, limit: LARGEST }
        } else {
            Error::NotFinite { path, name, row, col, value }
        })
    }

    /// The error for rows of which some scale was infinite: a rotation can gather a row of large weights into
    /// one larger than [`LARGEST`]. It names the row's largest weight. `residual` is what the codes miss.
    fn overflow(&self, residual: &[f32], row: usize, cols: usize) -> Result<Error> {
        let row = row + residual.iter().position(|v| !v.is_finite()).unwrap_or(0) / cols;
        let mut weights = vec![0.0; cols];
        self.matrix()?.decode_row(row, &mut weights);
        let col = (0..cols).max_by(|&a, &b| weights[a].abs().total_cmp(&weights[b].abs())).unwrap_or(0);
        let (path, name, value) = (self.shard.path().into(), self.name.into(), weights[col]);
        // What rows of any length stay representable with.
        let limit = LARGEST / (cols as f32).sqrt();
        Ok(Error::TooLarge { path, name, row, col, value, limit })
    }
}

/// The tensors' way through, with progress.
struct Job<'a> {
    progress: &'a dyn Progress,
    done: usize,
    total: usize,
}

impl Job<'_> {
    /// Hands the checked weights of a tensor to `visit`, `rows_at_once` rows at a time: `visit(first row, weights)`.
    fn for_each_chunk(
        &mut self,
        source: &Source,
        rows_at_once: usize,
        mut visit: impl FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let matrix = source.matrix()?;
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let row_bytes = matrix.bytes() / rows;
        for first in (0..rows).step_by(rows_at_once) {
            self.progress.at(self.done, self.total, source.name);
            if self.progress.interrupted() {
                return Err(Error::Interrupted);
            }
            let count = rows_at_once.min(rows - first);
            let mut weights = vec![0.0; count * cols];
            weights.chunks_exact_mut(cols).enumerate().for_each(|(r, out)| matrix.decode_row(first + r, out));
            source.check(&weights, first, cols)?;
            visit(first, &mut weights)?;
            let start = source.entry.range.start + first * row_bytes;
            source.shard.release(start..start + count * row_bytes);
            self.done += count * cols;
        }
        self.progress.at(self.done, self.total, source.name);
        Ok(())
    }

    fn copy(&mut self, source: &Source, file: &mut WeightsFile) -> Result<()> {
        let matrix = source.matrix()?;
        let row_bytes = matrix.bytes() / matrix.rows();
        let rows_at_once = (CHUNK_WEIGHTS / matrix.cols()).max(1);
        self.for_each_chunk(source, rows_at_once, |first, weights| {
            let rows = first..first + weights.len() / matrix.cols();
            rows.into_iter().try_for_each(|r| file.write(source.name, r * row_bytes, matrix.row(0, r)))
        })
    }

    fn encode(&mut self, source: &Source, spec: &MatrixSpec, file: &mut WeightsFile) -> Result<TensorRecord> {
        let record = spec.record();
        let layout = record.stored(source.name).map_err(|e| source.error(e))?;
        let rows_at_once =
            if spec.has_corrections() { spec.rows } else { (CHUNK_WEIGHTS / spec.cols).clamp(1, spec.rows) };
        let (mut signal, mut noise) = (0.0, 0.0);
        let mut corrections = Corrections::default();
        self.for_each_chunk(source, rows_at_once, |first, weights| {
            let rows = spec.encode_rows(weights).map_err(|e| source.error(e))?;
            if !rows.noise.is_finite() {
                return Err(source.overflow(weights, first, spec.cols)?);
            }
            (signal, noise) = (signal + rows.signal, noise + rows.noise);
            let chunk_rows = weights.len() / spec.cols;
            for (part, bytes) in layout.iter().zip(&rows.parts) {
                file.write(&part.name, first * (bytes.len() / chunk_rows), bytes)?;
            }
            if spec.has_corrections() {
                corrections = spec.encode_corrections(weights).map_err(|e| source.error(e))?;
            }
            Ok(())
        })?;
        // What the record lists after the packed parts are the corrections'.
        let first = layout.len() - corrections.parts().count();
        for (part, bytes) in layout[first..].iter().zip(corrections.parts()) {
            file.write(&part.name, 0, bytes)?;
        }
        Ok(spec.measured(signal, noise, &corrections))
    }
}
