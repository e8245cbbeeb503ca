//! `y = x W^T` for a batch of inputs in eight bits: panels of levels, each decoded once and multiplied by all inputs.

use super::{rows_of, with_last_dim};
use crate::{
    Packed, QuantizedBatch,
    arch::{
        self, LevelPanel, PanelKernels,
        level_panel::{COLS, ROWS},
    },
    disjoint::Disjoint,
    quantized_input::GROUP,
    scheme::Integers,
};
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape};
use rayon::prelude::*;
use std::sync::Arc;

/// Strips of 16 rows that a thread takes at a time: while a block of inputs is in its first-level cache, it multiplies all of
/// their panels, which are in its second.
const STRIPS: usize = 4;

/// `x [.., cols] -> y [.., rows]`, f32.
#[derive(Debug)]
pub struct MatMat {
    /// `W [rows, cols]`, of a scheme of integers.
    pub weight: Packed,
    /// The inputs that the op is applied to, quantised.
    pub inputs: Arc<QuantizedBatch>,
}

impl MatMat {
    /// The depth of the inputs where products of this matrix with batches are of integers.
    pub fn depth(weight: &Packed) -> Option<usize> {
        weight.scheme().integers()?;
        Some(arch::kernels().ok()?.panels?.depth)
    }
}

impl CustomOp1 for MatMat {
    fn name(&self) -> &'static str {
        "squish-matmat"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (weight, inputs) = (&self.weight, &*self.inputs);
        let (_, batch) = rows_of(self.name(), storage, layout, weight.cols())?;
        let groups = weight.cols().div_ceil(GROUP);
        let panels = arch::kernels().map_err(Error::wrap)?.panels;
        let suits = |kernels: &PanelKernels| {
            (inputs.batch(), inputs.groups(), inputs.depth()) == (batch, groups, kernels.depth)
        };
        let (Some(kernels), Some(integers)) = (panels.filter(suits), weight.scheme().integers()) else {
            let (name, scheme) = (self.name(), weight.scheme().name());
            let message =
                format!("{name}: {batch} inputs of {groups} groups do not suit a matrix in {scheme} here");
            return Err(Error::Msg(message).bt());
        };
        let mut y = vec![0.0; batch * weight.rows()];
        matmat(&kernels, &integers, weight, inputs, &mut y);
        Ok((CpuStorage::F32(y), with_last_dim(layout, weight.rows())))
    }
}

/// `y [batch, rows] = x W^T` by these kernels, in parallel over strips of rows.
///
/// # Panics
/// When `x` or `y` has another size, or `x` another depth.
pub fn matmat(kernels: &PanelKernels, integers: &Integers, w: &Packed, x: &QuantizedBatch, y: &mut [f32]) {
    assert!(y.len() == w.rows() * x.batch() && x.groups() == w.cols().div_ceil(GROUP));
    assert!(x.depth() == kernels.depth);
    // A thread has some turns at least, so that all end at about the same time.
    let strips = w.rows().div_ceil(ROWS);
    let together = strips.div_ceil(4 * rayon::current_num_threads()).clamp(1, STRIPS);
    let y = Disjoint::new(y);
    (0..strips).into_par_iter().step_by(together).for_each_init(Workspace::default, |workspace, first| {
        let strips = first..strips.min(first + together);
        workspace.multiply(kernels, integers, w, x, strips.clone());
        for (sums, strip) in workspace.sums.chunks_exact(x.blocks() * x.width()).zip(strips) {
            let rows = ROWS * strip..w.rows().min(ROWS * (strip + 1));
            for (i, sums) in sums[..x.batch()].iter().enumerate() {
                // SAFETY: strips are disjoint, and each is taken by one thread.
                unsafe { y.part(i * w.rows() + rows.start, rows.len()) }.copy_from_slice(&sums[..rows.len()]);
            }
        }
    });
}

/// What a thread works with.
#[derive(Default)]
struct Workspace {
    panels: Vec<LevelPanel>,
    /// `[strips, blocks, width]`.
    sums: Vec<[f32; ROWS]>,
}

impl Workspace {
    /// The products of some strips with all inputs.
    fn multiply(
        &mut self,
        kernels: &PanelKernels,
        integers: &Integers,
        w: &Packed,
        x: &QuantizedBatch,
        strips: std::ops::Range<usize>,
    ) {
        let inputs = x.blocks() * x.width();
        self.panels.resize_with(strips.len(), LevelPanel::new);
        self.sums.clear();
        self.sums.resize(strips.len() * inputs, [0.0; ROWS]);
        for start in (0..x.groups()).step_by(COLS / GROUP) {
            let groups = start..x.groups().min(start + COLS / GROUP);
            for (panel, strip) in self.panels.iter_mut().zip(strips.clone()) {
                integers.panel(kernels, w, ROWS * strip, groups.clone(), panel);
            }
            for block in 0..x.blocks() {
                let input = x.block(block, groups.clone());
                for (panel, sums) in self.panels.iter().zip(self.sums.chunks_exact_mut(inputs)) {
                    (kernels.multiply)(panel, input, &mut sums[block * x.width()..][..x.width()]);
                }
            }
        }
    }
}
