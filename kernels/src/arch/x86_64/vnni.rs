//! AVX-512 with byte permutations and integer dot products (VBMI, VNNI): 64 products an instruction.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. So levels are looked up with 128 added, and sums begin at `-128 sum x`.

use super::{
    fetch::fetch_ahead,
    vbmi::{TileLevels, in_registers, lookup, pairs},
    vnni_panel,
};
use crate::{
    arch::{
        integer::{TileRun, TilesDot},
        level_panel::{OFFSET, PanelKernels},
        units::{UnitRows, UnitsDot},
    },
    quantized_input::GROUP,
    scheme::TILE,
};
use std::arch::x86_64::*;

/// Dot products with units and with tiles, and products of panels, if the processor has them.
pub fn products() -> Option<(UnitsDot, TilesDot, PanelKernels)> {
    (is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni"))
    .then_some((units_dot, tiles_dot, vnni_panel::KERNELS))
}

fn units_dot(rows: UnitRows, out: &mut [f32]) {
    // SAFETY: `products` hands this function out only where the processor has the instruction set.
    unsafe { super::vnni_units::units_dot(rows, out) }
}

fn tiles_dot(run: TileRun) -> [f32; TILE] {
    // SAFETY: `products` hands this function out only where the processor has the instruction set.
    unsafe {
        match run.bits {
            2 => tiles_of_two_bits(run),
            3 => tiles::<3>(run),
            4 => tiles::<4>(run),
            _ => tiles::<5>(run),
        }
    }
}

/// A quarter of a tile, four rows, is one register of levels; each row's products fall into four lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn tiles<const K: usize>(run: TileRun) -> [f32; TILE] {
    run.check();
    let decoder = TileLevels::<K>::new(run.codebook.levels(), i8::MIN);
    let mut sums = [_mm512_setzero_ps(); 4];
    let groups = run.codes.chunks(GROUP / TILE * 32 * K).zip(run.x.values().as_chunks::<GROUP>().0);
    for (((tiles, values), scale), parts) in groups.zip(run.x.scales()).zip(run.x.sums()) {
        fetch_ahead(tiles, 0, GROUP / TILE * 32 * K);
        let mut products = [_mm512_set1_epi32(-(OFFSET / 4) * (parts[0] + parts[1])); 4];
        for (tile, values) in tiles.chunks_exact(32 * K).zip(values.as_chunks::<TILE>().0) {
            // SAFETY: the pointer is that of 16 bytes.
            let values = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(values.as_ptr().cast()) });
            for (quarter, product) in products.iter_mut().enumerate() {
                *product = _mm512_dpbusd_epi32(*product, decoder.quarter(tile, quarter), values);
            }
        }
        let scale = _mm512_set1_ps(*scale);
        for (sum, products) in sums.iter_mut().zip(products) {
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, *sum);
        }
    }
    let mut rows = [0.0; TILE];
    for (rows, sum) in rows.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
        let mut lanes = [0.0; 16];
        // SAFETY: the pointer is that of 16 values.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
        for (row, lanes) in rows.iter_mut().zip(lanes.as_chunks::<4>().0) {
            *row = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        }
    }
    rows
}

/// With two bits a weight, a tile is a register, and its windows need no permutation.
///
/// Each 64 bits hold two rows, and 27 of their 32 windows whole. The last quarter of the windows, with the other five, is taken from
/// the tile turned by 32 bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn tiles_of_two_bits(run: TileRun) -> [f32; TILE] {
    run.check();
    let table = in_registers(run.codebook.levels(), i8::MIN);
    let shifts = [0, 16, 32, 16]
        .map(|first: i64| _mm512_set1_epi64(0x0e0c_0a08_0604_0200 + first * 0x0101_0101_0101_0101));
    let mut sums = [_mm512_setzero_ps(); 2];
    let groups = run.codes.chunks(GROUP / TILE * 64).zip(run.x.values().as_chunks::<GROUP>().0);
    for (((tiles, values), scale), parts) in groups.zip(run.x.scales()).zip(run.x.sums()) {
        fetch_ahead(tiles, 0, GROUP / TILE * 64);
        let mut products = [_mm512_set1_epi32(-(OFFSET / 2) * (parts[0] + parts[1])); 2];
        for (tile, values) in
            tiles.as_chunks::<64>().0.iter().zip(values.as_chunks::<8>().0.as_chunks::<2>().0)
        {
            let values = values.map(|eight| _mm512_set1_epi64(i64::from_ne_bytes(eight.map(|v| v as u8))));
            // SAFETY: the pointer is that of 64 bytes.
            let tile = unsafe { _mm512_loadu_si512(tile.as_ptr().cast()) };
            let turned = _mm512_alignr_epi32(tile, tile, 1);
            for (quarter, shifts) in shifts.into_iter().enumerate() {
                let bits = if quarter == 3 { turned } else { tile };
                let levels = lookup(&table, pairs(shifts, bits));
                let product = &mut products[quarter / 2];
                *product = _mm512_dpbusd_epi32(*product, levels, values[quarter % 2]);
            }
        }
        let scale = _mm512_set1_ps(*scale);
        for (sum, products) in sums.iter_mut().zip(products) {
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, *sum);
        }
    }
    // Each row's products are in two lanes: those of even rows in the first register, of odd rows in the second.
    let mut rows = [0.0; TILE];
    for (odd, sum) in sums.into_iter().enumerate() {
        let mut lanes = [0.0; 16];
        // SAFETY: the pointer is that of 16 values.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
        for (rows, lanes) in rows.as_chunks_mut::<2>().0.iter_mut().zip(lanes.as_chunks::<2>().0) {
            rows[odd] = lanes[0] + lanes[1];
        }
    }
    rows
}
