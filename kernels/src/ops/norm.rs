//! Root-mean-square norm of the residual stream (Zhang and Sennrich, 2019), with what a layer adds to it, and rotated for the
//! matrices that follow.

use super::{FloatsOf, rows_of};
use crate::{Rotation, arch::vectorized};
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{MetalStorage, backend::BackendStorage},
};

const NAME: &str = "squish-norm";

/// Rows from which on several threads are worth waking.
const MANY: usize = 4;

/// `v / sqrt(mean(v^2) + eps) * factor`.
#[derive(Debug, Clone, Copy)]
pub struct RmsScale<'a> {
    /// `[cols]` f32.
    pub factor: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

/// `x [.., cols]` f32 to its norm `n`, rotated where there is a rotation, of the same shape; or, where something is added, to
/// `[2, .., cols]`: `n` of the sum, and the sum.
///
/// ```text
/// s = x + added     or     x + norm(added)
/// n = H D (s / sqrt(mean(s^2) + eps) * factor)
/// ```
#[derive(Debug, Clone)]
pub struct Norm<'a> {
    /// The norm.
    pub scale: RmsScale<'a>,
    /// What is added to `x` before, of its shape, and that value's own norm, if it has one.
    pub added: Option<(&'a Tensor, Option<RmsScale<'a>>)>,
    /// The rotation behind the norm.
    pub rotation: Option<Arc<Rotation>>,
}

impl CustomOp1 for Norm<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let cols = self.check(layout)?;
        let (x, rows) = rows_of(NAME, storage, layout, cols)?;
        let factor = FloatsOf::new(self.scale.factor);
        let after = self.added.and_then(|(_, after)| after);
        let after_factor = after.map(|after| FloatsOf::new(after.factor));
        let row = Row {
            scale: (factor.get(NAME, cols)?, self.scale.eps),
            added: match (&self.added, after, &after_factor) {
                (None, ..) => Added::Nothing,
                (Some(_), Some(after), Some(factor)) => Added::Normed((factor.get(NAME, cols)?, after.eps)),
                (Some(_), ..) => Added::AsItIs,
            },
            rotation: self.rotation.as_deref(),
            several_threads: rows == 1,
        };
        let Some((added, _)) = self.added else {
            let mut y = vec![0.0; x.len()];
            // Nothing is added to the stream, so that it is not written to.
            for_each_row(&mut y, cols, |i, y| {
                y.copy_from_slice(&x[i * cols..][..cols]);
                row.finish(y);
            });
            return Ok((CpuStorage::F32(y), layout.shape().clone()));
        };
        let added = FloatsOf::new(added);
        let added = added.get(NAME, x.len())?;
        let mut y = Vec::with_capacity(2 * x.len());
        y.extend_from_slice(added);
        y.extend_from_slice(x);
        let (normed, sums) = y.split_at_mut(x.len());
        if rows < MANY {
            normed.chunks_mut(cols).zip(sums.chunks_mut(cols)).for_each(|(y, stream)| row.apply(stream, y));
        } else {
            let rows = normed.par_chunks_mut(cols).zip(sums.par_chunks_mut(cols));
            rows.for_each(|(y, stream)| row.apply(stream, y));
        }
        Ok((CpuStorage::F32(y), self.shape(layout)))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let cols = self.check(layout)?;
        let (x, rows) = super::rows_in(NAME, storage.dtype(), layout, cols)?;
        let sum = match &self.added {
            None => metal::Sum::Nothing,
            Some((_, None)) => metal::Sum::Added,
            Some((_, Some(after))) => metal::Sum::Normed { eps: after.eps },
        };
        let mut operands = vec![(self.scale.factor, cols)];
        if let Some((added, after)) = &self.added {
            operands.push((*added, x.len()));
            operands.extend(after.map(|after| (after.factor, cols)));
        }
        let held: Vec<_> = operands.iter().map(|(tensor, _)| FloatsOf::new(tensor)).collect();
        let mut inputs = vec![(storage, x.start)];
        for (held, (_, count)) in held.iter().zip(&operands) {
            inputs.push(held.on_metal(NAME, *count)?);
        }
        let launches = metal::norm(cols, rows, sum, self.scale.eps, self.rotation.as_deref());
        let shape = self.shape(layout);
        let y = device::run(NAME, storage.device(), &launches, &[], &inputs, shape.elem_count())?;
        Ok((y, shape))
    }
}

