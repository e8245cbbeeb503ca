//! AVX2, with AVX-VNNI or without: dot products of tiles. A register holds the codes of some rows, and a level is two look-ups of 16 entries.
//!
//! Where some weights fill whole bytes, all windows that begin at the same bit of a byte are one shift of the tile's bytes: with two bits
//! a weight, window `4 j + p` is looked up by the four bits from bit `2 p` of byte `j` on, and by the same of byte `j + 1`. A register then
//! has every fourth (with four bits, every other) column of some rows, and the input is put into that order once for all 16 rows. With
//! three bits, eight weights fill three bytes, which are parted first. With five, each row is taken on its own.

use super::{
    avx2::{book, both, levels_by, levels_of, nibble, row_bytes},
    bytes::{Dot, Input},
    fetch::fetch_ahead,
};
use crate::{arch::integer::TileRun, quantized_input::GROUP, scheme::TILE};
use std::arch::x86_64::*;

/// # Safety
/// The processor has AVX2, FMA and `D`'s instruction set.
pub(super) unsafe fn tiles_dot<D: Dot>(run: TileRun) -> [f32; TILE] {
    run.check();
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match run.bits {
            2 => strip::<D, 2, 64, 2>(run),
            3 => strip::<D, 3, 96, 2>(run),
            4 => strip::<D, 4, 128, 4>(run),
            _ => strip::<D, 5, 160, 8>(run),
        }
    }
}

/// With tiles of `BYTES`, `32 K`, and `N` registers of sums for the 16 rows.
///
/// # Safety
/// The processor has `D`'s instruction set.
#[target_feature(enable = "avx2,fma")]
unsafe fn strip<D: Dot, const K: usize, const BYTES: usize, const N: usize>(run: TileRun) -> [f32; TILE] {
    const { assert!(BYTES == 32 * K) };
    let book = book(run.codebook, D::OFFSET as i8);
    let offset_of_lane = D::OFFSET / (N / 2) as i32;
    let mut sums = [_mm256_setzero_ps(); N];
    let groups = run.codes.chunks(GROUP / TILE * BYTES).zip(run.x.values().as_chunks::<GROUP>().0);
    for (((tiles, values), &scale), parts) in groups.zip(run.x.scales()).zip(run.x.sums()) {
        fetch_ahead(tiles, 0, GROUP / TILE * BYTES);
        // Out of the compiler's sight: it would take them from the registers that they were in, by permutations, where loads cost nothing.
        let x = &Inputs::new::<K>(values);
        let x = std::hint::black_box(x);
        let mut products = [_mm256_set1_epi32(-offset_of_lane * (parts[0] + parts[1])); N];
        for (t, tile) in tiles.as_chunks::<BYTES>().0.iter().enumerate() {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { add_tile::<D, K, BYTES, N>(tile, book, x, t, &mut products) };
        }
        let scale = _mm256_set1_ps(scale);
        for (sum, products) in sums.iter_mut().zip(products) {
            *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, *sum);
        }
    }
    let mut rows = [0.0; TILE];
    for (n, sum) in sums.into_iter().enumerate() {
        let mut lanes = [0.0; 8];
        // SAFETY: the pointer is that of eight values.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
        for (lane, value) in lanes.into_iter().enumerate() {
            rows[row_of::<K>(n, lane)] += value;
        }
    }
    rows
}

/// The row whose products fall into a lane of a register of sums.
const fn row_of<const K: usize>(register: usize, lane: usize) -> usize {
    match K {
        2 => 8 * register + lane,
        3 => 4 * register + lane / 4 * 8 + lane % 4,
        4 => 4 * register + lane / 2,
        _ => 2 * register + lane / 4,
    }
}

