//! AVX2: products of panels, 16 an instruction: of two columns of eight rows with two values of one input, both in 16 bits.
//!
//! `vpmaddubsw` would take 32, but its sums of two must be widened by a second multiplication, and it wants the signs turned first:
//! with `vpmaddwd` alone as many instructions do as much, and none of them can overflow.

use super::{
    avx2::{both, levels_of, row_bytes, windows},
    avx2_units,
};
use crate::{
    arch::level_panel::{LevelPanel, OFFSET, PanelKernels, ROWS, Sides, Step},
    quantized_batch::{BatchBlock, NARROWEST},
    quantized_input::{GROUP, HALF},
    scheme::{TILE, UNIT, trellis::Codebook},
};
use std::arch::x86_64::*;

/// The kernels, for where `avx2::kernels` finds the instruction set.
pub(super) const KERNELS: PanelKernels = PanelKernels { depth: DEPTH, spread_tiles, spread_unit, multiply };

/// Columns that an instruction multiplies.
const DEPTH: usize = 2;
/// Inputs that are multiplied together: with 16 rows of two registers each they take eight registers of sums.
const INPUTS: usize = NARROWEST;

fn spread_tiles(bits: usize, codebook: &Codebook, codes: &[u8], out: &mut [Step]) {
    #[target_feature(enable = "avx2")]
    fn all<const K: usize>(codebook: &Codebook, codes: &[u8], out: &mut [Step]) {
        let book = [both(codebook.low()), both(codebook.high())];
        let (tiles, panels) = (codes.chunks_exact(32 * K), out.as_chunks_mut::<{ TILE / 4 }>().0);
        assert!(tiles.len() == panels.len());
        for (tile, panel) in tiles.zip(panels) {
            // Not by `from_fn`: what it calls is compiled without the instruction set.
            let mut rows = [_mm256_setzero_si256(); ROWS / 2];
            for (r, rows) in rows.iter_mut().enumerate() {
                let bits = _mm256_set_m128i(row_bytes::<K>(tile, r + ROWS / 2), row_bytes::<K>(tile, r));
                *rows = levels_of::<K>(windows::<K>(bits), book);
            }
            place(rows, panel);
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
        let table = both(table);
        let mut rows = [[_mm256_setzero_si256(); 2]; ROWS];
        for (row, unit) in rows.iter_mut().zip(units) {
            *row = avx2_units::levels::<BITS>(unit, table);
        }
        let (upper, lower) = rows.split_at(ROWS / 2);
        for (half, panels) in out.as_chunks_mut::<{ HALF / 4 }>().0.iter_mut().enumerate() {
            let [mut left, mut right] = [[_mm256_setzero_si256(); ROWS / 2]; 2];
            for (r, (upper, lower)) in upper.iter().zip(lower).enumerate() {
                left[r] = _mm256_permute2x128_si256::<0x20>(upper[half], lower[half]);
                right[r] = _mm256_permute2x128_si256::<0x31>(upper[half], lower[half]);
            }
            let [to_left, to_right] = panels.as_chunks_mut().0 else { unreachable!("32 columns") };
            place(left, to_left);
            place(right, to_right);
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

/// Puts sixteen columns of levels where they belong: register `r` holds rows `r` and `8 + r`.
#[inline]
#[target_feature(enable = "avx2")]
fn place(rows: [__m256i; ROWS / 2], panel: &mut [Step; TILE / 4]) {
    // A matrix of 8 x 8 words in each half, transposed: neighbours of words, of pairs of words, of fours.
    let [a, b, c, d, e, f, g, h] = rows;
    let words = [
        (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)),
        (_mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d)),
        (_mm256_unpacklo_epi16(e, f), _mm256_unpackhi_epi16(e, f)),
        (_mm256_unpacklo_epi16(g, h), _mm256_unpackhi_epi16(g, h)),
    ];
    let [ab, cd, ef, gh] = words;
    let fours = [
        (_mm256_unpacklo_epi32(ab.0, cd.0), _mm256_unpacklo_epi32(ef.0, gh.0)),
        (_mm256_unpackhi_epi32(ab.0, cd.0), _mm256_unpackhi_epi32(ef.0, gh.0)),
        (_mm256_unpacklo_epi32(ab.1, cd.1), _mm256_unpacklo_epi32(ef.1, gh.1)),
        (_mm256_unpackhi_epi32(ab.1, cd.1), _mm256_unpackhi_epi32(ef.1, gh.1)),
    ];
    let offset = _mm256_set1_epi8(i8::MIN);
    for (Step(panel), (upper, lower)) in panel.iter_mut().zip(fours) {
        let columns = [_mm256_unpacklo_epi64(upper, lower), _mm256_unpackhi_epi64(upper, lower)];
        for (place, columns) in panel.as_chunks_mut::<32>().0.iter_mut().zip(columns) {
            // SAFETY: the pointer is that of 32 bytes.
            unsafe { _mm256_storeu_si256(place.as_mut_ptr().cast(), _mm256_xor_si256(columns, offset)) };
        }
    }
}

fn multiply(panel: &LevelPanel, x: BatchBlock, out: &mut [[f32; ROWS]]) {
    panel.check(&x, out);
    // SAFETY: these kernels are handed out only where the processor has the instruction set.
    unsafe {
        match out.len() {
            4 => with_sides::<4>(panel, x, out),
            8 => with_sides::<8>(panel, x, out),
            12 => with_sides::<12>(panel, x, out),
            width => unreachable!("a block has 4, 8 or 12 inputs, not {width}"),
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn with_sides<const W: usize>(panel: &LevelPanel, x: BatchBlock, out: &mut [[f32; ROWS]]) {
    let out = out.first_chunk_mut::<W>().expect("W inputs");
    match panel.sides() {
        Sides::Rows => all::<W, GROUP, false>(panel, x, out),
        Sides::Groups => all::<W, GROUP, true>(panel, x, out),
        Sides::Halves => all::<W, HALF, true>(panel, x, out),
    }
}

/// With a scale for every `COLS` columns, a group or half of one, if they are `SCALED` at all.
#[target_feature(enable = "avx2,fma")]
fn all<const W: usize, const COLS: usize, const SCALED: bool>(
    panel: &LevelPanel,
    x: BatchBlock,
    out: &mut [[f32; ROWS]; W],
) {
    let sums = x.sums.as_chunks::<W>().0;
    let (values, levels) = (x.values.chunks_exact(COLS * W), panel.levels.chunks_exact(COLS / 4));
    let mut totals = [[_mm256_setzero_ps(); 2]; W];
    // The values of some columns in 16 bits: [COLS / 2, W, 2].
    let mut wide = [[[0i16; DEPTH]; W]; GROUP / DEPTH];
    for (i, (levels, values)) in levels.zip(values).enumerate() {
        let halves = COLS / HALF;
        let sums: [i32; W] = match sums[i * halves..][..halves] {
            [low, high] => std::array::from_fn(|w| low[w] + high[w]),
            [half] => half,
            _ => unreachable!("one or two halves"),
        };
        let scales = x.scales.as_chunks::<W>().0[i * COLS / GROUP];
        let wide = &mut wide[..COLS / DEPTH];
        widen(values, wide.as_flattened_mut().as_flattened_mut());
        let of_group = if SCALED { load_scales(&panel.scales[i]) } else { [_mm256_setzero_ps(); 2] };
        for first in (0..W).step_by(INPUTS) {
            let mut products = [[_mm256_setzero_si256(); 2]; INPUTS];
            for (product, sum) in products.iter_mut().zip(&sums[first..]) {
                *product = [_mm256_set1_epi32(-OFFSET * sum); 2];
            }
            let levels = levels.iter().flat_map(|Step(levels)| levels.as_chunks::<32>().0);
            for (levels, values) in levels.zip(wide.iter()) {
                let levels = [load_wide(&levels[..16]), load_wide(&levels[16..])];
                for (product, &[a, b]) in products.iter_mut().zip(&values[first..]) {
                    let two = _mm256_set1_epi32(i32::from(a as u16) | i32::from(b) << 16);
                    product[0] = _mm256_add_epi32(product[0], _mm256_madd_epi16(levels[0], two));
                    product[1] = _mm256_add_epi32(product[1], _mm256_madd_epi16(levels[1], two));
                }
            }
            for (w, products) in (first..).zip(products) {
                let scale = _mm256_set1_ps(scales[w]);
                for half in 0..2 {
                    let mut term = _mm256_cvtepi32_ps(products[half]);
                    if SCALED {
                        term = _mm256_mul_ps(term, of_group[half]);
                        if let Some(minima) = panel.minima.get(i) {
                            term = _mm256_fmadd_ps(
                                load_scales(minima)[half],
                                _mm256_set1_ps(sums[w] as f32),
                                term,
                            );
                        }
                    }
                    totals[w][half] = _mm256_fmadd_ps(term, scale, totals[w][half]);
                }
            }
        }
    }
    let row_scales = load_scales(&panel.row_scales);
    for (out, totals) in out.iter_mut().zip(totals) {
        let before = load_scales(out);
        for (half, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let sum = _mm256_fmadd_ps(totals[half], row_scales[half], before[half]);
            // SAFETY: the pointer is that of eight values.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
}

/// Bytes as words.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(from: &[i8], to: &mut [i16]) {
    for (from, to) in from.as_chunks::<16>().0.iter().zip(to.as_chunks_mut::<16>().0) {
        // SAFETY: the pointers are those of sixteen bytes and of sixteen words.
        unsafe {
            let words = _mm256_cvtepi8_epi16(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), words);
        }
    }
}

/// Sixteen bytes without sign as words.
#[inline]
#[target_feature(enable = "avx2")]
fn load_wide(levels: &[u8]) -> __m256i {
    let levels: &[u8; 16] = levels.first_chunk().expect("16 bytes");
    // SAFETY: the pointer is that of sixteen bytes.
    _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(levels.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_scales(scales: &[f32; ROWS]) -> [__m256; 2] {
    // SAFETY: the pointers are those of eight values each.
    unsafe { [_mm256_loadu_ps(scales.as_ptr()), _mm256_loadu_ps(scales.as_ptr().add(8))] }
}