impl Norm<'_> {
    /// The columns of an input that the rotation fits.
    fn check(&self, layout: &Layout) -> Result<usize> {
        let cols = layout.dims().last().copied().unwrap_or(0);
        if cols > 0 && self.rotation.as_ref().is_none_or(|rotation| rotation.cols() == cols) {
            return Ok(cols);
        }
        let message = format!("{NAME}: the rotation is not for rows of {:?}", layout.dims());
        Err(Error::Msg(message).bt())
    }

    /// The output's shape.
    fn shape(&self, layout: &Layout) -> Shape {
        let mut dims = layout.dims().to_vec();
        if self.added.is_some() {
            dims.insert(0, 2);
        }
        dims.into()
    }
}

/// What a layer has left to be added to the residual stream.
#[derive(Debug, Clone, Copy)]
pub enum Added<N> {
    /// Nothing.
    Nothing,
    /// Its output as it is.
    AsItIs,
    /// Its output under this norm.
    Normed(N),
}

/// [`Norm`] of a single row on the CPU, in place: `y`, what a layer has left, is added to the `stream` first, and is the norm of the
/// sum afterwards.
///
/// # Errors
/// When `y`, a scale or the rotation is of another size than the stream.
pub fn norm_in_place(
    stream: &mut [f32],
    y: &mut [f32],
    added: Added<RmsScale>,
    scale: RmsScale,
    rotation: Option<&Rotation>,
) -> Result<()> {
    let cols = stream.len();
    if y.len() != cols || rotation.is_some_and(|rotation| rotation.cols() != cols) {
        let message = format!("{NAME}: the rotation or a row of {} is not for one of {cols}", y.len());
        return Err(Error::Msg(message).bt());
    }
    let factor = FloatsOf::new(scale.factor);
    let after;
    let added = match added {
        Added::Nothing => Added::Nothing,
        Added::AsItIs => Added::AsItIs,
        Added::Normed(scale) => {
            after = FloatsOf::new(scale.factor);
            Added::Normed((after.get(NAME, cols)?, scale.eps))
        }
    };
    Row { scale: (factor.get(NAME, cols)?, scale.eps), added, rotation, several_threads: true }
        .apply(stream, y);
    Ok(())
}

/// What is done to a row.
struct Row<'a> {
    /// The factor, and what is added to the mean square.
    scale: (&'a [f32], f32),
    added: Added<(&'a [f32], f32)>,
    rotation: Option<&'a Rotation>,
    /// Whether several threads may work on it.
    several_threads: bool,
}

impl Row<'_> {
    /// Adds `y` to the stream and makes it the norm of that.
    fn apply(&self, stream: &mut [f32], y: &mut [f32]) {
        if let Added::Normed((factor, eps)) = self.added {
            scale(y, factor, eps);
        }
        if !matches!(self.added, Added::Nothing) {
            stream.iter_mut().zip(&*y).for_each(|(x, y)| *x += y);
        }
        y.copy_from_slice(stream);
        self.finish(y);
    }

    /// Makes `y` its own norm.
    fn finish(&self, y: &mut [f32]) {
        scale(y, self.scale.0, self.scale.1);
        match self.rotation {
            Some(rotation) if self.several_threads => rotation.apply_together(y),
            Some(rotation) => rotation.apply(y),
            None => {}
        }
    }
}

fn for_each_row(y: &mut [f32], cols: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if y.len() < MANY * cols {
        y.chunks_mut(cols).enumerate().for_each(|(i, y)| work(i, y));
    } else {
        y.par_chunks_mut(cols).enumerate().for_each(|(i, y)| work(i, y));
    }
}

