//! AVX-512 with byte permutations (VBMI): 64 windows of a trellis code at once.

use crate::{
    arch::{DecodeTiles, tiles::Tiles},
    scheme::trellis::Codebook,
};
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
    let decoder = TileLevels::<K>::new(tiles.codebook, 0);
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

/// The levels of tiles of `K` bits a weight, a quarter of a tile at a time.
pub(super) struct TileLevels<const K: usize> {
    book: Book<K>,
    /// The bit of its 64-bit lane where each window's lowest four bits begin, and its highest.
    shifts: [__m512i; 2],
    bytes: [__m512i; 4],
}

impl<const K: usize> TileLevels<K> {
    /// With the bits of `flip`, 0 or -128, flipped in every level.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn new(codebook: &Codebook, flip: i8) -> Self {
        let lowest = load(&Quarter::<K>::SHIFTS);
        Self {
            book: Book::new(codebook, flip),
            shifts: [lowest, _mm512_add_epi8(lowest, _mm512_set1_epi8(8))],
            bytes: [
                load(&Quarter::<K>::BYTES[0]),
                load(&Quarter::<K>::BYTES[1]),
                load(&Quarter::<K>::BYTES[2]),
                load(&Quarter::<K>::BYTES[3]),
            ],
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
        let [lowest, highest] = self.shifts;
        self.book
            .levels(_mm512_multishift_epi64_epi8(lowest, lanes), _mm512_multishift_epi64_epi8(highest, lanes))
    }
}

/// A codebook's two tables, each repeated to fill a register: a permutation looks at the lower six bits of a byte, of which then only
/// four matter, so that no mask is needed.
#[derive(Clone, Copy)]
pub(super) struct Book<const K: usize> {
    low: __m512i,
    high: __m512i,
}

impl<const K: usize> Book<K> {
    /// With the bits of `flip`, 0 or -128, flipped in every level.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn new(codebook: &Codebook, flip: i8) -> Self {
        // Where levels are sums, too: adding 128 to a byte flips its highest bit.
        let low = _mm512_xor_si512(repeated(codebook.low()), _mm512_set1_epi8(flip));
        Self { low, high: repeated(codebook.high()) }
    }

    /// The levels of windows whose lowest and highest four bits are the lowest of each of these bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub fn levels(&self, lowest: __m512i, highest: __m512i) -> __m512i {
        let low = _mm512_permutexvar_epi8(lowest, self.low);
        let high = _mm512_permutexvar_epi8(highest, self.high);
        if K == 2 { _mm512_xor_si512(low, high) } else { _mm512_add_epi8(low, high) }
    }
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

/// Sixteen bytes, four times.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn repeated(bytes: &[i8; 16]) -> __m512i {
    // SAFETY: the pointer is that of sixteen bytes.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load<T>(bytes: &[T; 64]) -> __m512i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: the pointer is that of 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// 64 bytes of a tile.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_bytes(tile: &[u8], start: usize) -> __m512i {
    load(tile[start..].first_chunk().expect("a tile has 64 bytes from here on"))
}
