//! Rotary position embedding (Su et al., "RoFormer", 2021), half-split as in Hugging Face's models.

use super::rows_of;
use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape};
use rayon::prelude::*;
#[cfg(feature = "metal")]
use {
    crate::metal::{self, device},
    candle_core::{MetalStorage, backend::BackendStorage},
};

/// Values from which on several threads are worth waking.
const MANY: usize = 1 << 15;

/// `x [heads, n, head_dim]` and `cos`, `sin [n, head_dim / 2] -> [heads, n, head_dim]`, all f32: with `(a, b)` dimensions `i` and
/// `i + head_dim / 2` of a head at position `p`,
///
/// ```text
/// (a, b) <- (a cos[p, i] - b sin[p, i], a sin[p, i] + b cos[p, i])
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Rope;

impl CustomOp3 for Rope {
    fn name(&self) -> &'static str {
        "squish-rope"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [_, n, head_dim] = self.check(x_layout, cos_layout, sin_layout)?;
        let half = head_dim / 2;
        let (x, positions) = rows_of(self.name(), x, x_layout, head_dim)?;
        let (cos, _) = rows_of(self.name(), cos, cos_layout, half)?;
        let (sin, _) = rows_of(self.name(), sin, sin_layout, half)?;
        let mut y = vec![0.0; positions * head_dim];
        let turn = |(p, (y, x)): (usize, (&mut [f32], &[f32]))| {
            let at = p % n * half..(p % n + 1) * half;
            let ((low, high), (a, b)) = (y.split_at_mut(half), x.split_at(half));
            let values = low.iter_mut().zip(high).zip(a.iter().zip(b));
            for (((low, high), (a, b)), (cos, sin)) in values.zip(cos[at.clone()].iter().zip(&sin[at])) {
                (*low, *high) = (a * cos - b * sin, a * sin + b * cos);
            }
        };
        if y.len() < MANY {
            y.chunks_mut(head_dim).zip(x.chunks(head_dim)).enumerate().for_each(turn);
        } else {
            y.par_chunks_mut(head_dim).zip(x.par_chunks(head_dim)).enumerate().for_each(turn);
        }
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(
        &self,
        x: &MetalStorage,
        x_layout: &Layout,
        cos: &MetalStorage,
        cos_layout: &Layout,
        sin: &MetalStorage,
        sin_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let dims = self.check(x_layout, cos_layout, sin_layout)?;
        let rows = |storage: &MetalStorage, layout, cols| {
            super::rows_in(self.name(), storage.dtype(), layout, cols).map(|(range, _)| range)
        };
        let (from, half) = (rows(x, x_layout, dims[2])?, dims[2] / 2);
        let (cosines, sines) = (rows(cos, cos_layout, half)?, rows(sin, sin_layout, half)?);
        let inputs = [(x, from.start), (cos, cosines.start), (sin, sines.start)];
        let y = device::run(self.name(), x.device(), &[metal::rope(dims)], None, &inputs, from.len())?;
        Ok((y, x_layout.shape().clone()))
    }
}

impl Rope {
    /// `[heads, n, head_dim]`, where table and heads fit each other.
    fn check(&self, x: &Layout, cos: &Layout, sin: &Layout) -> Result<[usize; 3]> {
        match (x.dims(), cos.dims(), sin.dims()) {
            (&[heads, n, head_dim], cos, sin)
                if head_dim > 0 && head_dim.is_multiple_of(2) && cos == [n, head_dim / 2] && sin == cos =>
            {
                Ok([heads, n, head_dim])
            }
            (x, cos, sin) => {
                Err(Error::Msg(format!("{}: {x:?}, {cos:?} and {sin:?} do not fit", self.name())).bt())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};

    fn random(dims: &[usize], seed: u32) -> Tensor {
        let count = dims.iter().product::<usize>() as u32;
        let values: Vec<f32> =
            (0..count).map(|i| ((i + seed).wrapping_mul(2654435761) >> 8) as f32 / 1e7).collect();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    }

    #[test]
    fn equals_the_definition() {
        for (heads, n, half) in [(1, 1, 1), (3, 1, 32), (2, 5, 8), (7, 90, 32)] {
            let (x, cos, sin) =
                (random(&[heads, n, 2 * half], 1), random(&[n, half], 2), random(&[n, half], 3));
            let y = x.apply_op3(&cos, &sin, Rope).unwrap();
            let [y, x] = [y, x].map(|t| t.to_vec3::<f32>().unwrap());
            let [cos, sin] = [cos, sin].map(|t| t.to_vec2::<f32>().unwrap());
            for h in 0..heads {
                for p in 0..n {
                    for i in 0..half {
                        let (a, b) = (x[h][p][i], x[h][p][i + half]);
                        assert!((y[h][p][i] - (a * cos[p][i] - b * sin[p][i])).abs() < 1e-4);
                        assert!((y[h][p][i + half] - (a * sin[p][i] + b * cos[p][i])).abs() < 1e-4);
                    }
                }
            }
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let (x, table) = (random(&[2, 3, 8], 1), random(&[3, 4], 2));
        assert!(x.apply_op3(&table, &table, Rope).is_ok());
        for (x, cos, sin) in [
            (random(&[2, 3, 7], 1), table.clone(), table.clone()),
            (x.clone(), random(&[2, 4], 1), random(&[2, 4], 1)),
            (x.clone(), table.clone(), random(&[3, 3], 1)),
            (x.to_dtype(DType::F64).unwrap(), table.clone(), table.clone()),
        ] {
            let error = x.apply_op3(&cos, &sin, Rope).unwrap_err().to_string();
            assert!(error.contains("squish-rope"), "{error}");
        }
    }
}
