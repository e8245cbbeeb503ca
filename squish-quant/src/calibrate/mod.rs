//! Encoding with calibration: the model runs over a text while it is packed, layer by layer.
//!
//! Two streams of activations go through the network side by side: the original model's, and that of the
//! model as far as it has been packed. At each stage (the linears that share an input) the inputs give the
//! Hessian of the outputs' error ([`crate::hessian`]); the stage's matrices are encoded with error feedback; and the second
//! stream goes on through what was stored. Memory holds the two streams, one stage's Hessians and weights,
//! never the model.
//!
//! The inputs `x'` of a packed model are not those of the original, `x`. So what a matrix should compute is
//! not `W x'`, but what `W x` was, and what it should be rounded from is the least-squares solution of
//!
//! ```text
//! min over W' of sum |W x - W' x'|^2 ,  W' = W + W (sum (x - x') x'^T) H^-1
//! ```
//!
//! (GPTAQ, Li et al. 2025). A layer's last matrix adds to the residual stream, whose own drift `r - r'` it can make up for
//! in the same way: `W' += (sum (r - r') x'^T) H^-1`. Not so where its output is normalised before it is added, as by
//! Gemma 3: what moves the stream by so much is then another sum for each token, and the drift is left alone.

mod inputs;
mod self_text;
pub mod text;

use crate::{
    Error, Result,
    hessian::{DAMPING, Factor, Hessian, accumulate, rotate_both, rotate_rows},
    matrix::{Encoded, MatrixSpec},
    plan::{Action, Plan, TensorPlan},
    resume::Resume,
    source::Source,
    stream::Job,
};
use candle_core::Tensor;
use faer::{Accum, Mat, MatMut, MatRef, Par, linalg::matmul::matmul};
use inputs::{Layer, Tap};
use rayon::prelude::*;
use squish_kernels::Rotation;
use squish_models::{Checkpoint, Device, Model};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// How much of each drift is made up for, and how Hessians are damped.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Share of the mean diagonal that is added to Hessians.
    pub damping: f32,
    /// Share of the inputs' drift.
    pub inputs: f32,
    /// Share of the residual stream's drift.
    pub residual: f32,
}

impl Default for Tuning {
    /// Half of each drift: the sums are of some ten thousand tokens, and all of it fits those too closely
    /// (docs/recipes.md has the measurements).
    fn default() -> Self {
        Self { damping: DAMPING, inputs: 0.5, residual: 0.5 }
    }
}

/// Windows that are run side by side. Each of them holds its layer's activations.
const WINDOWS_AT_ONCE: usize = 8;

/// Rows of a matrix that one thread works on.
const ROWS_AT_ONCE: usize = 64;