/// `v / sqrt(mean(v^2) + eps) * factor`, in place.
pub(super) fn scale(v: &mut [f32], factor: &[f32], eps: f32) {
    /// Sums that are added up in the end: as many as the widest vectors have lanes.
    const LANES: usize = 16;
    vectorized(
        #[inline(always)]
        || {
            let (chunks, rest) = v.as_chunks::<LANES>();
            let mut sums = [0.0f32; LANES];
            for chunk in chunks {
                sums.iter_mut().zip(chunk).for_each(|(sum, v)| *sum += v * v);
            }
            rest.iter().zip(&mut sums).for_each(|(v, sum)| *sum += v * v);
            let mean = sums.iter().sum::<f32>() / v.len() as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            v.iter_mut().zip(factor).for_each(|(v, factor)| *v = *v * scale * factor);
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(rows: usize, cols: usize) -> Tensor {
        Tensor::randn(0f32, 1.0, (rows, cols), &Device::Cpu).unwrap()
    }

    fn normalised(x: &[f32], factor: &[f32], eps: f32) -> Vec<f64> {
        let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        x.iter().zip(factor).map(|(&v, &f)| f64::from(v) * scale * f64::from(f)).collect()
    }

    #[test]
    fn equals_the_definition() {
        for (rows, cols) in [(1, 7), (1, 64), (2, 100), (9, 192)] {
            let (x, y) = (random(rows, cols), random(rows, cols));
            let [a, b] = [0, 1].map(|_| random(1, cols).squeeze(0).unwrap());
            let (norm, after) = (RmsScale { factor: &a, eps: 1e-6 }, RmsScale { factor: &b, eps: 1e-3 });
            let rotation = (cols % 64 == 0).then(|| Arc::new(Rotation::new(cols, 64, 3).unwrap()));
            for added in [None, Some((&y, None)), Some((&y, Some(after)))] {
                let op = Norm { scale: norm, added, rotation: rotation.clone() };
                let found = x.apply_op1_no_bwd(&op).unwrap();
                let (xs, ys) = (x.to_vec2::<f32>().unwrap(), y.to_vec2::<f32>().unwrap());
                let found = match added {
                    Some(_) => found.to_vec3::<f32>().unwrap(),
                    None => vec![found.to_vec2::<f32>().unwrap(), xs.clone()],
                };
                let [a, b] = [&a, &b].map(|t| t.to_vec1::<f32>().unwrap());
                for i in 0..rows {
                    let sum: Vec<f32> = match added {
                        None => xs[i].clone(),
                        Some((_, None)) => xs[i].iter().zip(&ys[i]).map(|(x, y)| x + y).collect(),
                        Some((_, Some(_))) => {
                            let normed = normalised(&ys[i], &b, 1e-3);
                            xs[i].iter().zip(normed).map(|(x, y)| (f64::from(*x) + y) as f32).collect()
                        }
                    };
                    let mut expected: Vec<f32> =
                        normalised(&sum, &a, 1e-6).iter().map(|v| *v as f32).collect();
                    if let Some(rotation) = &rotation {
                        rotation.apply(&mut expected);
                    }
                    let near = |a: &[f32], b: &[f32]| {
                        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + a.abs()))
                    };
                    assert!(near(&found[0][i], &expected), "{rows} {cols} {added:?}");
                    assert!(near(&found[1][i], &sum), "{rows} {cols}");
                }
            }
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let (x, factor) = (random(2, 64), random(1, 32));
        let op = |factor, added, cols| Norm {
            scale: RmsScale { factor, eps: 1e-6 },
            added,
            rotation: Some(Arc::new(Rotation::new(cols, 32, 1).unwrap())),
        };
        let good = random(1, 64);
        assert!(x.apply_op1_no_bwd(&op(&good, None, 64)).is_ok());
        for op in [op(&factor, None, 64), op(&good, None, 32), op(&good, Some((&factor, None)), 64)] {
            let error = x.apply_op1_no_bwd(&op).unwrap_err().to_string();
            assert!(error.contains("squish-norm"), "{error}");
        }
    }
}
