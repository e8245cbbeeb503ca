//! AVX-512 with VBMI, VBMI2 and VNNI: dot products of tiles.
//!
//! Where some weights fill whole bytes, all windows that begin at the same bit of a byte are one shift of the tile's bytes, and a
//! window's highest four bits are those that the next byte's window begins with: with two bits a weight, window `4 j + p` is looked up by
//! the four bits from bit `2 p` of byte `j` on, and by the same of byte `j + 1`. A register then has every fourth (with four bits, every
//! other) column of its rows, and the input is put into that order.

use super::{
    fetch::fetch_ahead,
    vbmi::{Book, TileLevels, load, repeated},
};
use crate::{
    arch::{integer::TileRun, level_panel::OFFSET},
    quantized_input::GROUP,
    scheme::TILE,
};
use std::{arch::x86_64::*, hint::black_box};

/// Tiles of a group of inputs.
const TILES: usize = GROUP / TILE;

/// # Safety
/// The processor has AVX-512 F, BW, VBMI, VBMI2 and VNNI.
pub(super) unsafe fn tiles_dot(run: TileRun) -> [f32; TILE] {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match run.bits {
            2 => of_two_bits(run),
            3 => by_quarters::<3>(run),
            4 => of_four_bits(run),
            _ => by_quarters::<5>(run),
        }
    }
}

/// A tile is a register, and each of its 16 rows a lane of four bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,avx512vnni")]
fn of_two_bits(run: TileRun) -> [f32; TILE] {
    run.check();
    let book = Book::<2>::new(run.codebook, i8::MIN);
    let turns = [load(&const { from(1) }), load(&const { from(2) }), load(&const { from(3) })];
    let mut sums = [_mm512_setzero_ps()];
    let groups = run.codes.chunks(TILES * 64).zip(run.x.values().as_chunks::<GROUP>().0);
    for (((tiles, values), scale), parts) in groups.zip(run.x.scales()).zip(run.x.sums()) {
        fetch_ahead(tiles, 0, TILES * 64);
        // Of each tile's 16 columns every fourth, four times.
        let x = &by_columns::<4>(values);
        let fours = black_box(x).as_chunks::<4>().0.as_chunks::<4>().0;
        let mut products = [_mm512_setzero_si512(); 4];
        products[0] = _mm512_set1_epi32(-OFFSET * (parts[0] + parts[1]));
        for (tile, fours) in tiles.as_chunks::<64>().0.iter().zip(fours) {
            let bytes = load(tile);
            // The code wraps around: after its last byte comes its first.
            let next = _mm512_permutexvar_epi8(turns[0], bytes);
            let third = _mm512_permutexvar_epi8(turns[1], bytes);
            let fourth = _mm512_permutexvar_epi8(turns[2], bytes);
            let levels = [
                book.levels(bytes, next),
                book.levels(_mm512_srli_epi16::<2>(bytes), _mm512_srli_epi16::<2>(next)),
                book.levels(_mm512_srli_epi16::<4>(bytes), _mm512_srli_epi16::<4>(next)),
                // What crosses into the next byte crosses, in every other one, into the next word.
                book.levels(_mm512_shrdi_epi16::<6>(bytes, third), _mm512_shrdi_epi16::<6>(next, fourth)),
            ];
            for ((product, levels), &four) in products.iter_mut().zip(levels).zip(fours) {
                *product = _mm512_dpbusd_epi32(*product, levels, _mm512_set1_epi32(i32::from_ne_bytes(four)));
            }
        }
        let [first, second, third, fourth] = products;
        let (left, right) = (_mm512_add_epi32(first, second), _mm512_add_epi32(third, fourth));
        add_scaled(&mut sums, [_mm512_add_epi32(left, right)], *scale);
    }
    lanes(sums[0])
}

