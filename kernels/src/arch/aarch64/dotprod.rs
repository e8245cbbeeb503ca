//! NEON with `dotprod`: sixteen products of bytes an instruction.

use super::{
    bytes::Sdot,
    panel::{self, Lanes},
};
use crate::{
    arch::{
        Kernels,
        integer::TileRun,
        level_panel::{LevelPanel, PanelKernels, ROWS},
        units::UnitRows,
    },
    quantized_batch::BatchBlock,
    scheme::TILE,
};

const PANELS: PanelKernels = PanelKernels {
    depth: 4,
    spread_tiles: panel::spread_tiles::<4>,
    spread_unit: panel::spread_unit::<4>,
    multiply,
};

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    let narrower = super::neon::kernels()?;
    std::arch::is_aarch64_feature_detected!("dotprod").then_some(Kernels {
        isa: "neon-dotprod",
        units_dot,
        tiles_dot,
        panels: Some(PANELS),
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

fn multiply(panel: &LevelPanel, x: BatchBlock, out: &mut [[f32; ROWS]]) {
    panel.check(&x, out);
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe {
        match out.len() {
            4 => panel::multiply::<Lanes, 2, 4>(panel, x, out),
            8 => panel::multiply::<Lanes, 2, 8>(panel, x, out),
            12 => panel::multiply::<Lanes, 2, 12>(panel, x, out),
            width => unreachable!("a block has 4, 8 or 12 inputs, not {width}"),
        }
    }
}
