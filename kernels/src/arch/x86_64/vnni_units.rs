//! AVX-512 with byte permutations and integer dot products: a unit of 64 weights in about seven instructions.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. So levels are looked up with 128 added.

use super::{
    fetch::{SidePace, fetch_units_ahead},
    vbmi::load,
};
use crate::{
    arch::{
        level_panel::OFFSET,
        units::{BLOCK, UnitRow, UnitRows},
    },
    scheme::UNIT,
};
use std::arch::x86_64::*;

/// # Safety
/// The processor has AVX-512 F, BW, VL, VBMI and VNNI.
pub(super) unsafe fn units_dot(rows: UnitRows, out: &mut [f32]) {
    rows.check(out.len());
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match rows.bits {
            2 => all::<2>(&rows, out),
            3 => all::<3>(&rows, out),
            4 => all::<4>(&rows, out),
            _ => all::<8>(&rows, out),
        }
    }
}

/// Rows whose sums are added up together.
const ROWS: usize = 4;

/// One row after the other, as they lie in memory: taken at the same time, they would be that many short streams, of which memory delivers
/// less.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn all<const BITS: usize>(rows: &UnitRows, out: &mut [f32]) {
    if rows.x.scales().is_empty() {
        return out.fill(0.0);
    }
    let (tables, pace) = (UnitLevels::new(rows.table, BITS), SidePace::new(rows));
    let (whole, rest) = out.as_chunks_mut::<ROWS>();
    let tail = ROWS * whole.len();
    for (i, out) in whole.iter_mut().enumerate() {
        *out = lane_sums(match rows.group < UNIT {
            true => in_halves::<BITS, ROWS>(rows, &tables, pace, ROWS * i),
            false => in_units::<BITS, ROWS>(rows, &tables, pace, ROWS * i),
        });
    }
    for (i, out) in rest.iter_mut().enumerate() {
        let [sum] = match rows.group < UNIT {
            true => in_halves::<BITS, 1>(rows, &tables, pace, tail + i),
            false => in_units::<BITS, 1>(rows, &tables, pace, tail + i),
        };
        [*out, ..] = lane_sums([sum; ROWS]);
    }
}

/// The sum of each register's lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn lane_sums([a, b, c, d]: [__m512; ROWS]) -> [f32; ROWS] {
    // Quarters 0 and 2 of both, and 1 and 3: what is added up then is of the first in the lower half, of the second in the upper.
    let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
    let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
    // A quarter for each.
    let all = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
    let all = _mm512_add_ps(all, _mm512_permute_ps::<0b01_00_11_10>(all));
    let all = _mm512_add_ps(all, _mm512_permute_ps::<0b10_11_00_01>(all));
    let mut lanes = [0.0; 16];
    store(&mut lanes, all);
    [lanes[0], lanes[4], lanes[8], lanes[12]]
}

/// `R` rows from `first` on, of groups of whole units: the product of each is the sum of the lanes.
///
/// The scales of the next block, of this row or the next, are prepared before the products of a block: they take long to get there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn in_units<const BITS: usize, const R: usize>(
    rows: &UnitRows,
    tables: &UnitLevels,
    pace: SidePace,
    first: usize,
) -> [__m512; R] {
    let values = rows.x.values().as_chunks::<UNIT>().0;
    let (mut totals, mut scales) = ([_mm512_setzero_ps(); R], [[0f32; BLOCK]; 2]);
    let mut row = rows.row(first);
    let mut sides = [rows.prepare(&row, 0, &mut scales[0]), _mm512_setzero_ps()];
    let mut now = 0;
    for (r, total) in totals.iter_mut().enumerate() {
        let next_row = rows.row(first + (r + 1).min(R - 1));
        let mut sums = [sides[now], _mm512_setzero_ps()];
        for start in (0..values.len()).step_by(BLOCK) {
            fetch_units_ahead(&row, pace, BITS, start);
            let next = 1 - now;
            if start + BLOCK < values.len() {
                let side = rows.prepare(&row, start + BLOCK, &mut scales[next]);
                sums[1] = _mm512_add_ps(sums[1], side);
            } else if r + 1 < R {
                sides[next] = rows.prepare(&next_row, 0, &mut scales[next]);
            }
            let units = &values[start..values.len().min(start + BLOCK)];
            let codes = &row.codes[start * 8 * BITS..];
            // Two sums, so that an addition need not wait for the one before.
            let (pairs, last) = units.as_chunks::<2>();
            let pairs = codes.chunks_exact(16 * BITS).zip(pairs).zip(scales[now].as_chunks::<2>().0);
            for ((codes, values), scale) in pairs {
                let scale = [_mm512_set1_ps(scale[0]), _mm512_set1_ps(scale[1])];
                sums[0] = tables.add::<BITS>(sums[0], &codes[..8 * BITS], &values[0], scale[0]);
                sums[1] = tables.add::<BITS>(sums[1], &codes[8 * BITS..], &values[1], scale[1]);
            }
            if let [values] = last {
                let u = units.len() - 1;
                let scale = _mm512_set1_ps(scales[now][u]);
                sums[0] = tables.add::<BITS>(sums[0], &codes[u * 8 * BITS..], values, scale);
            }
            now = next;
        }
        *total = _mm512_mul_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_set1_ps(1.0 / rows.level_unit));
        row = next_row;
    }
    totals
}

