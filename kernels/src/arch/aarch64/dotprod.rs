//! NEON with `dotprod`: sixteen products of bytes an instruction.

use super::bytes::Sdot;
use crate::{
    arch::{Kernels, integer::TileRun, units::UnitRows},
    scheme::TILE,
};

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    let narrower = super::neon::kernels()?;
    std::arch::is_aarch64_feature_detected!("dotprod").then_some(Kernels {
        isa: "neon-dotprod",
        units_dot,
        tiles_dot,
        ..narrower
    })
}

fn units_dot(rows: UnitRows, out: &mut [f32]) {
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { super::units::units_dot::<Sdot>(rows, out) }
}

fn tiles_dot(run: TileRun) -> [f32; TILE] {
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { super::tiles::tiles_dot::<Sdot>(run) }
}