/// Adds the products of tile `t` of a group.
///
/// # Safety
/// The processor has `D`'s instruction set.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_tile<D: Dot, const K: usize, const BYTES: usize, const N: usize>(
    tile: &[u8; BYTES],
    book: [__m256i; 2],
    x: &Inputs,
    t: usize,
    sums: &mut [__m256i; N],
) {
    // SAFETY: the caller vouches for the instruction set.
    let dot = |sum, levels, x| unsafe { D::add(sum, levels, x) };
    match K {
        2 => {
            let x = [x.four(4 * t), x.four(4 * t + 1), x.four(4 * t + 2), x.four(4 * t + 3)];
            let [bytes, next, after] = three_registers::<BYTES, N>(tile);
            for (((sum, byte), next), after) in sums.iter_mut().zip(bytes).zip(next).zip(after) {
                let (lowest, highest) = (quarters(byte, next), quarters(next, after));
                for p in 0..4 {
                    *sum = dot(*sum, levels_by::<K>(book, lowest[p], highest[p]), x[p]);
                }
            }
        }
        4 => {
            let x = [x.eight(2 * t), x.eight(2 * t + 1)];
            let [bytes, next, _] = three_registers::<BYTES, N>(tile);
            for ((sum, byte), next) in sums.iter_mut().zip(bytes).zip(next) {
                *sum = dot(*sum, levels_by::<K>(book, nibble(byte), nibble(next)), x[0]);
                *sum = dot(*sum, levels_by::<K>(book, from::<4>(byte), from::<4>(next)), x[1]);
            }
        }
        3 => {
            let [a, b, c, d, e] = triples(tile);
            let mut pair = |p: usize, first, second| {
                // Columns 2 p, 8 + 2 p, 2 p + 1 and 9 + 2 p of eight rows, and of the other eight.
                let x = x.four(4 * t + p);
                sums[0] = dot(sums[0], _mm256_unpacklo_epi16(first, second), x);
                sums[1] = dot(sums[1], _mm256_unpackhi_epi16(first, second), x);
            };
            let level = |lowest, highest| levels_by::<K>(book, lowest, highest);
            let first = level(nibble(a), nibble(b));
            pair(0, first, level(from::<3>(a), from::<3>(b)));
            let first = level(across::<6, 2>(a, b), across::<6, 2>(b, c));
            pair(1, first, level(from::<1>(b), from::<1>(c)));
            let first = level(from::<4>(b), from::<4>(c));
            pair(2, first, level(across::<7, 1>(b, c), across::<7, 1>(c, d)));
            let first = level(from::<2>(c), from::<2>(d));
            pair(3, first, level(across::<5, 3>(c, d), across::<5, 3>(d, e)));
        }
        _ => {
            let x = x.sixteen(t);
            for (n, sum) in sums.iter_mut().enumerate() {
                let rows = _mm256_set_m128i(row_bytes::<K>(tile, 2 * n + 1), row_bytes::<K>(tile, 2 * n));
                *sum = dot(*sum, levels_of::<K>(rows, book), x);
            }
        }
    }
}

/// A group's inputs in the order that the codes ask for, and their sizes: of each tile, with two bits every fourth column from the first
/// on, then from the second on, ...; with three bits columns p, 8 + p, p + 1 and 9 + p for every other p; with four bits the even and
/// the odd ones.
struct Inputs {
    values: [u8; GROUP],
    sizes: [u8; GROUP],
}

impl Inputs {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new<const K: usize>(values: &[i8; GROUP]) -> Self {
        let order: [u8; TILE] = const {
            let (mut order, mut i) = ([0; TILE], 0);
            while i < TILE {
                order[i] = match K {
                    2 => i % 4 * 4 + i / 4,
                    3 => i / 4 * 2 + i % 4 / 2 + i % 2 * 8,
                    4 => i % 8 * 2 + i / 8,
                    _ => i,
                } as u8;
                i += 1;
            }
            order
        };
        let mut inputs = Self { values: [0; GROUP], sizes: [0; GROUP] };
        for start in [0, 32] {
            // SAFETY: the pointers are those of 32 bytes each.
            unsafe {
                let values = _mm256_loadu_si256(values.as_ptr().add(start).cast());
                let values = _mm256_shuffle_epi8(values, both(&order));
                let sizes = _mm256_abs_epi8(values);
                _mm256_storeu_si256(inputs.values.as_mut_ptr().add(start).cast(), values);
                _mm256_storeu_si256(inputs.sizes.as_mut_ptr().add(start).cast(), sizes);
            }
        }
        inputs
    }

    /// Four of them, again and again.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn four(&self, n: usize) -> Input {
        let all = |bytes: &[u8; GROUP]| _mm256_set1_epi32(i32::from_ne_bytes(bytes.as_chunks().0[n]));
        Input { values: all(&self.values), sizes: all(&self.sizes) }
    }

    /// Eight of them, again and again.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn eight(&self, n: usize) -> Input {
        let all = |bytes: &[u8; GROUP]| _mm256_set1_epi64x(i64::from_ne_bytes(bytes.as_chunks().0[n]));
        Input { values: all(&self.values), sizes: all(&self.sizes) }
    }

    /// Sixteen of them, twice.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn sixteen(&self, n: usize) -> Input {
        let all = |bytes: &[u8; GROUP]| both::<u8, TILE>(&bytes.as_chunks().0[n]);
        Input { values: all(&self.values), sizes: all(&self.sizes) }
    }
}

