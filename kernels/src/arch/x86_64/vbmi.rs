//! AVX-512 with byte permutations (VBMI): 64 windows of a trellis code at once.

use crate::arch::{DecodeTiles, tiles::Tiles};
use std::arch::x86_64::*;

/// The decoding of tiles, if the processor has it.
pub fn tiles() -> Option<DecodeTiles> {
    (is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi"))
    .then_some(decode)
}

/// A quarter of a tile a step: four rows.
fn decode(tiles: Tiles, out: &mut [f32]) {
    tiles.check(out);
    // SAFETY: `tiles` hands this function out only where the processor has the instruction set.
    unsafe {
        match tiles.bits {
            2 => instance::<2>(tiles, out),
            3 => instance::<3>(tiles, out),
            4 => instance::<4>(tiles, out),
            _ => instance::<5>(tiles, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn instance<const K: usize>(tiles: Tiles, out: &mut [f32]) {
    let Tiles { first, steps, stride, .. } = tiles;
    let rows = first..first + steps.len();
    let decoder = TileLevels::<K>::new(tiles.codebook.levels(), 0);
    for (t, tile) in tiles.codes.chunks_exact(32 * K).enumerate() {
        for quarter in rows.start / 4..rows.end.div_ceil(4) {
            let levels = decoder.quarter(tile, quarter);
            let four = [
                _mm512_castsi512_si128(levels),
                _mm512_extracti32x4_epi32(levels, 1),
                _mm512_extracti32x4_epi32(levels, 2),
                _mm512_extracti32x4_epi32(levels, 3),
            ];
            for (row, levels) in (4 * quarter..).zip(four) {
                if rows.contains(&row) {
                    let step = _mm512_set1_ps(steps[row - first]);
                    let weights = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels)), step);
                    // SAFETY: `check` made sure of 16 values for every row and tile.
                    unsafe {
                        _mm512_storeu_ps(out.as_mut_ptr().add((row - first) * stride + 16 * t), weights)
                    };
                }
            }
        }
    }
}

/// The levels of tiles of `K` bits a weight, a quarter of a tile at a time: 64 windows, each looked up by its lowest and its highest
/// four bits.
pub(super) struct TileLevels<const K: usize> {
    table: [__m512i; 4],
    shifts: __m512i,
    bytes: [__m512i; 4],
}

impl<const K: usize> TileLevels<K> {
    /// With the bits of `flip` flipped in every level.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn new(table: &[i8; 256], flip: i8) -> Self {
        Self {
            table: in_registers(table, flip),
            shifts: load(&Quarter::<K>::SHIFTS),
            bytes: std::array::from_fn(|quarter| load(&Quarter::<K>::BYTES[quarter])),
        }
    }

    /// The levels of four rows, one after the other.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub fn quarter(&self, tile: &[u8], quarter: usize) -> __m512i {
        let bytes = load_bytes(tile, Quarter::<K>::STARTS[quarter]);
        // Eight windows in each 64-bit lane: the bytes that they lie in, then the bits that each is looked up by. What has wrapped around
        // is in this register only if it is all of the tile.
        let lanes = if K == 2 || quarter < 3 {
            _mm512_permutexvar_epi8(self.bytes[quarter], bytes)
        } else {
            _mm512_permutex2var_epi8(bytes, self.bytes[quarter], load_bytes(tile, 0))
        };
        lookup(&self.table, pairs(self.shifts, lanes))
    }
}

/// The lowest and the highest four bits of windows that begin at these bits of their 64-bit lanes, as [`trellis::pair`] has them.
///
/// [`trellis::pair`]: crate::scheme::trellis::pair
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) fn pairs(shifts: __m512i, lanes: __m512i) -> __m512i {
    // Eight bits from each one's first on, and from its fifth: of these the upper four are the window's highest.
    let lowest = _mm512_multishift_epi64_epi8(shifts, lanes);
    let highest = _mm512_multishift_epi64_epi8(_mm512_add_epi8(shifts, _mm512_set1_epi8(4)), lanes);
    // Of each bit, that of `lowest` where the mask is set, else that of `highest`.
    _mm512_ternarylogic_epi64::<0xca>(_mm512_set1_epi8(0x0f), lowest, highest)
}

/// A table of levels for [`lookup`], with the bits of `flip` flipped in every level.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn in_registers(table: &[i8; 256], flip: i8) -> [__m512i; 4] {
    std::array::from_fn(|i| {
        let levels = load(table[64 * i..].first_chunk().expect("256 levels"));
        _mm512_xor_si512(levels, _mm512_set1_epi8(flip))
    })
}

/// The level of each byte in a table of 256.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) fn lookup(table: &[__m512i; 4], bytes: __m512i) -> __m512i {
    // A permutation looks at the lower seven bits of a byte; the eighth chooses between two of them.
    let lower = _mm512_permutex2var_epi8(table[0], bytes, table[1]);
    let upper = _mm512_permutex2var_epi8(table[2], bytes, table[3]);
    _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), lower, upper)
}

/// How the 64 windows of a quarter of a tile lie in its bytes: lane `e` of 64 bits holds windows `8e` to `8e + 7`.
struct Quarter<const K: usize>;

impl<const K: usize> Quarter<K> {
    /// Where 64 bytes of the tile begin in which a quarter lies, but for what has wrapped around.
    const STARTS: [usize; 4] = {
        let mut starts = [0; 4];
        let mut quarter = 0;
        while quarter < 4 {
            let (start, last) = (8 * K * quarter, 32 * K - 64);
            starts[quarter] = if start < last { start } else { last };
            quarter += 1;
        }
        starts
    };

    /// The bytes that each lane takes, for each quarter: eight from the start of its eight windows on. Those from 64 on
    /// are the tile's first ones again.
    const BYTES: [[i8; 64]; 4] = {
        let mut bytes = [[0; 64]; 4];
        let mut i = 0;
        while i < 256 {
            bytes[i / 64][i % 64] = (K * (i / 8) + i % 8 - Self::STARTS[i / 64]) as i8;
            i += 1;
        }
        bytes
    };

    /// The bit of its lane where each window begins.
    const SHIFTS: [i8; 64] = {
        let mut shifts = [0; 64];
        let mut i = 0;
        while i < 64 {
            shifts[i] = (K * (i % 8)) as i8;
            i += 1;
        }
        shifts
    };
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(bytes: &[i8; 64]) -> __m512i {
    // SAFETY: the pointer is that of 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// 64 bytes of a tile.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_bytes(tile: &[u8], start: usize) -> __m512i {
    let bytes: &[u8; 64] = tile[start..].first_chunk().expect("a tile has 64 bytes from here on");
    // SAFETY: the pointer is that of 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
