//! Root-mean-square norm of the residual stream (Zhang and Sennrich, 2019), with what a layer adds to it, and rotated for the
//! matrices that follow.

use super::{FloatsOf, rows_of};
use crate::Rotation;
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor};
use pulp::Arch;
use rayon::prelude::*;
use std::sync::Arc;
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{MetalStorage, backend::BackendStorage},
};

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
        "squish-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let cols = self.check(layout)?;
        let (x, rows) = rows_of(self.name(), storage, layout, cols)?;
        let factor = FloatsOf::new(self.scale.factor);
        let factor = factor.get(self.name(), cols)?;
        let rotate = |y: &mut [f32]| match &self.rotation {
            Some(rotation) if rows == 1 => rotation.apply_together(y),
            Some(rotation) => rotation.apply(y),
            None => {}
        };
        let Some((added, after)) = &self.added else {
            let mut y = x.to_vec();
            for_each_row(&mut y, cols, |_, y| {
                scale(y, factor, self.scale.eps);
                rotate(y);
            });
            return Ok((CpuStorage::F32(y), layout.shape().clone()));
        };
        let added = FloatsOf::new(added);
        let added = added.get(self.name(), x.len())?;
        let after_factor = after.map(|after| FloatsOf::new(after.factor));
        let after = match (after, &after_factor) {
            (Some(after), Some(factor)) => Some((factor.get(self.name(), cols)?, after.eps)),
            _ => None,
        };
        let mut y = vec![0.0; 2 * x.len()];
        let (normed, sums) = y.split_at_mut(x.len());
        let work = |i: usize, normed: &mut [f32], sum: &mut [f32]| {
            let at = i * cols..(i + 1) * cols;
            sum.copy_from_slice(&added[at.clone()]);
            if let Some((factor, eps)) = after {
                scale(sum, factor, eps);
            }
            sum.iter_mut().zip(&x[at]).for_each(|(sum, x)| *sum += x);
            normed.copy_from_slice(sum);
            scale(normed, factor, self.scale.eps);
            rotate(normed);
        };
        if rows < MANY {
            let rows = normed.chunks_mut(cols).zip(sums.chunks_mut(cols)).enumerate();
            rows.for_each(|(i, (normed, sum))| work(i, normed, sum));
        } else {
            let rows = normed.par_chunks_mut(cols).zip(sums.par_chunks_mut(cols)).enumerate();
            rows.for_each(|(i, (normed, sum))| work(i, normed, sum));
        }
        Ok((CpuStorage::F32(y), self.shape(layout)))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let cols = self.check(layout)?;
        let (x, rows) = super::rows_in(self.name(), storage.dtype(), layout, cols)?;
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
            inputs.push(held.on_metal(self.name(), *count)?);
        }
        let launches = metal::norm(cols, rows, sum, self.scale.eps, self.rotation.as_deref());
        let shape = self.shape(layout);
        let y = device::run(self.name(), storage.device(), &launches, &[], &inputs, shape.elem_count())?;
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
        let message = format!("{}: the rotation is not for rows of {:?}", self.name(), layout.dims());
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
    Arch::new().dispatch(
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
