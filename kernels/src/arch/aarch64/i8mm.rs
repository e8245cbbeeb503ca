//! NEON with `dotprod` and `i8mm`: products of matrices of bytes, 32 an instruction, for batches of inputs. With a single input half of
//! each would be wasted, so that is [`super::dotprod`]'s.

use super::panel::{self, Pairs};
use crate::{
    arch::{
        Kernels,
        level_panel::{LevelPanel, PanelKernels, ROWS},
    },
    quantized_batch::BatchBlock,
};

const PANELS: PanelKernels = PanelKernels {
    depth: 8,
    spread_tiles: panel::spread_tiles::<8>,
    spread_unit: panel::spread_unit::<8>,
    multiply,
};

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    let narrower = super::dotprod::kernels()?;
    std::arch::is_aarch64_feature_detected!("i8mm").then_some(Kernels {
        isa: "neon-i8mm",
        panels: Some(PANELS),
        ..narrower
    })
}

fn multiply(panel: &LevelPanel, x: BatchBlock, out: &mut [[f32; ROWS]]) {
    panel.check(&x, out);
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe {
        match out.len() {
            4 => panel::multiply::<Pairs, 4, 2>(panel, x, out),
            8 => panel::multiply::<Pairs, 4, 4>(panel, x, out),
            12 => panel::multiply::<Pairs, 4, 6>(panel, x, out),
            width => unreachable!("a block has 4, 8 or 12 inputs, not {width}"),
        }
    }
}