/// Encodes every matrix of the plan over the token windows, those that layers multiply by in the order in which they
/// do. Each is handed to `emit`.
///
/// # Errors
/// See [`Error`], and whatever `emit` returns.
pub fn calibrate(
    checkpoint: &mut Checkpoint,
    windows: &[Vec<u32>],
    plan: &Plan,
    resume: &Resume,
    job: &mut Job,
    emit: &mut dyn FnMut(&TensorPlan, Encoded) -> Result<()>,
) -> Result<()> {
    checkpoint.observe(Some(Arc::new(Tap)));
    let original = Model::from_checkpoint(checkpoint, &Device::Cpu)?;
    let layers = Layer::all(original.config().num_hidden_layers);
    // A layer that has run leaves its pages of the file in memory.
    let release = |checkpoint: &Checkpoint, stages: &[Vec<String>]| {
        stages
            .iter()
            .flatten()
            .try_for_each(|name| Source::new(checkpoint, name).map(|source| source.release_all()))
    };
    let mut stages: Vec<Vec<Vec<String>>> = Vec::new();
    for &layer in &layers {
        stages.push(Tap::stages(&original, layer, &windows[0])?);
        release(checkpoint, &stages[stages.len() - 1])?;
    }
    let plans: HashMap<&str, &TensorPlan> = plan.tensors.iter().map(|t| (t.name.as_str(), t)).collect();

    // What no layer multiplies by, embeddings and head, is rounded.
    let multiplied: HashSet<&String> = stages.iter().flatten().flatten().collect();
    for tensor in plan.tensors.iter().filter(|t| !multiplied.contains(&t.name)) {
        let Action::Encode(spec) = &tensor.action else { continue };
        let encoded = match resume.load(&tensor.name, spec) {
            Some(encoded) => encoded,
            None => {
                let encoded = job.encode(&Source::new(checkpoint, &tensor.name)?, spec)?;
                resume.save(&tensor.name, &encoded)?;
                encoded
            }
        };
        checkpoint.replace(&tensor.name, encoded.weight.clone());
        emit(tensor, encoded)?;
    }

    let mut walk = Walk::new(checkpoint, &original, windows)?;
    for (&layer, stages) in layers.iter().zip(&stages) {
        for (s, stage) in stages.iter().enumerate() {
            let planned = stage.iter().filter_map(|name| plans.get(name.as_str()));
            let targets: Vec<Target> = planned.filter_map(|tensor| Target::new(tensor)).collect();
            let last = s + 1 == stages.len();
            let finished: Option<Vec<_>> = targets.iter().map(|t| resume.load(t.name, t.spec)).collect();
            let encoded = match finished {
                Some(encoded) => {
                    walk.skip(layer, last)?;
                    encoded
                }
                None => {
                    let sums = walk.observe(layer, stage, last, job)?;
                    let encoded = walk.encode(&targets, sums)?;
                    for (target, encoded) in targets.iter().zip(&encoded) {
                        resume.save(target.name, encoded)?;
                    }
                    encoded
                }
            };
            for (target, encoded) in targets.iter().zip(encoded) {
                walk.checkpoint.replace(target.name, encoded.weight.clone());
                job.advance(target.spec.rows * target.spec.cols);
                emit(plans[target.name], encoded)?;
            }
            walk.packed = Model::from_checkpoint(walk.checkpoint, &Device::Cpu)?;
        }
        walk.advance(layer)?;
        // The next layers do not need this one again.
        stages.iter().flatten().for_each(|name| walk.checkpoint.restore(name));
        release(walk.checkpoint, stages)?;
    }
    checkpoint.observe(None);
    plan.tensors.iter().for_each(|t| checkpoint.restore(&t.name));
    Ok(())
}

/// A matrix that is to be encoded.
struct Target<'a> {
    name: &'a str,
    spec: &'a MatrixSpec,
}

impl<'a> Target<'a> {
    fn new(tensor: &'a TensorPlan) -> Option<Self> {
        let Action::Encode(spec) = &tensor.action else { return None };
        Some(Self { name: &tensor.name, spec })
    }
}

/// The two streams on their way through the network.
struct Walk<'a> {
    checkpoint: &'a mut Checkpoint,
    original: &'a Model,
    packed: Model,
    tuning: Tuning,
    /// `[window, hidden_size]` for each window: inputs of the next layer in the original model,
    original_stream: Vec<Tensor>,
    /// what they become there,
    original_next: Vec<Tensor>,
    /// and inputs of the next layer in the packed model.
    packed_stream: Vec<Tensor>,
}

/// What the inputs of a stage say.
#[derive(Clone)]
struct Sums {
    hessian: Hessian,
    /// `sum (x - x') x'^T [cols, cols]`.
    drift: Option<Mat<f32>>,
    /// `sum (r - r') x'^T [hidden_size, cols]`.
    residual: Option<Mat<f32>>,
}

impl<'a> Walk<'a> {
    fn new(checkpoint: &'a mut Checkpoint, original: &'a Model, windows: &[Vec<u32>]) -> Result<Self> {
        let tuning = Tuning::default();
        let packed = Model::from_checkpoint(checkpoint, &Device::Cpu)?;
        let embed = |model: &Model| -> Result<Vec<Tensor>> {
            windows.iter().map(|ids| Ok(model.layers().embed(ids)?)).collect()
        };
        let (original_stream, packed_stream) = (embed(original)?, embed(&packed)?);
        let original_next = original_stream.clone();
        Ok(Self { checkpoint, original, packed, tuning, original_stream, original_next, packed_stream })
    }

