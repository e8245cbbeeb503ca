//! Products of a panel with a block of inputs, and the levels of panels.
//!
//! Eight rows times up to twelve inputs stay in 24 registers, fragments of four products each; whose they are depends on the instruction
//! ([`Fragments`]).

use super::{
    bytes::{Sdot, Table, usmmla},
    neon::row_levels,
    registers::{load, load_floats, load_signed, store_floats},
    units::UnitLevels,
};
use crate::{
    arch::level_panel::{LevelPanel, OFFSET, ROWS, Sides, Step},
    quantized_batch::BatchBlock,
    quantized_input::{GROUP, HALF},
    scheme::{TILE, UNIT, trellis::Codebook},
};
use std::arch::aarch64::*;

/// Rows that are multiplied together.
const TOGETHER: usize = ROWS / 2;

/// How an instruction multiplies eight rows by `4 R I / 8` inputs: `R` registers of levels by `I` fragments each.
pub(super) trait Fragments<const R: usize, const I: usize> {
    /// Columns that it multiplies.
    const DEPTH: usize;

    /// What the products of some columns begin at, from the sums of the inputs there.
    ///
    /// # Safety
    /// The processor has the instruction.
    unsafe fn begin(sums: &[i32]) -> [[int32x4_t; I]; R];

    /// Adds the products of [`Fragments::DEPTH`] columns: of the rows of one half of a step, or of one of two.
    ///
    /// # Safety
    /// The processor has the instruction.
    unsafe fn add(steps: &[Step], half: usize, values: &[i8], products: &mut [[int32x4_t; I]; R]);

    /// Values of eight rows, as fragments have them.
    ///
    /// # Safety
    /// The processor has the instruction.
    unsafe fn rows(of: &[f32; TOGETHER]) -> [float32x4_t; R];

    /// Values of inputs, as fragments have them.
    ///
    /// # Safety
    /// The processor has the instruction.
    unsafe fn inputs(of: &[f32]) -> [float32x4_t; I];

    /// Adds fragments times values of the rows to the outputs.
    ///
    /// # Safety
    /// The processor has the instruction.
    unsafe fn store(
        totals: [[float32x4_t; I]; R],
        scales: &[f32; ROWS],
        half: usize,
        out: &mut [[f32; ROWS]],
    );
}

/// `sdot`: a fragment is four rows of one input.
pub(super) struct Lanes;

impl<const I: usize> Fragments<2, I> for Lanes {
    const DEPTH: usize = 4;

    #[inline(always)]
    unsafe fn begin(_: &[i32]) -> [[int32x4_t; I]; 2] {
        // SAFETY: the caller vouches for the instruction set.
        [[unsafe { vdupq_n_s32(0) }; I]; 2]
    }

