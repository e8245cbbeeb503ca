//! Compression of an original whose weights files arrive one after the other: each is encoded into the output and let go of before the
//! next is asked for, so that the disk holds the largest of them and the result.
//!
//! ```text
//! WORK/key             what the work is: another original, recipe or tool begins anew
//!      output/         the output so far, weights files at their full length
//!      done/FILE.json  for each weights file whose tensors are in the output and on the disk: their records
//! ```

use crate::{
    Error, Options, Progress, Report, Result,
    assembly::Assembly,
    certificate::{hash_file, hash_files},
    compress::{examine, resume_key},
    inspect,
    output::{OutputDir, check_space, io_error},
    plan::{Plan, TensorPlan},
    source::Source,
    stream::Job,
};
use serde::{Deserialize, Serialize};
use squish_models::{
    Checkpoint,
    checkpoint::{Certificate, Shard, TensorRecord},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// An original of which the weights files come when they are asked for.
pub trait Arrivals {
    /// A checkpoint directory with everything but the weights: of the weights files, headers and lengths.
    fn outline(&self) -> &Path;

    /// SHA-256 of a weights file, where that is known before it comes.
    fn sha256(&self, file: &str) -> Option<String>;

    /// Bytes of a weights file that are not on the disk yet.
    fn missing(&self, file: &str) -> u64;

    /// Brings a weights file.
    ///
    /// # Errors
    /// When it does not come.
    fn bring(&self, file: &str) -> Result<PathBuf>;

    /// Lets go of a weights file, if it is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn discard(&self, file: &str) -> Result<()>;
}

/// What is kept of a weights file that is in the output.
#[derive(Serialize, Deserialize)]
struct Done {
    sha256: String,
    records: BTreeMap<String, TensorRecord>,
}

/// Compresses an original as it arrives into `out`, by way of the directory `work` on the same disk, where an interrupted call is
/// taken up. The output is, byte for byte, that of [`compress`](crate::compress()) for the same original.
///
/// # Errors
/// Those of [`compress`](crate::compress()) and of [`Arrivals::bring`]; [`Error::Parameter`] where the options ask for calibration, for which
/// the whole model has to be there; [`Error::Arrival`] when a file is not what its header said.
pub fn compress_arriving(
    arrivals: &dyn Arrivals,
    out: &Path,
    work: &Path,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report> {
    let start = Instant::now();
    if options.calibration.is_some() || options.target.is_some() {
        let value = options.recipe.name.clone();
        return Err(Error::Parameter { name: "the recipe", value, expected: "one without calibration" });
    }
    let (checkpoint, _) = examine(arrivals.outline(), options)?;
    let plan = Plan::new(&checkpoint, &options.recipe, options.max_shard_bytes)?;
    let files = by_file(&checkpoint, &plan)?;

    let hashed = |sha256: &dyn Fn(&str) -> Option<String>| -> Result<_> {
        let config = hash_file(&checkpoint.config_path())?;
        let weights = files.keys().map(|file| (sha256(file).unwrap_or("0".repeat(64)), file.clone()));
        Ok(hash_files(checkpoint.dir(), std::iter::once((config.sha256, config.name)).chain(weights)))
    };
    let certificate = Certificate {
        command: options.command.clone(),
        original: Some(hashed(&|file| arrivals.sha256(file))?),
        ..Certificate::new(plan.parameters as u64, 0)
    };
    // Whatever decides where in the output a tensor lies is part of the work.
    let key = (resume_key(&options.recipe, &certificate), &options.command, options.max_shard_bytes);
    let journal = Journal::open(work, &format!("{key:?}"))?;
    let done: BTreeMap<&String, Done> =
        files.keys().filter_map(|file| Some((file, journal.load(file)?))).collect();
    let place = |_| {
        let left = || files.iter().filter(|(file, _)| !done.contains_key(file));
        let stored = left().flat_map(|(_, tensors)| tensors.iter().flat_map(|tensor| &tensor.stored));
        let result: usize = stored.map(|stored| stored.bytes).sum();
        let largest = left().map(|(file, _)| arrivals.missing(file)).max().unwrap_or(0);
        let available = fs4::available_space(work).map_err(io_error(work))?;
        check_space(work, result as u64 + largest, available)?;
        OutputDir::resume(out, &work.join("output"))
    };
    let mut assembly = Assembly::new(&plan, &options.recipe, certificate, place)?;
    let mut job = Job::new(progress, plan.parameters);
    let mut hashes = BTreeMap::new();
    for (file, tensors) in &files {
        if let Some(done) = done.get(file) {
            for tensor in tensors {
                job.advance(checkpoint.entry(&tensor.name)?.1.shape.iter().product());
                if let Some(record) = done.records.get(&tensor.name) {
                    assembly.restore(tensor, record.clone());
                }
            }
            hashes.insert(file.clone(), done.sha256.clone());
        } else {
            let mut encode = || -> Result<Done> {
                job.at(file)?;
                let path = arrivals.bring(file)?;
                let sha256 = match arrivals.sha256(file) {
                    Some(sha256) => sha256,
                    None => hash_file(&path)?.sha256,
                };
                add_file(&checkpoint, &path, tensors, &mut assembly, &mut job)?;
                assembly.sync()?;
                let record =
                    |tensor: &&TensorPlan| Some((tensor.name.clone(), assembly.record(tensor)?.clone()));
                Ok(Done { sha256, records: tensors.iter().filter_map(record).collect() })
            };
            let finished = encode().map_err(|e| journal.paused(e))?;
            journal.save(file, &finished)?;
            hashes.insert(file.clone(), finished.sha256);
        }
        arrivals.discard(file)?;
    }
    assembly.certificate.original = Some(hashed(&|file| hashes.get(file).cloned())?);
    assembly.finish(&checkpoint, options)?;
    let inspection = inspect(out)?;
    Ok(Report { inspection, memory: None, notes: plan.notes, seconds: start.elapsed().as_secs_f64() })
}

/// The tensors of the plan by the weights file that holds them, in the files' order.
fn by_file<'a>(checkpoint: &Checkpoint, plan: &'a Plan) -> Result<BTreeMap<String, Vec<&'a TensorPlan>>> {
    let name = |shard: &Shard| shard.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut files: BTreeMap<_, _> =
        checkpoint.shards().iter().map(|shard| (name(shard), Vec::new())).collect();
    for tensor in &plan.tensors {
        let (shard, _) = checkpoint.entry(&tensor.name)?;
        files.entry(name(shard)).or_default().push(tensor);
    }
    Ok(files)
}