    /// Goes past a stage whose matrices are finished.
    fn skip(&mut self, layer: Layer, last: bool) -> Result<()> {
        if last {
            self.original_next = run_all(layer, self.original, &self.original_stream)?;
        }
        Ok(())
    }

    /// Sums up the inputs of a stage in both streams. Through the last stage of a layer, the original stream is
    /// run to its end.
    fn observe(&mut self, layer: Layer, stage: &[String], last: bool, job: &Job) -> Result<Sums> {
        let mut sums: Option<Sums> = None;
        let adds = last && self.original.layers().adds_plainly();
        let windows: Vec<usize> = (0..self.packed_stream.len()).collect();
        for group in windows.chunks(WINDOWS_AT_ONCE) {
            job.at(&stage[0])?;
            let seen: Vec<Seen> =
                group.par_iter().map(|&w| self.see(layer, &stage[0], w, last)).collect::<Result<_>>()?;
            // Summed in order: the result does not depend on the threads.
            for (&w, seen) in group.iter().zip(seen) {
                let cols = seen.packed.dim(1)?;
                let x = values(&seen.packed)?;
                let sums = sums.get_or_insert_with(|| Sums::new(cols, self.hidden_size(), adds, self.tuning));
                sums.hessian.add(&x);
                if let Some(drift) = &mut sums.drift {
                    accumulate(drift, &difference(&values(&seen.original)?, &x), &x);
                }
                if let Some(residual) = &mut sums.residual {
                    let (r, packed) = (values(&self.original_stream[w])?, values(&self.packed_stream[w])?);
                    accumulate(residual, &difference(&r, &packed), &x);
                }
                if let Some(next) = seen.next {
                    self.original_next[w] = next;
                }
            }
        }
        Ok(sums.unwrap_or_else(|| Sums::new(1, 1, false, self.tuning)))
    }

    /// The input of a linear in both streams, in one window.
    fn see(&self, layer: Layer, linear: &str, w: usize, last: bool) -> Result<Seen> {
        let packed = Tap::catch(linear, || layer.run(&self.packed, &self.packed_stream[w]))?;
        let run = || layer.run(self.original, &self.original_stream[w]);
        let (original, next) = if last {
            let (found, next) = Tap::watch(linear, run)?;
            (found, Some(next))
        } else {
            (Tap::catch(linear, run)?, None)
        };
        Ok(Seen { packed, original, next })
    }

    fn hidden_size(&self) -> usize {
        self.original.config().hidden_size
    }

    /// Encodes the matrices of a stage.
    fn encode(&self, targets: &[Target], sums: Sums) -> Result<Vec<Encoded>> {
        let mut encoded = Vec::new();
        let mut sums = Some(sums);
        let mut frame: Option<(Option<Arc<Rotation>>, Frame)> = None;
        for (i, &Target { name, spec }) in targets.iter().enumerate() {
            if frame.as_ref().is_none_or(|(rotation, _)| *rotation != spec.rotation) {
                // Linears of one input nearly always share its rotation: then the sums need not be copied.
                let again = targets[i..].iter().any(|t| t.spec.rotation != spec.rotation);
                let taken = if again { sums.clone() } else { sums.take() };
                let Some(taken) = taken else { continue };
                let factored = taken.factor(spec.rotation.as_deref(), self.tuning);
                let factored = factored.ok_or_else(|| Error::NoInputs { name: name.into() })?;
                frame = Some((spec.rotation.clone(), factored));
            }
            let Some((_, frame)) = &frame else { continue };
            let source = Source::new(self.checkpoint, name)?;
            let matrix = source.matrix()?;
            let mut weights = source.rows(&matrix, 0, matrix.rows())?;
            source.release(&matrix, 0, matrix.rows());
            if let Some(rotation) = &spec.rotation {
                weights.par_chunks_mut(spec.cols).for_each(|row| rotation.apply(row));
            }
            let wanted = frame.retarget(&weights, self.tuning);
            let result = spec.encode_calibrated(&weights, wanted, &frame.factor);
            let result = result.map_err(|e| source.error(e))?;
            if !result.cost.is_finite() {
                // Some scale was infinite: the rows that decode to no finite numbers tell which.
                weights
                    .par_chunks_mut(spec.cols)
                    .enumerate()
                    .for_each(|(r, row)| result.weight.rotated_row(r, row));
                return Err(source.overflow(&weights, 0, spec.cols)?);
            }
            encoded.push(result);
        }
        Ok(encoded)
    }