/// [`in_units`] for groups of half a unit, which may have minima.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn in_halves<const BITS: usize, const R: usize>(
    rows: &UnitRows,
    tables: &UnitLevels,
    pace: SidePace,
    first: usize,
) -> [__m512; R] {
    let (x, values) = (rows.x, rows.x.values().as_chunks::<UNIT>().0);
    let (half_scales, half_sums) = (x.half_scales().as_flattened(), x.half_sums().as_flattened());
    let (unit, correction) = (_mm512_set1_ps(rows.level_unit), _mm512_set1_ps(-OFFSET as f32));
    let mut totals = [_mm512_setzero_ps(); R];
    for (r, total) in totals.iter_mut().enumerate() {
        let (row, mut sums) = (rows.row(first + r), [_mm512_setzero_ps(); 2]);
        let halves = half_scales.as_chunks::<BLOCK>().0.iter().zip(half_sums.as_chunks::<BLOCK>().0);
        let mut halves = halves.map(|(scales, sums)| [of_sixteen(scales), of_sixteen(sums)]);
        for start in (0..values.len()).step_by(BLOCK) {
            fetch_units_ahead(&row, pace, BITS, start);
            let mut next = || halves.next().expect("halves of whole blocks");
            let (lower, upper) = (next(), next());
            let mut scales = [[0f32; BLOCK]; 2];
            for (part, [of_x, sums_of_x]) in [lower, upper].into_iter().enumerate() {
                let first = 2 * start + BLOCK * part;
                let stored = floats(block_from(row.scales, first));
                store(&mut scales[part], _mm512_mul_ps(stored, of_x));
                sums[0] = _mm512_fmadd_ps(stored, _mm512_mul_ps(sums_of_x, correction), sums[0]);
                let minima = floats(block_from(row.minima, first));
                sums[1] = _mm512_fmadd_ps(minima, _mm512_mul_ps(sums_of_x, unit), sums[1]);
            }
            let units = &values[start..values.len().min(start + BLOCK)];
            let codes = row.codes[start * 8 * BITS..].chunks_exact(8 * BITS);
            for ((codes, values), pair) in codes.zip(units).zip(scales.as_flattened().as_chunks::<2>().0) {
                sums = [sums[1], tables.add::<BITS>(sums[0], codes, values, both(pair))];
            }
        }
        *total = _mm512_mul_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_set1_ps(1.0 / rows.level_unit));
    }
    totals
}

/// The sums of neighbours, of sixteen pairs.
#[inline]
#[target_feature(enable = "avx512f")]
fn pairs_of(lower: __m512, upper: __m512) -> __m512 {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    _mm512_add_ps(_mm512_permutex2var_ps(lower, even, upper), _mm512_permutex2var_ps(lower, odd, upper))
}

/// At most sixteen from `first` on.
#[inline(always)]
fn block_from<T>(all: &[T], first: usize) -> &[T] {
    let rest = &all[first.min(all.len())..];
    &rest[..rest.len().min(BLOCK)]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn of_sixteen(values: &[f32; BLOCK]) -> __m512 {
    // SAFETY: the pointer is that of sixteen values.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

impl UnitRows<'_> {
    /// The scales of a row's block from unit `start` on, times those of the input. Products are of levels with 128 added: what is to be added
    /// for that is returned, in units of levels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn prepare(&self, row: &UnitRow, start: usize, scales: &mut [f32; BLOCK]) -> __m512 {
        let stored = match self.group {
            UNIT => floats(block_from(row.scales, start)),
            _ => {
                let (first, within) = self.groups_of_lanes(start);
                _mm512_cvtph_ps(_mm256_permutexvar_epi16(within, halves_of(block_from(row.scales, first))))
            }
        };
        store(scales, _mm512_mul_ps(stored, some_floats(block_from(self.x.scales(), start))));
        // Of a block, twice as many halves.
        let sums = self.x.half_sums().as_flattened().as_chunks::<BLOCK>().0;
        let at = 2 * start / BLOCK;
        let sums = pairs_of(of_sixteen(&sums[at]), of_sixteen(&sums[at + 1]));
        _mm512_mul_ps(stored, _mm512_mul_ps(sums, _mm512_set1_ps(-OFFSET as f32)))
    }

    /// The first group of the sixteen units from `start` on, and the group of each, counted from that.
    ///
    /// For groups of whole units.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn groups_of_lanes(&self, start: usize) -> (usize, __m256i) {
        let units = self.group / UNIT;
        let (first, skip) = (start / units, start % units);
        // floor((skip + lane) / units). That half is more than what rounding does to it as long as there are fewer than 2^20 units.
        let lanes = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
        let places = _mm512_add_ps(lanes, _mm512_set1_ps(skip as f32 + 0.5));
        let groups = _mm512_cvttps_epi32(_mm512_mul_ps(places, _mm512_set1_ps(1.0 / units as f32)));
        (first, _mm512_cvtepi32_epi16(groups))
    }
}

