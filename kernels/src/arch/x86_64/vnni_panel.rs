//! AVX-512 VNNI: 64 products an instruction, of four columns of 16 rows with four values of one input.

use super::{vbmi::TileLevels, vnni_units::UnitLevels};
use crate::{
    arch::level_panel::{LevelPanel, OFFSET, PanelKernels, ROWS, Sides, Step},
    quantized_batch::BatchBlock,
    quantized_input::GROUP,
    scheme::{TILE, UNIT, trellis::Codebook},
};
use std::arch::x86_64::*;

/// The kernels, for where [`super::vnni::products`] finds the instruction set.
pub(super) const KERNELS: PanelKernels = PanelKernels { depth: 4, spread_tiles, spread_unit, multiply };

/// Instructions of four columns in half a group.
const STEPS: usize = GROUP / 8;

fn spread_tiles(bits: usize, codebook: &Codebook, codes: &[u8], out: &mut [Step]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn all<const K: usize>(codebook: &Codebook, codes: &[u8], out: &mut [Step]) {
        let decoder = TileLevels::<K>::new(codebook, i8::MIN);
        // Of registers of four rows of four dwords each: dwords j and j + 1 of the eight rows of two of them.
        let pairs = |j: i32| {
            let row = |r: i32| (r % 4 * 4 + j) + 16 * (r / 4);
            let lanes: [i32; 16] = std::array::from_fn(|i| row(i as i32 % 8) + i as i32 / 8);
            // SAFETY: the pointer is that of sixteen values.
            unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
        };
        let pairs = [pairs(0), pairs(2)];
        let (tiles, panels) = (codes.chunks_exact(32 * K), out.as_chunks_mut::<{ TILE / 4 }>().0);
        assert!(tiles.len() == panels.len());
        for (tile, panel) in tiles.zip(panels) {
            let quarters: [__m512i; 4] = std::array::from_fn(|quarter| decoder.quarter(tile, quarter));
            for (two, pair) in panel.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                let upper = _mm512_permutex2var_epi32(quarters[0], pair, quarters[1]);
                let lower = _mm512_permutex2var_epi32(quarters[2], pair, quarters[3]);
                store(&mut two[0], _mm512_shuffle_i64x2(upper, lower, 0b01_00_01_00));
                store(&mut two[1], _mm512_shuffle_i64x2(upper, lower, 0b11_10_11_10));
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
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn all<const BITS: usize>(table: &[i8; 16], units: [&[u8]; ROWS], out: &mut [Step; UNIT / 4]) {
        let decoder = UnitLevels::new(table, BITS);
        // Not by `map`: what it calls is compiled without the instruction set.
        let mut rows = [_mm512_setzero_si512(); ROWS];
        rows.iter_mut().zip(units).for_each(|(row, unit)| *row = decoder.levels::<BITS>(unit));
        // A matrix of 16 x 16 dwords, transposed: first within squares of four, then the squares.
        let mut columns = [_mm512_setzero_si512(); ROWS];
        for (i, four) in rows.as_chunks::<4>().0.iter().enumerate() {
            let [a, b, c, d] = *four;
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            columns[4 * i] = _mm512_unpacklo_epi64(ab, cd);
            columns[4 * i + 1] = _mm512_unpackhi_epi64(ab, cd);
            columns[4 * i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
            columns[4 * i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
        }
        // Lane l of columns[4 i + j] holds rows 4 i .. 4 i + 4 of column 4 l + j.
        for j in 0..4 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i: usize| columns[4 * i + j]);
            let (ab, cd) = (_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(c, d, 0x44));
            let (ab_high, cd_high) = (_mm512_shuffle_i32x4(a, b, 0xee), _mm512_shuffle_i32x4(c, d, 0xee));
            store(&mut out[j], _mm512_shuffle_i32x4(ab, cd, 0x88));
            store(&mut out[4 + j], _mm512_shuffle_i32x4(ab, cd, 0xdd));
            store(&mut out[8 + j], _mm512_shuffle_i32x4(ab_high, cd_high, 0x88));
            store(&mut out[12 + j], _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd));
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

#[target_feature(enable = "avx512f,avx512vnni")]
fn with_sides<const W: usize>(panel: &LevelPanel, x: BatchBlock, out: &mut [[f32; ROWS]]) {
    let out = out.first_chunk_mut().expect("W inputs");
    match panel.sides() {
        Sides::Rows => by_groups::<W, false>(panel, x, out),
        Sides::Groups => by_groups::<W, true>(panel, x, out),
        Sides::Halves => by_halves::<W>(panel, x, out),
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn by_groups<const W: usize, const SCALED: bool>(
    panel: &LevelPanel,
    x: BatchBlock,
    out: &mut [[f32; ROWS]; W],
) {
    let values = x.values.as_chunks::<4>().0.as_chunks::<W>().0.as_chunks::<{ 2 * STEPS }>().0;
    let (scales, sums) = (x.scales.as_chunks::<W>().0, x.sums.as_chunks::<W>().0.as_chunks::<2>().0);
    let levels = panel.levels.as_chunks::<{ 2 * STEPS }>().0;
    let mut totals = [_mm512_setzero_ps(); W];
    for (g, (((levels, values), scales), [low, high])) in
        levels.iter().zip(values).zip(scales).zip(sums).enumerate()
    {
        let mut products: [__m512i; W] =
            std::array::from_fn(|w| _mm512_set1_epi32(-OFFSET * (low[w] + high[w])));
        for (levels, values) in levels.iter().zip(values) {
            let levels = load_levels(levels);
            for (product, four) in products.iter_mut().zip(values) {
                *product = _mm512_dpbusd_epi32(*product, levels, _mm512_set1_epi32(dword(four)));
            }
        }
        let of_group = if SCALED { Some(load_scales(&panel.scales[g])) } else { None };
        for ((total, product), scale) in totals.iter_mut().zip(products).zip(scales) {
            let scale = _mm512_set1_ps(*scale);
            let scale = of_group.map_or(scale, |of_group| _mm512_mul_ps(of_group, scale));
            *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, *total);
        }
    }
    add(&panel.row_scales, totals, out);
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn by_halves<const W: usize>(panel: &LevelPanel, x: BatchBlock, out: &mut [[f32; ROWS]; W]) {
    let values = x.values.as_chunks::<4>().0.as_chunks::<W>().0.as_chunks::<STEPS>().0;
    let (scales, sums) = (x.scales.as_chunks::<W>().0, x.sums.as_chunks::<W>().0);
    let levels = panel.levels.as_chunks::<STEPS>().0;
    let mut totals = [_mm512_setzero_ps(); W];
    for (h, ((levels, values), sums)) in levels.iter().zip(values).zip(sums).enumerate() {
        let mut products: [__m512i; W] = sums.map(|sum| _mm512_set1_epi32(-OFFSET * sum));
        for (levels, values) in levels.iter().zip(values) {
            let levels = load_levels(levels);
            for (product, four) in products.iter_mut().zip(values) {
                *product = _mm512_dpbusd_epi32(*product, levels, _mm512_set1_epi32(dword(four)));
            }
        }
        let of_half = load_scales(&panel.scales[h]);
        let minimum = panel.minima.get(h).map(|minima| load_scales(minima));
        for w in 0..W {
            let mut products = _mm512_mul_ps(_mm512_cvtepi32_ps(products[w]), of_half);
            if let Some(minimum) = minimum {
                products = _mm512_fmadd_ps(minimum, _mm512_set1_ps(sums[w] as f32), products);
            }
            totals[w] = _mm512_fmadd_ps(products, _mm512_set1_ps(scales[h / 2][w]), totals[w]);
        }
    }
    add(&panel.row_scales, totals, out);
}

/// `out += row_scales * totals`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add<const W: usize>(row_scales: &[f32; ROWS], totals: [__m512; W], out: &mut [[f32; ROWS]; W]) {
    let row_scales = load_scales(row_scales);
    for (out, total) in out.iter_mut().zip(totals) {
        let sum = _mm512_fmadd_ps(total, row_scales, load_scales(out));
        // SAFETY: the pointer is that of sixteen values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

#[inline(always)]
fn dword(four: &[i8; 4]) -> i32 {
    i32::from_ne_bytes(four.map(|value| value as u8))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_levels(Step(levels): &Step) -> __m512i {
    // SAFETY: the pointer is that of 64 bytes.
    unsafe { _mm512_loadu_si512(levels.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_scales(scales: &[f32; ROWS]) -> __m512 {
    // SAFETY: the pointer is that of sixteen values.
    unsafe { _mm512_loadu_ps(scales.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(Step(to): &mut Step, levels: __m512i) {
    // SAFETY: the pointer is that of 64 bytes.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), levels) }
}
