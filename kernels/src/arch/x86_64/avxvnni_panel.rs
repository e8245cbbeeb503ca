//! AVX-VNNI: products of panels, 32 an instruction: of four columns of eight rows with four values of one input.

use super::{
    avx2::{book, both, levels_of, row_bytes},
    avx2_units::{self, load},
};
use crate::{
    arch::level_panel::{LevelPanel, OFFSET, PanelKernels, ROWS, Sides, Step},
    quantized_batch::BatchBlock,
    quantized_input::{GROUP, HALF},
    scheme::{TILE, UNIT, trellis::Codebook},
};
use std::arch::x86_64::*;

/// The kernels, for where [`super::avxvnni::kernels`] finds the instruction set.
pub(super) const KERNELS: PanelKernels = PanelKernels { depth: 4, spread_tiles, spread_unit, multiply };

/// Rows of a register.
const LANES: usize = ROWS / 2;

fn spread_tiles(bits: usize, codebook: &Codebook, codes: &[u8], out: &mut [Step]) {
    #[target_feature(enable = "avx2")]
    fn all<const K: usize>(codebook: &Codebook, codes: &[u8], out: &mut [Step]) {
        let book = book(codebook, OFFSET as i8);
        let (tiles, panels) = (codes.chunks_exact(32 * K), out.as_chunks_mut::<{ TILE / 4 }>().0);
        assert!(tiles.len() == panels.len());
        for (tile, panel) in tiles.zip(panels) {
            for half in 0..2 {
                // Rows r and r + 4 are the halves of a register: four such are transposed into the columns of eight rows.
                let mut rows = [_mm256_setzero_si256(); 4];
                for (r, row) in rows.iter_mut().enumerate() {
                    let r = LANES * half + r;
                    let bits = _mm256_set_m128i(row_bytes::<K>(tile, r + 4), row_bytes::<K>(tile, r));
                    *row = levels_of::<K>(bits, book);
                }
                for (step, columns) in panel.iter_mut().zip(transposed(rows)) {
                    // SAFETY: the pointer is that of 32 bytes.
                    unsafe { _mm256_storeu_si256(step.0[32 * half..][..32].as_mut_ptr().cast(), columns) };
                }
            }
        }
    }
    // SAFETY: these kernels are handed out only where the processor has the instruction set.
    unsafe {
        match bits {
            2 => all::<2>(codebook, codes, out),
            3 => all::<3>(codebook, codes, out),
            4 => all::<4>(codebook, codes, out),
            _ => all::<5>(codebook, codes, out),
        }
    }
}

fn spread_unit(bits: usize, table: &[i8; 16], units: [&[u8]; ROWS], out: &mut [Step; UNIT / 4]) {
    #[target_feature(enable = "avx2")]
    fn all<const BITS: usize>(table: &[i8; 16], units: [&[u8]; ROWS], out: &mut [Step; UNIT / 4]) {
        let (table, offset) = (both(table), _mm256_set1_epi8(OFFSET as i8));
        for (four, units) in units.as_chunks::<4>().0.iter().enumerate() {
            // Of each row its first 32 columns, and the others.
            let mut halves = [[_mm256_setzero_si256(); 4]; 2];
            for (r, unit) in units.iter().enumerate() {
                let levels = avx2_units::levels::<BITS>(unit, table);
                halves[0][r] = _mm256_xor_si256(levels[0], offset);
                halves[1][r] = _mm256_xor_si256(levels[1], offset);
            }
            for (rows, out) in halves.into_iter().zip(out.as_chunks_mut::<8>().0) {
                for (j, columns) in transposed(rows).into_iter().enumerate() {
                    // The lower half is of columns 4 j on, the upper one of columns 16 + 4 j on.
                    let places = [_mm256_castsi256_si128(columns), _mm256_extracti128_si256(columns, 1)];
                    for (part, four_rows) in places.into_iter().enumerate() {
                        let place = &mut out[4 * part + j].0[16 * four..][..16];
                        // SAFETY: the pointer is that of sixteen bytes.
                        unsafe { _mm_storeu_si128(place.as_mut_ptr().cast(), four_rows) };
                    }
                }
            }
        }
    }
    // SAFETY: these kernels are handed out only where the processor has the instruction set.
    unsafe {
        match bits {
            2 => all::<2>(table, units, out),
            3 => all::<3>(table, units, out),
            4 => all::<4>(table, units, out),
            _ => all::<8>(table, units, out),
        }
    }
}

/// In each half, a matrix of 4 x 4 dwords, transposed.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