    #[inline(always)]
    unsafe fn add(steps: &[Step], half: usize, values: &[i8], products: &mut [[int32x4_t; I]; 2]) {
        let levels = steps[0].0.as_chunks::<16>().0;
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            // Without the offset: both factors have signs.
            let levels: [int8x16_t; 2] = std::array::from_fn(|r| {
                vreinterpretq_s8_u8(veorq_u8(load(&levels[2 * half + r]), vdupq_n_u8(OFFSET as u8)))
            });
            for (four, values) in values.as_chunks::<16>().0.iter().enumerate() {
                let values = load_signed(values);
                for (products, levels) in products.iter_mut().zip(levels) {
                    let products = &mut products.as_chunks_mut::<4>().0[four];
                    products[0] = Sdot::dot_lane::<0>(products[0], levels, values);
                    products[1] = Sdot::dot_lane::<1>(products[1], levels, values);
                    products[2] = Sdot::dot_lane::<2>(products[2], levels, values);
                    products[3] = Sdot::dot_lane::<3>(products[3], levels, values);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn rows(of: &[f32; TOGETHER]) -> [float32x4_t; 2] {
        let fours = of.as_chunks::<4>().0;
        // SAFETY: the caller vouches for the instruction set.
        unsafe { [load_floats(&fours[0]), load_floats(&fours[1])] }
    }

    #[inline(always)]
    unsafe fn inputs(of: &[f32]) -> [float32x4_t; I] {
        // SAFETY: the caller vouches for the instruction set.
        std::array::from_fn(|i| unsafe { vdupq_n_f32(of[i]) })
    }

    #[inline(always)]
    unsafe fn store(
        totals: [[float32x4_t; I]; 2],
        scales: &[f32; ROWS],
        half: usize,
        out: &mut [[f32; ROWS]],
    ) {
        for (i, out) in out.iter_mut().enumerate().take(I) {
            for (r, totals) in totals.iter().enumerate() {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { add_rows(totals[i], scales, 2 * half + r, out) };
            }
        }
    }
}

/// `usmmla`: a fragment is two rows of two inputs.
pub(super) struct Pairs;

impl<const I: usize> Fragments<4, I> for Pairs {
    const DEPTH: usize = 8;

    #[inline(always)]
    unsafe fn begin(sums: &[i32]) -> [[int32x4_t; I]; 4] {
        let pairs = sums.as_chunks::<2>().0;
        // SAFETY: the caller vouches for the instruction set; the pointer is that of two values.
        let begin = std::array::from_fn(|i| unsafe {
            let pair = vmul_n_s32(vld1_s32(pairs[i].as_ptr()), -OFFSET);
            vcombine_s32(pair, pair)
        });
        [begin; 4]
    }

    #[inline(always)]
    unsafe fn add(steps: &[Step], half: usize, values: &[i8], products: &mut [[int32x4_t; I]; 4]) {
        let levels = steps[half].0.as_chunks::<16>().0;
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let levels: [uint8x16_t; 4] = std::array::from_fn(|r| load(&levels[r]));
            for (i, values) in values.as_chunks::<16>().0.iter().enumerate() {
                let values = load_signed(values);
                for (products, levels) in products.iter_mut().zip(levels) {
                    products[i] = usmmla(products[i], levels, values);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn rows(of: &[f32; TOGETHER]) -> [float32x4_t; 4] {
        let fours = of.as_chunks::<4>().0;
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (low, high) = (load_floats(&fours[0]), load_floats(&fours[1]));
            [vzip1q_f32(low, low), vzip2q_f32(low, low), vzip1q_f32(high, high), vzip2q_f32(high, high)]
        }
    }

    #[inline(always)]
    unsafe fn inputs(of: &[f32]) -> [float32x4_t; I] {
        let pairs = of.as_chunks::<2>().0;
        // SAFETY: the caller vouches for the instruction set; the pointer is that of two values.
        std::array::from_fn(|i| unsafe {
            let pair = vld1_f32(pairs[i].as_ptr());
            vcombine_f32(pair, pair)
        })
    }

    #[inline(always)]
    unsafe fn store(
        totals: [[float32x4_t; I]; 4],
        scales: &[f32; ROWS],
        half: usize,
        out: &mut [[f32; ROWS]],
    ) {
        for (i, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate().take(I) {
            for (four, totals) in totals.as_chunks::<2>().0.iter().enumerate() {
                // SAFETY: the caller vouches for the instruction set.
                unsafe {
                    let [even, odd] = [vuzp1q_f32, vuzp2q_f32].map(|every| every(totals[0][i], totals[1][i]));
                    add_rows(even, scales, 2 * half + four, &mut out[0]);
                    add_rows(odd, scales, 2 * half + four, &mut out[1]);
                }
            }
        }
    }
}

/// Adds the products of four rows, each times its scale.
#[inline]
#[target_feature(enable = "neon")]
fn add_rows(products: float32x4_t, scales: &[f32; ROWS], four: usize, out: &mut [f32; ROWS]) {
    let (scales, out) = (&scales.as_chunks::<4>().0[four], &mut out.as_chunks_mut::<4>().0[four]);
    store_floats(out, vfmaq_f32(load_floats(out), products, load_floats(scales)));
}

/// Adds the products of a panel with a block of inputs to `out`.
///
/// # Safety
/// The processor has `F`'s instruction.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn multiply<F: Fragments<R, I>, const R: usize, const I: usize>(
    panel: &LevelPanel,
    x: BatchBlock,
    out: &mut [[f32; ROWS]],
) {
    // SAFETY: the caller vouches for the instruction.
    unsafe {
        match panel.sides() {
            Sides::Rows => halves::<F, R, I, GROUP, false>(panel, x, out),
            Sides::Groups => halves::<F, R, I, GROUP, true>(panel, x, out),
            Sides::Halves => halves::<F, R, I, HALF, true>(panel, x, out),
        }
    }
}

/// Eight rows, then the other eight. There is a scale for `COLUMNS` columns of a row, or with `SCALED` false none.
///
/// # Safety
/// The processor has `F`'s instruction.
#[target_feature(enable = "neon")]
unsafe fn halves<
    F: Fragments<R, I>,
    const R: usize,
    const I: usize,
    const COLUMNS: usize,
    const SCALED: bool,
>(
    panel: &LevelPanel,
    x: BatchBlock,
    out: &mut [[f32; ROWS]],
) {
    let width = R * I / 2;
    assert!(out.len() == width);
    let steps = panel.levels.chunks_exact(COLUMNS / 4).zip(x.values.chunks_exact(width * COLUMNS));
    for half in 0..2 {
        let of_half = |side: &[[f32; ROWS]], run: usize| side[run].as_chunks::<TOGETHER>().0[half];
        let mut totals = [[vdupq_n_f32(0.0); I]; R];
        for (run, (levels, values)) in steps.clone().enumerate() {
            let group = run * COLUMNS / GROUP;
            let mut sums = [0; 12];
            for part in x.sums[run * width * COLUMNS / HALF..][..width * COLUMNS / HALF].chunks_exact(width) {
                sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            // SAFETY: the caller vouches for the instruction.
            unsafe {
                let mut products = F::begin(&sums);
                for (levels, values) in
                    levels.chunks_exact(F::DEPTH / 4).zip(values.chunks_exact(width * F::DEPTH))
                {
                    F::add(levels, half, values, &mut products);
                }
                let inputs = F::inputs(&x.scales[group * width..][..width]);
                let rows = if SCALED { Some(F::rows(&of_half(&panel.scales, run))) } else { None };
                for r in 0..R {
                    for i in 0..I {
                        let scale = rows.map_or(inputs[i], |rows| vmulq_f32(rows[r], inputs[i]));
                        totals[r][i] = vfmaq_f32(totals[r][i], vcvtq_f32_s32(products[r][i]), scale);
                    }
                }
                if COLUMNS == HALF && !panel.minima.is_empty() {
                    let (rows, sums) =
                        (F::rows(&of_half(&panel.minima, run)), F::inputs(&sums.map(|sum| sum as f32)));
                    for r in 0..R {
                        for i in 0..I {
                            totals[r][i] = vfmaq_f32(totals[r][i], rows[r], vmulq_f32(sums[i], inputs[i]));
                        }
                    }
                }
            }
        }
        // SAFETY: the caller vouches for the instruction.
        unsafe { F::store(totals, &panel.row_scales, half, out) };
    }
}

/// The levels of a run of tiles, in the order of a panel of this depth.
pub(super) fn spread_tiles<const DEPTH: usize>(
    bits: usize,
    codebook: &Codebook,
    codes: &[u8],
    out: &mut [Step],
) {
    #[target_feature(enable = "neon")]
    fn all<const DEPTH: usize, const K: usize>(codebook: &Codebook, codes: &[u8], out: &mut [Step]) {
        let table = Table::new(codebook);
        let (tiles, panels) = (codes.chunks_exact(32 * K), out.as_chunks_mut::<{ TILE / 4 }>().0);
        assert!(tiles.len() == panels.len());
        for (tile, panel) in tiles.zip(panels) {
            for four in 0..TILE / 4 {
                let mut rows = [vdupq_n_s8(0); 4];
                for (r, row) in rows.iter_mut().enumerate() {
                    *row = row_levels::<K>(tile, 4 * four + r, &table);
                }
                place_rows::<DEPTH>(rows, four, panel);
            }
        }
    }
    // SAFETY: these kernels are handed out only where the processor has NEON.
    unsafe {
        match bits {
            2 => all::<DEPTH, 2>(codebook, codes, out),
            3 => all::<DEPTH, 3>(codebook, codes, out),
            4 => all::<DEPTH, 4>(codebook, codes, out),
            _ => all::<DEPTH, 5>(codebook, codes, out),
        }
    }
}

/// The levels of a unit of each of 16 rows, in the order of a panel of this depth.
pub(super) fn spread_unit<const DEPTH: usize>(
    bits: usize,
    table: &[i8; 16],
    units: [&[u8]; ROWS],
    out: &mut [Step; UNIT / 4],
) {
    #[target_feature(enable = "neon")]
    fn all<const DEPTH: usize, const BITS: usize>(
        table: &[i8; 16],
        units: [&[u8]; ROWS],
        out: &mut [Step; UNIT / 4],
    ) {
        let levels = UnitLevels::new(table, BITS);
        for (four, units) in units.as_chunks::<4>().0.iter().enumerate() {
            let rows: [_; 4] = std::array::from_fn(|r| levels.of::<BITS>(units[r]));
            for (i, panel) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                place_rows::<DEPTH>(std::array::from_fn(|r| rows[r][i]), four, panel);
            }
        }
    }
    // SAFETY: these kernels are handed out only where the processor has NEON.
    unsafe {
        match bits {
            2 => all::<DEPTH, 2>(table, units, out),
            3 => all::<DEPTH, 3>(table, units, out),
            4 => all::<DEPTH, 4>(table, units, out),
            _ => all::<DEPTH, 8>(table, units, out),
        }
    }
}

/// Puts sixteen columns of rows `4 four` to `4 four + 3` where a panel of this depth has them.
#[inline]
#[target_feature(enable = "neon")]
fn place_rows<const DEPTH: usize>(rows: [int8x16_t; 4], four: usize, panel: &mut [Step; 4]) {
    let offset = vdupq_n_s8(i8::MIN);
    let [a, b, c, d] = [0, 1, 2, 3].map(|r: usize| vreinterpretq_s32_s8(veorq_s8(rows[r], offset)));
    let mut store = |step: usize, at: usize, levels: int64x2_t| {
        let to = &mut panel[step].0.as_chunks_mut::<16>().0[at];
        // SAFETY: the pointer is that of sixteen bytes.
        unsafe { vst1q_s8(to.as_mut_ptr().cast(), vreinterpretq_s8_s64(levels)) };
    };
    let wide = |fours: int32x4_t| vreinterpretq_s64_s32(fours);
    if DEPTH == 8 {
        // Eight columns of two rows, then the other eight.
        for (i, [upper, lower]) in [[a, b], [c, d]].into_iter().enumerate() {
            let (step, at) = (four / 2, 2 * (four % 2) + i);
            store(step, at, vzip1q_s64(wide(upper), wide(lower)));
            store(step + 2, at, vzip2q_s64(wide(upper), wide(lower)));
        }
    } else {
        // Four columns of four rows: a matrix of 4 x 4, transposed.
        let (even, odd) = (wide(vtrn1q_s32(a, b)), wide(vtrn2q_s32(a, b)));
        let (even_low, odd_low) = (wide(vtrn1q_s32(c, d)), wide(vtrn2q_s32(c, d)));
        store(0, four, vtrn1q_s64(even, even_low));
        store(1, four, vtrn1q_s64(odd, odd_low));
        store(2, four, vtrn2q_s64(even, even_low));
        store(3, four, vtrn2q_s64(odd, odd_low));
    }
}
