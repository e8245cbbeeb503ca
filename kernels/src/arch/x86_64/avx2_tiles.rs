//! AVX2: dot products of tiles, with the levels of neighbouring weights looked up together in memory.
//!
//! A look-up of one of 256 bytes in registers takes 16 `vpshufb` and as many operations to choose among them. A load from the first-level
//! cache takes less for two weights, and one from the second for four.

use super::{
    avx2_units::{products, sum_pairs},
    fetch::fetch_ahead,
};
use crate::{
    arch::{integer::TileRun, neighbours::Neighbours, tiles::row_bits},
    quantized_input::GROUP,
    scheme::TILE,
};
use std::arch::x86_64::*;

/// # Safety
/// The processor has AVX2 and FMA.
pub(super) unsafe fn tiles_dot(run: TileRun) -> [f32; TILE] {
    run.check();
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match run.bits {
            2 => all::<2>(run),
            3 => all::<3>(run),
            4 => all::<4>(run),
            _ => all::<5>(run),
        }
    }
}

/// Two rows of a tile a step, one in each half of a register; a row's products fall into the four lanes of its half.
#[target_feature(enable = "avx2,fma")]
fn all<const K: usize>(run: TileRun) -> [f32; TILE] {
    let table = Table::new(run.neighbours.get_or_init(|| Neighbours::new(K, run.table)), K);
    let mut sums = [_mm256_setzero_ps(); TILE / 2];
    let groups = run.codes.chunks(GROUP / TILE * 32 * K).zip(run.x.values().as_chunks::<GROUP>().0);
    for ((tiles, values), &scale) in groups.zip(run.x.scales()) {
        fetch_ahead(tiles, 0, GROUP / TILE * 32 * K);
        let scale = _mm256_set1_ps(scale);
        // SAFETY: the pointers are those of sixteen bytes each.
        let values: [__m256i; GROUP / TILE] = std::array::from_fn(|t| unsafe {
            _mm256_broadcastsi128_si256(_mm_loadu_si128(values[t * TILE..][..TILE].as_ptr().cast()))
        });
        for (pair, sum) in sums.iter_mut().enumerate() {
            let mut integers = _mm256_setzero_si256();
            for (tile, values) in tiles.chunks_exact(32 * K).zip(values) {
                let row = |row| levels::<K>(row_bits::<K>(tile, row), table);
                let levels = _mm256_set_m128i(row(2 * pair + 1), row(2 * pair));
                integers = _mm256_add_epi32(integers, sum_pairs(products(levels, values)));
            }
            *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers), scale, *sum);
        }
    }
    let mut rows = [0.0; TILE];
    for (rows, sum) in rows.as_chunks_mut::<2>().0.iter_mut().zip(sums) {
        let mut lanes = [0.0; 8];
        // SAFETY: the pointer is that of eight values.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
        for (row, lanes) in rows.iter_mut().zip(lanes.as_chunks::<4>().0) {
            *row = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        }
    }
    rows
}

/// The table of a code.
#[derive(Clone, Copy)]
enum Table<'a> {
    Four(&'a [[i8; 4]; 1 << 14]),
    /// An entry for each code of `8 + K` bits.
    Two(&'a [[i8; 2]]),
}

impl<'a> Table<'a> {
    /// # Panics
    /// When the table is that of another code.
    fn new(neighbours: &'a Neighbours, bits: usize) -> Self {
        match neighbours {
            Neighbours::Four(table) if bits == 2 => {
                Self::Four(table.as_slice().try_into().expect("an entry for each code"))
            }
            Neighbours::Two(table) if table.len() == 1 << (8 + bits) => Self::Two(table),
            _ => panic!("the table of another code than one of {bits} bits"),
        }
    }
}

/// The levels of a row's 16 weights of `K` bits, from its bits.
#[inline]
#[target_feature(enable = "avx2")]
fn levels<const K: usize>(bits: u128, table: Table) -> __m128i {
    match table {
        Table::Four(table) => {
            let bits = bits as u64;
            let four = |i: u32| {
                let levels = table[(bits >> (8 * i)) as usize & 0x3fff];
                i32::from_ne_bytes(levels.map(|level| level as u8))
            };
            _mm_setr_epi32(four(0), four(1), four(2), four(3))
        }
        Table::Two(table) => {
            // Eight weights and what the last of them sees beyond its own bits are 43 bits at most.
            let halves = [bits as u64, (bits >> (8 * K)) as u64];
            let two = |i: usize| {
                let code = (halves[i / 4] >> (2 * K * (i % 4))) as usize & ((1 << (8 + K)) - 1);
                // SAFETY: `Table::new` has seen to it that there is an entry for each code of `8 + K` bits.
                let levels = unsafe { *table.get_unchecked(code) };
                i16::from_ne_bytes(levels.map(|level| level as u8))
            };
            _mm_setr_epi16(two(0), two(1), two(2), two(3), two(4), two(5), two(6), two(7))
        }
    }
}