fn multiply(panel: &LevelPanel, x: BatchBlock, out: &mut [[f32; ROWS]]) {
    panel.check(&x, out);
    // SAFETY: these kernels are handed out only where the processor has the instruction set.
    unsafe {
        match out.len() {
            4 => with_sides::<4, 4>(panel, x, out),
            8 => with_sides::<8, 4>(panel, x, out),
            12 => with_sides::<12, 6>(panel, x, out),
            width => unreachable!("a block has 4, 8 or 12 inputs, not {width}"),
        }
    }
}

/// Of a block of `W` inputs, `I` at a time: as many as, times two registers of rows, stay in registers.
#[target_feature(enable = "avx2,fma,avxvnni")]
fn with_sides<const W: usize, const I: usize>(panel: &LevelPanel, x: BatchBlock, out: &mut [[f32; ROWS]]) {
    for (n, out) in out.as_chunks_mut::<I>().0.iter_mut().enumerate() {
        match panel.sides() {
            Sides::Rows => some::<W, I, GROUP, false>(panel, x, n, out),
            Sides::Groups => some::<W, I, GROUP, true>(panel, x, n, out),
            Sides::Halves => some::<W, I, HALF, true>(panel, x, n, out),
        }
    }
}

/// Inputs `I n` to `I n + I - 1`. There is a scale for `COLUMNS` columns of a row, or with `SCALED` false none.
#[target_feature(enable = "avx2,fma,avxvnni")]
fn some<const W: usize, const I: usize, const COLUMNS: usize, const SCALED: bool>(
    panel: &LevelPanel,
    x: BatchBlock,
    n: usize,
    out: &mut [[f32; ROWS]; I],
) {
    let mine = |all: &[f32; W]| -> [f32; I] { all.as_chunks().0[n] };
    let scales = x.scales.as_chunks::<W>().0;
    let sums = x.sums.as_chunks::<W>().0.chunks_exact(COLUMNS / HALF);
    let values = x.values.as_chunks::<4>().0.as_chunks::<W>().0.chunks_exact(COLUMNS / 4);
    let mut totals = [[_mm256_setzero_ps(); I]; 2];
    for (run, ((levels, values), sums)) in
        panel.levels.chunks_exact(COLUMNS / 4).zip(values).zip(sums).enumerate()
    {
        let sums: [i32; I] = std::array::from_fn(|i| sums.iter().map(|sums| sums[I * n + i]).sum());
        let mut products = [[_mm256_setzero_si256(); I]; 2];
        for i in 0..I {
            // Levels have an offset.
            let begin = _mm256_set1_epi32(-OFFSET * sums[i]);
            (products[0][i], products[1][i]) = (begin, begin);
        }
        for (Step(levels), values) in levels.iter().zip(values) {
            let levels = levels.as_chunks::<32>().0;
            let (upper, lower) = (load(&levels[0]), load(&levels[1]));
            let values: &[[i8; 4]; I] = &values.as_chunks().0[n];
            for i in 0..I {
                let four = _mm256_set1_epi32(i32::from_ne_bytes(values[i].map(|value| value as u8)));
                products[0][i] = _mm256_dpbusd_avx_epi32(products[0][i], upper, four);
                products[1][i] = _mm256_dpbusd_avx_epi32(products[1][i], lower, four);
            }
        }
        let scales = mine(&scales[run * COLUMNS / GROUP]);
        for half in 0..2 {
            let of_rows = if SCALED { Some(lanes(&panel.scales[run], half)) } else { None };
            let minima = if COLUMNS == HALF { panel.minima.get(run) } else { None };
            for i in 0..I {
                let mut products = _mm256_cvtepi32_ps(products[half][i]);
                if let Some(of_rows) = of_rows {
                    products = _mm256_mul_ps(products, of_rows);
                }
                if let Some(minima) = minima {
                    products = _mm256_fmadd_ps(lanes(minima, half), _mm256_set1_ps(sums[i] as f32), products);
                }
                totals[half][i] = _mm256_fmadd_ps(products, _mm256_set1_ps(scales[i]), totals[half][i]);
            }
        }
    }
    for half in 0..2 {
        let of_rows = lanes(&panel.row_scales, half);
        for i in 0..I {
            let sum = _mm256_fmadd_ps(totals[half][i], of_rows, lanes(&out[i], half));
            // SAFETY: the pointer is that of eight values.
            unsafe { _mm256_storeu_ps(out[i][LANES * half..][..LANES].as_mut_ptr(), sum) };
        }
    }
}

/// Rows `8 half` to `8 half + 7`.
#[inline]
#[target_feature(enable = "avx2")]
fn lanes(rows: &[f32; ROWS], half: usize) -> __m256 {
    // SAFETY: the pointer is that of eight values.
    unsafe { _mm256_loadu_ps(rows.as_chunks::<LANES>().0[half].as_ptr()) }
}