/// With three bits, eight weights fill three bytes: the first of each three, the second, the third, and the first and second of the next
/// three. The lower half of each is of rows 0 to 7.
#[inline]
#[target_feature(enable = "avx2")]
fn triples<const BYTES: usize>(tile: &[u8; BYTES]) -> [__m256i; 5] {
    let sixteens = tile.as_chunks::<16>().0;
    // SAFETY: the pointers are those of sixteen bytes each.
    let load = |n: usize| unsafe { _mm_loadu_si128(sixteens[n].as_ptr().cast()) };
    let runs = [
        _mm256_set_m128i(load(3), load(0)),
        _mm256_set_m128i(load(4), load(1)),
        _mm256_set_m128i(load(5), load(2)),
    ];
    let mut parted = [_mm256_setzero_si256(); 5];
    for (part, parted) in parted.iter_mut().enumerate().take(3) {
        for (run, bytes) in runs.into_iter().enumerate() {
            *parted = _mm256_or_si256(*parted, _mm256_shuffle_epi8(bytes, both(&PARTED[part][run])));
        }
    }
    // The code wraps around: after its last byte comes its first.
    for n in 0..2 {
        let turned = _mm256_permute2x128_si256::<0x21>(parted[n], parted[n]);
        parted[3 + n] = _mm256_alignr_epi8::<1>(turned, parted[n]);
    }
    parted
}

/// Where the first, second and third bytes of sixteen triples lie in three runs of sixteen bytes; 128, for a zero, where in another run.
const PARTED: [[[u8; 16]; 3]; 3] = {
    let (mut parted, mut i) = ([[[128; 16]; 3]; 3], 0);
    while i < 48 {
        parted[i % 3][i / 16][i / 3] = (i % 16) as u8;
        i += 1;
    }
    parted
};

/// Four bits from bit `R` of each byte on.
#[inline]
#[target_feature(enable = "avx2")]
fn from<const R: i32>(bytes: __m256i) -> __m256i {
    nibble(_mm256_srli_epi16::<R>(bytes))
}

/// The upper `L` bits of each byte, from bit `R`, `8 - L`, on, and above them the lowest of `next`: four together.
#[inline]
#[target_feature(enable = "avx2")]
fn across<const R: i32, const L: i32>(bytes: __m256i, next: __m256i) -> __m256i {
    const { assert!(R + L == 8) };
    let own = (1 << L) - 1;
    let bytes = _mm256_and_si256(_mm256_srli_epi16::<R>(bytes), _mm256_set1_epi8(own));
    let next = _mm256_and_si256(_mm256_slli_epi16::<L>(next), _mm256_set1_epi8(15 - own));
    _mm256_or_si256(bytes, next)
}

/// Four bits from bits 0, 2, 4 and 6 of each byte on; `next` are the bytes after them.
#[inline]
#[target_feature(enable = "avx2")]
fn quarters(bytes: __m256i, next: __m256i) -> [__m256i; 4] {
    // What crosses into the next byte: a shift of words has it for even bytes, and for odd ones that of the words a byte on.
    let (even, odd) = (_mm256_srli_epi16(bytes, 6), _mm256_slli_epi16(next, 2));
    [
        nibble(bytes),
        from::<2>(bytes),
        from::<4>(bytes),
        nibble(_mm256_blendv_epi8(even, odd, _mm256_set1_epi16(0xff00u16.cast_signed()))),
    ]
}

/// The registers of a tile, those that begin a byte later, and two.
#[inline]
#[target_feature(enable = "avx2")]
fn three_registers<const BYTES: usize, const N: usize>(tile: &[u8; BYTES]) -> [[__m256i; N]; 3] {
    assert!(BYTES == 32 * N);
    // SAFETY: the pointers are those of 32 bytes each, the last of the second and third kind left out.
    let load = |at: usize| unsafe { _mm256_loadu_si256(tile.as_ptr().add(at).cast()) };
    // Not by `from_fn`: what it calls is compiled without the instruction set.
    let mut registers = [[load(0); N]; 3];
    for (later, registers) in registers.iter_mut().enumerate() {
        let within = if later == 0 { N } else { N - 1 };
        registers[..within].iter_mut().enumerate().for_each(|(n, register)| *register = load(32 * n + later));
    }
    // The code wraps around: after its last byte comes its first.
    let [bytes, next, after] = &mut registers;
    let turned = _mm256_permute2x128_si256::<0x21>(bytes[N - 1], bytes[0]);
    next[N - 1] = _mm256_alignr_epi8::<1>(turned, bytes[N - 1]);
    after[N - 1] = _mm256_alignr_epi8::<2>(turned, bytes[N - 1]);
    registers
}
