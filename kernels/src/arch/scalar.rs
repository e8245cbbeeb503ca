//! The portable instance: eight lanes in an array, for any processor.

use super::{
    Kernels,
    generic::{self, Panel},
    integer, page, tiles, units,
    vector::Vector,
};

/// The portable kernels.
pub const KERNELS: Kernels = Kernels {
    isa: "scalar",
    panel_dot,
    lookup: generic::lookup,
    tiles: tiles::decode,
    units_dot: units::units_dot,
    tiles_dot: integer::tiles_dot,
    panels: None,
    pages: page::SCALAR,
};

impl Vector for [f32; 8] {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for eight readable values; an array of f32 may lie at any f32's alignment.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] + a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

fn panel_dot(panel: Panel, y: &mut [f32]) {
    // SAFETY: arrays need no instruction set.
    unsafe { generic::panel_dot::<[f32; 8], 1>(panel, y) }
}