/// The level of each code, with 128 added, for permutations that look at six bits of a code.
pub(super) struct UnitLevels {
    lower: __m512i,
    upper: __m512i,
}

impl UnitLevels {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn new(table: &[i8; 16], bits: usize) -> Self {
        // Above a code's own bits are those of its neighbour, whatever they are.
        let repeat =
            |first: usize, codes: usize| load(&std::array::from_fn(|i| table[first + i % codes] ^ i8::MIN));
        match bits {
            2 => Self { lower: repeat(0, 4), upper: repeat(0, 4) },
            3 => Self { lower: repeat(0, 4), upper: repeat(4, 4) },
            _ => Self { lower: repeat(0, 16), upper: repeat(0, 16) },
        }
    }

    /// The levels of a unit.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub fn levels<const BITS: usize>(&self, unit: &[u8]) -> __m512i {
        match BITS {
            8 => {
                let levels = array::<64>(unit);
                // SAFETY: the pointer is that of 64 bytes.
                let levels = unsafe { _mm512_loadu_si512(levels.as_ptr().cast()) };
                _mm512_xor_si512(levels, _mm512_set1_epi8(i8::MIN))
            }
            4 => {
                let bytes = array::<32>(unit);
                // SAFETY: the pointer is that of 32 bytes.
                let bytes = _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) });
                let codes = _mm512_srlv_epi64(bytes, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4));
                _mm512_permutexvar_epi8(codes, self.lower)
            }
            _ => {
                let bytes = array::<16>(unit);
                // SAFETY: the pointer is that of 16 bytes.
                let bytes = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
                let codes = _mm512_srlv_epi64(bytes, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6));
                let lower = _mm512_permutexvar_epi8(codes, self.lower);
                if BITS == 2 {
                    return lower;
                }
                let high = u64::from_le_bytes(*array::<8>(&unit[16..]));
                _mm512_mask_permutexvar_epi8(lower, high, codes, self.upper)
            }
        }
    }

    /// `sum` and the products of a unit.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    fn add<const BITS: usize>(
        &self,
        sum: __m512,
        codes: &[u8],
        values: &[i8; UNIT],
        scale: __m512,
    ) -> __m512 {
        let products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), self.levels::<BITS>(codes), load(values));
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, sum)
    }
}

/// The first bytes of a unit.
#[inline(always)]
fn array<const N: usize>(unit: &[u8]) -> &[u8; N] {
    unit.first_chunk().expect("a unit has so many bytes")
}

/// The lowest `count` lanes, of at most 16.
#[inline(always)]
fn mask(count: usize) -> u16 {
    ((1u32 << count.min(16)) - 1) as u16
}

/// Up to sixteen f16, and zeros after them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn halves_of(stored: &[[u8; 2]]) -> __m256i {
    // SAFETY: the mask leaves the slice's values.
    unsafe { _mm256_maskz_loadu_epi16(mask(stored.len()), stored.as_ptr().cast()) }
}

/// Up to sixteen f16 as f32, and zeros after them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn floats(stored: &[[u8; 2]]) -> __m512 {
    _mm512_cvtph_ps(halves_of(stored))
}

/// Up to sixteen f32, and zeros after them.
#[inline]
#[target_feature(enable = "avx512f")]
fn some_floats(from: &[f32]) -> __m512 {
    // SAFETY: the mask leaves the slice's values.
    unsafe { _mm512_maskz_loadu_ps(mask(from.len()), from.as_ptr()) }
}

/// The first of the pair in lanes 0 to 7, the second in the others.
#[inline]
#[target_feature(enable = "avx512f")]
fn both(pair: &[f32; 2]) -> __m512 {
    _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(pair[0]), _mm512_set1_ps(pair[1]))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [f32; 16], values: __m512) {
    // SAFETY: the pointer is that of sixteen values.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
}