    /// Runs the packed stream through a finished layer.
    fn advance(&mut self, layer: Layer) -> Result<()> {
        self.packed_stream = run_all(layer, &self.packed, &self.packed_stream)?;
        std::mem::swap(&mut self.original_stream, &mut self.original_next);
        Ok(())
    }
}

/// A stage's sums in the frame of a rotation, the Hessian factored.
struct Frame {
    factor: Factor,
    drift: Option<Mat<f32>>,
    residual: Option<Mat<f32>>,
}

/// The input of a stage in one window, in the packed and in the original stream, and what the original layer makes of it.
struct Seen {
    packed: Tensor,
    original: Tensor,
    next: Option<Tensor>,
}

impl Sums {
    /// None yet; `adds` where the stage's matrix adds to the residual stream.
    fn new(cols: usize, hidden_size: usize, adds: bool, tuning: Tuning) -> Self {
        Self {
            hessian: Hessian::new(cols),
            drift: (tuning.inputs > 0.0).then(|| Mat::zeros(cols, cols)),
            residual: (adds && tuning.residual > 0.0).then(|| Mat::zeros(hidden_size, cols)),
        }
    }

    /// The sums in the frame of a rotation; `None` where the inputs were no finite numbers, or all zero.
    fn factor(mut self, rotation: Option<&Rotation>, tuning: Tuning) -> Option<Frame> {
        if let Some(rotation) = rotation {
            self.hessian.rotate(rotation);
            self.drift.iter_mut().for_each(|drift| rotate_both(drift, rotation));
            self.residual.iter_mut().for_each(|residual| rotate_rows(residual, rotation));
        }
        let factor = self.hessian.factor(tuning.damping)?;
        Some(Frame { factor, drift: self.drift, residual: self.residual })
    }
}

impl Frame {
    /// What the matrix should be rounded from.
    fn retarget(&self, weights: &[f32], tuning: Tuning) -> Vec<f32> {
        let cols = self.factor.v().nrows();
        let rows = weights.len() / cols;
        let mut shift = vec![0.0; weights.len()];
        if let Some(drift) = &self.drift {
            let out = shift.par_chunks_mut(ROWS_AT_ONCE * cols);
            out.zip(weights.par_chunks(ROWS_AT_ONCE * cols)).for_each(|(out, weights)| {
                let rows = weights.len() / cols;
                let weights = MatRef::from_row_major_slice(weights, rows, cols);
                let out = MatMut::from_row_major_slice_mut(out, rows, cols);
                matmul(out, Accum::Replace, weights, drift, tuning.inputs, Par::Seq);
            });
        }
        if let Some(residual) = self.residual.as_ref().filter(|r| r.nrows() == rows) {
            for (r, row) in shift.chunks_mut(cols).enumerate() {
                row.iter_mut().enumerate().for_each(|(c, v)| *v += tuning.residual * residual[(r, c)]);
            }
        }
        self.factor.solve(&mut shift);
        shift.iter_mut().zip(weights).for_each(|(s, w)| *s += w);
        shift
    }
}

/// A stream through a layer, all windows side by side.
fn run_all(layer: Layer, model: &Model, stream: &[Tensor]) -> Result<Vec<Tensor>> {
    stream.par_iter().map(|x| Ok(layer.run(model, x)?)).collect()
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn values(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.flatten_all()?.to_vec1()?)
}
