//! A squished checkpoint under construction: weights files laid out before the first weight is read, and the records of what has
//! come into them.

use crate::{
    Error, Options, Recipe, Result,
    certificate::TOOL,
    matrix::Encoded,
    output::{OutputDir, Stored, WeightsFile, io_error},
    plan::{Action, Plan, TensorPlan},
    source::Source,
    stream::Job,
};
use serde_json::{Map, Value, json};
use squish_models::{
    Checkpoint,
    checkpoint::{
        Certificate, FORMAT, INDEX_FILE, MANIFEST_KEY, Manifest, QUANT_METHOD, TensorRecord, text_file,
    },
};
use std::{collections::BTreeMap, path::Path};

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

/// The output, and what is known of its tensors so far.
pub struct Assembly<'a> {
    plan: &'a Plan,
    recipe: &'a Recipe,
    output: OutputDir,
    files: Vec<WeightsFile>,
    records: Vec<BTreeMap<String, TensorRecord>>,
    /// What the first file will state. Its texts may change until the end as long as they do not grow.
    pub certificate: Certificate,
}

impl<'a> Assembly<'a> {
    /// Lays out the weights files of a plan in the directory that `place` gives for so many bytes.
    ///
    /// # Errors
    /// Those of `place`, [`Error::Io`].
    pub fn new(
        plan: &'a Plan,
        recipe: &'a Recipe,
        mut certificate: Certificate,
        place: impl FnOnce(u64) -> Result<OutputDir>,
    ) -> Result<Self> {
        let placeholders = placeholder_manifests(plan, recipe, &certificate);
        let layouts: Vec<Vec<Stored>> = (0..plan.shards).map(|shard| plan.stored(shard)).collect();
        let sizes =
            layouts.iter().zip(&placeholders).map(|(layout, metadata)| WeightsFile::size(layout, metadata));
        let output = place(sizes.sum::<usize>() as u64)?;
        let mut files = Vec::new();
        for (shard, (layout, metadata)) in layouts.into_iter().zip(&placeholders).enumerate() {
            files.push(WeightsFile::create(&output.path().join(plan.file_name(shard)), layout, metadata)?);
        }
        certificate.count(files.iter().map(WeightsFile::file_bytes).sum());
        Ok(Self { plan, recipe, output, files, records: vec![BTreeMap::new(); plan.shards], certificate })
    }

    /// Takes up a tensor as it is, or by rounding, as its plan says.
    ///
    /// # Errors
    /// When a weight is not finite or too large, the scheme cannot hold the matrix, or the disk does not take it.
    pub fn add(&mut self, tensor: &TensorPlan, source: &Source, job: &mut Job) -> Result<()> {
        match &tensor.action {
            Action::Copy => job.copy(source, &mut self.files[tensor.shard]),
            Action::Encode(spec) => self.emit(tensor, job.encode(source, spec)?),
        }
    }

    /// Takes up an encoded matrix.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn emit(&mut self, tensor: &TensorPlan, encoded: Encoded) -> Result<()> {
        let layout = encoded.record.stored(&tensor.name);
        let layout = layout.map_err(|source| Error::Matrix { name: tensor.name.clone(), source })?;
        for (part, bytes) in layout.iter().zip(&encoded.parts) {
            self.files[tensor.shard].write(&part.name, 0, bytes)?;
        }
        self.restore(tensor, encoded.record);
        Ok(())
    }

    /// Takes up the record of a matrix whose bytes an earlier call has written.
    pub fn restore(&mut self, tensor: &TensorPlan, record: TensorRecord) {
        self.records[tensor.shard].insert(tensor.name.clone(), record);
    }

    /// The record of a tensor that was packed.
    pub fn record(&self, tensor: &TensorPlan) -> Option<&TensorRecord> {
        self.records[tensor.shard].get(&tensor.name)
    }

    /// Makes sure that everything so far is on the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.files.iter().try_for_each(WeightsFile::sync)
    }

    /// Writes headers and small files, and lets the directory appear.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self, checkpoint: &Checkpoint, options: &Options) -> Result<()> {
        let mut certificate = Some(self.certificate);
        for (file, records) in self.files.into_iter().zip(self.records) {
            file.finish(metadata(self.recipe, records, certificate.take()))?;
        }
        write_small_files(checkpoint, self.plan, options, &self.output)?;
        self.output.finish()
    }
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
    if let Some(origin) = &options.origin {
        output.write(crate::origin::ORIGIN_FILE, origin.text().as_bytes())?;
    }
    if plan.shards > 1 {
        let stored = || plan.tensors.iter().flat_map(|t| t.stored.iter().map(move |s| (t, s)));
        let map: BTreeMap<_, _> = stored().map(|(t, s)| (&s.name, plan.file_name(t.shard))).collect();
        let bytes: usize = stored().map(|(_, s)| s.bytes).sum();
        output.write(INDEX_FILE, &pretty(&json!({"metadata": {"total_size": bytes}, "weight_map": map})))?;
    }
    each_copied(checkpoint.dir(), |name, contents| output.write(name, &contents))
}

/// Reads the files that are copied, within the bounds of such files.
///
/// # Errors
/// Those of `take`; [`Error::Io`], also where one is too long or no regular file.
pub(crate) fn each_copied(dir: &Path, take: impl Fn(&str, Vec<u8>) -> Result<()>) -> Result<()> {
    for name in COPIED_FILES {
        let path = dir.join(name);
        match text_file::read(&path) {
            Ok(contents) => take(name, contents)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io_error(&path)(e)),
        }
    }
    Ok(())
}
