//! AVX-512 with byte permutations and integer dot products (VBMI, VBMI2, VNNI): 64 products an instruction.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. So levels are looked up with 128 added, and sums begin at `-128 sum x`.

use super::vnni_panel;
use crate::{
    arch::{
        integer::{TileRun, TilesDot},
        level_panel::PanelKernels,
        units::{UnitRows, UnitsDot},
    },
    scheme::TILE,
};

/// Dot products with units and with tiles, and products of panels, if the processor has them.
pub fn products() -> Option<(UnitsDot, TilesDot, PanelKernels)> {
    (is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("avx512vnni"))
    .then_some((units_dot, tiles_dot, vnni_panel::KERNELS))
}

fn units_dot(rows: UnitRows, out: &mut [f32]) {
    // SAFETY: `products` hands this function out only where the processor has the instruction set.
    unsafe { super::vnni_units::units_dot(rows, out) }
}

fn tiles_dot(run: TileRun) -> [f32; TILE] {
    // SAFETY: `products` hands this function out only where the processor has the instruction set.
    unsafe { super::vnni_tiles::tiles_dot(run) }
}
