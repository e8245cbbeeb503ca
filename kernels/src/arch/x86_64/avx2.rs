//! AVX2 with fused multiply-add: eight lanes.

use super::bytes::InPairs;
use crate::arch::{
    Kernels,
    generic::{self, Panel},
    integer::TileRun,
    page,
    tiles::{Tiles, Windows, row_bits},
    units::UnitRows,
    vector::Vector,
};
use crate::scheme::{TILE, UNIT, trellis::Codebook};
use std::arch::x86_64::*;

/// The kernels, if the processor has it.
pub fn kernels() -> Option<Kernels> {
    (is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("bmi1"))
    .then_some(Kernels {
        isa: "avx2",
        panel_dot,
        lookup,
        tiles: decode_tiles,
        units_dot,
        tiles_dot,
        panels: None,
        pages: page::x86_64::avx2().unwrap_or(page::SCALAR),
    })
}

impl Vector for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for the instruction set and the memory.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self), _mm256_extractf128_ps(self, 1));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)))
        }
    }
}

fn panel_dot(panel: Panel, y: &mut [f32]) {
    #[target_feature(enable = "avx2,fma")]
    fn instance(panel: Panel, y: &mut [f32]) {
        // SAFETY: this function has the instruction set.
        unsafe { generic::panel_dot::<__m256, 2>(panel, y) }
    }
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { instance(panel, y) }
}

/// Sixteen levels, times a step.
#[inline]
#[target_feature(enable = "avx2")]
fn store_levels(levels: __m128i, step: __m256, out: &mut [f32; 16]) {
    let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(levels));
    let high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(levels, levels)));
    // SAFETY: the pointers are those of eight f32 each.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(low, step));
        _mm256_storeu_ps(out.as_mut_ptr().add(8), _mm256_mul_ps(high, step));
    }
}

/// Sixteen codes a step: the table is one register of bytes, which `pshufb` indexes with the codes.
fn lookup(codes: &[u8; UNIT], table: &[i8; 16], step: f32, out: &mut [f32; UNIT]) {
    #[target_feature(enable = "avx2")]
    fn instance(codes: &[u8; UNIT], table: &[i8; 16], step: f32, out: &mut [f32; UNIT]) {
        let step = _mm256_set1_ps(step);
        for (codes, out) in codes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            // SAFETY: the pointers are those of arrays of 16 bytes.
            let (table, codes) =
                unsafe { (_mm_loadu_si128(table.as_ptr().cast()), _mm_loadu_si128(codes.as_ptr().cast())) };
            store_levels(_mm_shuffle_epi8(table, codes), step, out);
        }
    }
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { instance(codes, table, step, out) }
}

/// Two rows of a tile a step, one in each half of a register.
fn decode_tiles(tiles: Tiles, out: &mut [f32]) {
    #[target_feature(enable = "avx2")]
    fn instance<const K: usize>(tiles: Tiles, out: &mut [f32]) {
        let Tiles { first, steps, stride, .. } = tiles;
        let book = book(tiles.codebook, 0);
        for (t, tile) in tiles.codes.chunks_exact(32 * K).enumerate() {
            for (pair, steps) in steps.chunks(2).enumerate() {
                let row = first + 2 * pair;
                let high = row_bytes::<K>(tile, row + steps.len() - 1);
                let levels = levels_of::<K>(_mm256_set_m128i(high, row_bytes::<K>(tile, row)), book);
                let halves = [_mm256_castsi256_si128(levels), _mm256_extracti128_si256(levels, 1)];
                for (r, (&step, half)) in steps.iter().zip(halves).enumerate() {
                    // SAFETY: `check` made sure of 16 values for every row and tile.
                    let out = unsafe { &mut *out.as_mut_ptr().add((2 * pair + r) * stride + 16 * t).cast() };
                    store_levels(half, _mm256_set1_ps(step), out);
                }
            }
        }
    }
    tiles.check(out);
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe {
        match tiles.bits {
            2 => instance::<2>(tiles, out),
            3 => instance::<3>(tiles, out),
            4 => instance::<4>(tiles, out),
            _ => instance::<5>(tiles, out),
        }
    }
}

/// Sixteen bytes, in both halves of a register.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn both<T, const N: usize>(bytes: &[T; N]) -> __m256i {
    const { assert!(size_of::<[T; N]>() == 16) };
    // SAFETY: sixteen bytes are readable.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// A codebook's two tables, with the bits of `flip`, 0 or -128, flipped in every level.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn book(codebook: &Codebook, flip: i8) -> [__m256i; 2] {
    // Where levels are sums, too: adding 128 to a byte flips its highest bit.
    [_mm256_xor_si256(both(codebook.low()), _mm256_set1_epi8(flip)), both(codebook.high())]
}

/// [`row_bits`] in a register.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn row_bytes<const K: usize>(tile: &[u8], row: usize) -> __m128i {
    match tile.get(2 * K * row..2 * K * row + 16) {
        // SAFETY: the pointer is that of sixteen bytes.
        Some(bytes) => unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) },
        None => {
            let bits = row_bits::<K>(tile, row);
            _mm_set_epi64x((bits >> 64) as i64, bits as i64)
        }
    }
}

/// Eight bits from the start of each window of a row in each half.
#[inline]
#[target_feature(enable = "avx2")]
fn eights<const K: usize>(bits: __m256i) -> __m256i {
    let (even, odd) = (both(&Windows::<K, 0>::BYTES), both(&Windows::<K, 1>::BYTES));
    let (even, odd) = (_mm256_shuffle_epi8(bits, even), _mm256_shuffle_epi8(bits, odd));
    let even = _mm256_mullo_epi16(even, both(&Windows::<K, 0>::FACTORS));
    let odd = _mm256_mullo_epi16(odd, both(&Windows::<K, 1>::FACTORS));
    let upper = _mm256_set1_epi16(0xff00u16.cast_signed());
    _mm256_blendv_epi8(_mm256_srli_epi16(even, 8), odd, upper)
}

/// The levels of a row in each half, from its bits, by the two tables of a codebook.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn levels_of<const K: usize>(bits: __m256i, book: [__m256i; 2]) -> __m256i {
    // The highest four bits of a window begin a byte after the lowest.
    let (lowest, highest) = (eights::<K>(bits), eights::<K>(_mm256_srli_si256::<1>(bits)));
    levels_by::<K>(book, nibble(lowest), nibble(highest))
}

/// The level of each window, from its lowest and its highest four bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn levels_by<const K: usize>(
    [low, high]: [__m256i; 2],
    lowest: __m256i,
    highest: __m256i,
) -> __m256i {
    let (low, high) = (_mm256_shuffle_epi8(low, lowest), _mm256_shuffle_epi8(high, highest));
    if K == 2 { _mm256_xor_si256(low, high) } else { _mm256_add_epi8(low, high) }
}

/// The lower four bits of each byte.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn nibble(bytes: __m256i) -> __m256i {
    _mm256_and_si256(bytes, _mm256_set1_epi8(15))
}

fn units_dot(rows: UnitRows, out: &mut [f32]) {
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { super::avx2_units::units_dot::<InPairs>(rows, out) }
}

fn tiles_dot(run: TileRun) -> [f32; TILE] {
    // SAFETY: `kernels` hands this function out only where the processor has the instruction set.
    unsafe { super::avx2_tiles::tiles_dot::<InPairs>(run) }
}
