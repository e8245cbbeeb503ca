//! Decoding the tiles of a trellis code: windows of twelve bits, each looked up by the lowest and the highest four.

use crate::scheme::{TILE, trellis::Codebook};

/// A run of tiles of one strip of 16 rows, and the rows of it that are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Tiles<'a> {
    /// Bits of a weight: 2, 3, 4 or 5.
    pub bits: usize,
    /// The level of each window.
    pub codebook: &'a Codebook,
    /// The codes of the tiles from left to right, `32 * bits` bytes each.
    pub codes: &'a [u8],
    /// The first row wanted, counted in the strip.
    pub first: usize,
    /// What the levels of each row wanted are multiplied by: at most `16 - first` rows.
    pub steps: &'a [f32],
    /// Distance between two decoded rows.
    pub stride: usize,
}

impl Tiles<'_> {
    /// Checks the shapes, and that `out` has room for the decoded rows.
    ///
    /// # Panics
    /// When it has not, or a shape breaks a rule above.
    #[inline(always)]
    pub(super) fn check(&self, out: &[f32]) {
        assert!((2..=5).contains(&self.bits) && self.codes.len().is_multiple_of(32 * self.bits));
        let (rows, width) = (self.steps.len(), self.codes.len() / (2 * self.bits));
        assert!(self.first <= TILE && rows <= TILE - self.first && width <= self.stride);
        let end = rows.saturating_sub(1).checked_mul(self.stride).and_then(|start| start.checked_add(width));
        assert!(rows == 0 || end.is_some_and(|end| end <= out.len()));
    }
}

/// The bits from the start of a tile's row on, with `K` bits a weight: those of its 16 windows, and perhaps more.
#[inline(always)]
pub(super) fn row_bits<const K: usize>(tile: &[u8], row: usize) -> u128 {
    // The windows of a row lie in 2K + 2 bytes, of which the last two belong to the next row.
    let tile = &tile[..32 * K];
    if row == TILE - 1 {
        // The code wraps around: after its last byte comes its first.
        let (_, end) = tile.split_last_chunk().expect("16 bytes at least");
        let start = u16::from_le_bytes([tile[0], tile[1]]);
        u128::from_le_bytes(*end) >> (128 - 16 * K) | u128::from(start) << (16 * K)
    } else if K < 4 {
        u64::from_le_bytes(*tile[2 * K * row..].first_chunk().expect("8 bytes are left")).into()
    } else {
        u128::from_le_bytes(*tile[2 * K * row..].first_chunk().expect("16 bytes are left"))
    }
}

/// How vectors take eight bits from the start of every second window out of a row's bits: those of the even ones, or with `ODD` 1 of
/// the odd ones. The bits a byte later are those of the row's bits without their first byte.
pub(super) struct Windows<const K: usize, const ODD: usize>;

impl<const K: usize, const ODD: usize> Windows<K, ODD> {
    /// The bytes of the row that lane `m` of 16 bits takes: the two that the bits of window `2m + ODD` lie in.
    pub(super) const BYTES: [u8; 16] = {
        let mut bytes = [0; 16];
        let mut b = 0;
        while b < 16 {
            bytes[b] = (K * (b / 2 * 2 + ODD) / 8 + b % 2) as u8;
            b += 1;
        }
        bytes
    };

    /// The bit of lane `m` where the window begins.
    pub(super) const SHIFTS: [i16; 8] = {
        let mut shifts = [0; 8];
        let mut m = 0;
        while m < 8 {
            shifts[m] = (K * (2 * m + ODD) % 8) as i16;
            m += 1;
        }
        shifts
    };
}

#[cfg(target_arch = "x86_64")]
impl<const K: usize, const ODD: usize> Windows<K, ODD> {
    /// Powers of two: lane `m`, times that, has the window's bits in the upper byte.
    pub(super) const FACTORS: [i16; 8] = {
        let mut factors = [0; 8];
        let mut m = 0;
        while m < 8 {
            factors[m] = 1 << (8 - Self::SHIFTS[m]);
            m += 1;
        }
        factors
    };
}

/// `out[r, c] = steps[r] * table[window of row first + r, column c]`: the portable instance.
pub fn decode(tiles: Tiles, out: &mut [f32]) {
    #[inline(always)]
    fn run<const K: usize>(tiles: Tiles, out: &mut [f32]) {
        for (t, tile) in tiles.codes.chunks_exact(32 * K).enumerate() {
            for (r, &step) in tiles.steps.iter().enumerate() {
                let bits = row_bits::<K>(tile, tiles.first + r);
                let mut levels = [0; TILE];
                for (half, levels) in levels.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    let bits = (bits >> (8 * K * half)) as u64;
                    *levels = std::array::from_fn(|j| tiles.codebook.level((bits >> (K * j)) as u16));
                }
                for (out, level) in out[r * tiles.stride + TILE * t..][..TILE].iter_mut().zip(levels) {
                    *out = step * f32::from(level);
                }
            }
        }
    }
    tiles.check(out);
    match tiles.bits {
        2 => run::<2>(tiles, out),
        3 => run::<3>(tiles, out),
        4 => run::<4>(tiles, out),
        _ => run::<5>(tiles, out),
    }
}