/// Half a tile is a register, and each of its eight rows a lane of eight bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn of_four_bits(run: TileRun) -> [f32; TILE] {
    run.check();
    let book = Book::<4>::new(run.codebook, i8::MIN);
    let turn = load(&const { from(1) });
    let mut sums = [_mm512_setzero_ps(); 2];
    let groups = run.codes.chunks(TILES * 128).zip(run.x.values().as_chunks::<GROUP>().0);
    for (((tiles, values), scale), parts) in groups.zip(run.x.scales()).zip(run.x.sums()) {
        fetch_ahead(tiles, 0, TILES * 128);
        // Of each tile's 16 columns the even and the odd ones.
        let x = &by_columns::<2>(values);
        let eights = black_box(x).as_chunks::<8>().0.as_chunks::<2>().0;
        let mut products = [_mm512_set1_epi32(-(OFFSET / 2) * (parts[0] + parts[1])); 2];
        for (tile, eights) in tiles.as_chunks::<128>().0.iter().zip(eights) {
            let halves = tile.as_chunks::<64>().0;
            let bytes = [load(&halves[0]), load(&halves[1])];
            // Registers that begin a byte later. The code wraps around: after its last byte comes its first.
            let nexts = [
                load(tile[1..].first_chunk().expect("half a tile")),
                _mm512_permutex2var_epi8(bytes[1], turn, bytes[0]),
            ];
            let [even, odd] = [
                _mm512_set1_epi64(i64::from_ne_bytes(eights[0])),
                _mm512_set1_epi64(i64::from_ne_bytes(eights[1])),
            ];
            for ((product, bytes), next) in products.iter_mut().zip(bytes).zip(nexts) {
                *product = _mm512_dpbusd_epi32(*product, book.levels(bytes, next), even);
                let (bytes, next) = (_mm512_srli_epi16::<4>(bytes), _mm512_srli_epi16::<4>(next));
                *product = _mm512_dpbusd_epi32(*product, book.levels(bytes, next), odd);
            }
        }
        add_scaled(&mut sums, products, *scale);
    }
    let mut rows = [0.0; TILE];
    for (rows, sum) in rows.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        for (row, lanes) in rows.iter_mut().zip(lanes(sum).as_chunks::<2>().0) {
            *row = lanes[0] + lanes[1];
        }
    }
    rows
}

/// A quarter of a tile, four rows, is one register of levels; each row's products fall into four lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn by_quarters<const K: usize>(run: TileRun) -> [f32; TILE] {
    run.check();
    let decoder = TileLevels::<K>::new(run.codebook, i8::MIN);
    let mut sums = [_mm512_setzero_ps(); 4];
    let groups = run.codes.chunks(TILES * 32 * K).zip(run.x.values().as_chunks::<GROUP>().0);
    for (((tiles, values), scale), parts) in groups.zip(run.x.scales()).zip(run.x.sums()) {
        fetch_ahead(tiles, 0, TILES * 32 * K);
        let mut products = [_mm512_set1_epi32(-(OFFSET / 4) * (parts[0] + parts[1])); 4];
        for (tile, values) in tiles.chunks_exact(32 * K).zip(values.as_chunks::<TILE>().0) {
            let values = repeated(values);
            for (quarter, product) in products.iter_mut().enumerate() {
                *product = _mm512_dpbusd_epi32(*product, decoder.quarter(tile, quarter), values);
            }
        }
        add_scaled(&mut sums, products, *scale);
    }
    let mut rows = [0.0; TILE];
    for (rows, sum) in rows.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
        for (row, lanes) in rows.iter_mut().zip(lanes(sum).as_chunks::<4>().0) {
            *row = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        }
    }
    rows
}

/// `sums += scale * products`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_scaled<const N: usize>(sums: &mut [__m512; N], products: [__m512i; N], scale: f32) {
    let scale = _mm512_set1_ps(scale);
    for (sum, products) in sums.iter_mut().zip(products) {
        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, *sum);
    }
}

/// The numbers from this one on, to index 64 bytes that are to begin there.
const fn from(start: usize) -> [u8; 64] {
    let (mut numbers, mut i) = ([0; 64], 0);
    while i < 64 {
        numbers[i] = (start + i) as u8;
        i += 1;
    }
    numbers
}

/// Every `EVERY`th column of a tile from the first on, then from the second on, ...; for each of four tiles.
const fn every<const EVERY: usize>() -> [u8; GROUP] {
    let (mut order, mut i) = ([0; GROUP], 0);
    while i < GROUP {
        let column = i % TILE;
        order[i] = (column % (TILE / EVERY) * EVERY + column / (TILE / EVERY)) as u8;
        i += 1;
    }
    order
}

/// A group's values with those of each tile in the order of [`every`].
///
/// To be read out of the compiler's sight, which would take parts of it from the register that it was in, by permutations, where loads
/// cost nothing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn by_columns<const EVERY: usize>(values: &[i8; GROUP]) -> [u8; GROUP] {
    let ordered = _mm512_shuffle_epi8(load(values), load(&const { every::<EVERY>() }));
    let mut bytes = [0; GROUP];
    // SAFETY: the pointer is that of 64 bytes.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), ordered) };
    bytes
}

#[inline]
#[target_feature(enable = "avx512f")]
fn lanes(sums: __m512) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    // SAFETY: the pointer is that of 16 values.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sums) };
    lanes
}
