//! AVX-VNNI: AVX2 with integer dot products, 32 products an instruction. Intel's processors since the 12th generation have it, most
//! of them without AVX-512.

use super::{avx2, avx2_tiles, avx2_units, avxvnni_panel, bytes::InFours};
use crate::{
    arch::{Kernels, integer::TileRun, units::UnitRows},
    scheme::TILE,
};

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    let narrower = avx2::kernels()?;
    is_x86_feature_detected!("avxvnni").then_some(Kernels {
        isa: "avxvnni",
        units_dot,
        tiles_dot,
        panels: Some(avxvnni_panel::KERNELS),
        ..narrower
    })
}

fn units_dot(rows: UnitRows, out: &mut [f32]) {
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { avx2_units::units_dot::<InFours>(rows, out) }
}

fn tiles_dot(run: TileRun) -> [f32; TILE] {
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { avx2_tiles::tiles_dot::<InFours>(run) }
}