/// Takes up the tensors of a weights file that has arrived.
fn add_file(
    checkpoint: &Checkpoint,
    path: &Path,
    tensors: &[&TensorPlan],
    assembly: &mut Assembly,
    job: &mut Job,
) -> Result<()> {
    let shard = Shard::open(path)?;
    let entries = shard.entries();
    for tensor in tensors {
        let (_, planned) = checkpoint.entry(&tensor.name)?;
        // The header came before, by a request of its own, and without a digest.
        let entry = entries.get(&tensor.name).filter(|entry| {
            entry.dtype == planned.dtype && entry.shape == planned.shape && entry.range == planned.range
        });
        let entry = entry.ok_or_else(|| Error::Arrival { path: path.into(), name: tensor.name.clone() })?;
        assembly.add(tensor, &Source { shard: &shard, entry, name: &tensor.name }, job)?;
    }
    Ok(())
}

/// What an interrupted call has finished.
struct Journal {
    work: PathBuf,
}

impl Journal {
    /// Opens the directory; what it holds of other work is removed.
    fn open(work: &Path, key: &str) -> Result<Self> {
        let journal = Self { work: work.into() };
        let path = work.join("key");
        if fs::read_to_string(&path).is_ok_and(|found| found == key) {
            return Ok(journal);
        }
        for old in [work.join("output"), work.join("done")] {
            if old.exists() {
                fs::remove_dir_all(&old).map_err(io_error(&old))?;
            }
        }
        let done = work.join("done");
        fs::create_dir_all(&done).map_err(io_error(&done))?;
        write(&path, key.as_bytes())?;
        Ok(journal)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.work.join("done").join(format!("{file}.json"))
    }

    /// What is kept of a file; `None` where it is not in the output yet.
    fn load(&self, file: &str) -> Option<Done> {
        serde_json::from_slice(&fs::read(self.path(file)).ok()?).ok()
    }

    /// Notes that a file's tensors are on the disk.
    fn save(&self, file: &str, done: &Done) -> Result<()> {
        let text = serde_json::to_vec(done).expect("a record has string keys and finite numbers");
        write(&self.path(file), &text)
    }

    /// The error of a compression that stopped: where it was interrupted, how to go on.
    fn paused(&self, error: Error) -> Error {
        match error {
            Error::Interrupted | Error::Hub(squish_hub::Error::Cancelled) => {
                Error::Paused { dir: self.work.clone() }
            }
            other => other,
        }
    }
}

/// Writes a small file that is there as a whole or not at all.
fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    let write = || {
        use std::io::Write;
        let mut file = fs::File::create(&partial)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(io_error(path))
}
