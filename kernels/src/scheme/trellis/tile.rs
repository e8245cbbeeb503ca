//! A tile's code: 256 windows of twelve bits in `32 k` bytes.
//!
//! Bit `b` of the code is bit `b % 8` of byte `b / 8`. Window `i` is the twelve bits from bit `k i` on, the first one lowest, and
//! the code wraps around: after its last bit comes its first.

use super::{TILE_WEIGHTS, WINDOW_BITS};

/// The window of weight `i` in a tile's code of `bits` a weight: the reference reading.
pub fn window(tile: &[u8], bits: usize, i: usize) -> u16 {
    (0..WINDOW_BITS).fold(0, |window, b| {
        let bit = (bits * i + b) % (bits * TILE_WEIGHTS);
        window | u16::from((tile[bit / 8] >> (bit % 8)) & 1) << b
    })
}

/// The windows of all weights of a tile.
pub fn windows(tile: &[u8], bits: usize) -> [u16; TILE_WEIGHTS] {
    std::array::from_fn(|i| window(tile, bits, i))
}

/// Packs the lowest `bits` of each window into a tile's code of `32 * bits` bytes.
///
/// They determine the rest: [`windows`] gives back what was packed if every window continues the last one around
/// the circle, that is, if `window[i + 1] % 2^(12 - bits) == window[i] >> bits` and window 0 follows window 255.
///
/// # Panics
/// When `tile` has another length.
pub fn pack(windows: &[u16; TILE_WEIGHTS], bits: usize, tile: &mut [u8]) {
    assert_eq!(tile.len(), TILE_WEIGHTS / 8 * bits, "a tile's code has a fixed length");
    // Eight weights fill whole bytes: `bits` of them.
    for (windows, bytes) in windows.as_chunks::<8>().0.iter().zip(tile.chunks_exact_mut(bits)) {
        let symbols = windows.iter().map(|window| u64::from(*window) & ((1 << bits) - 1));
        let word = symbols.enumerate().fold(0, |word, (i, symbol)| word | symbol << (bits * i));
        bytes.copy_from_slice(&word.to_le_bytes()[..bits]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pack_and_windows_are_inverse(
            bits in 2..6usize, bytes in prop::collection::vec(any::<u8>(), 160),
        ) {
            let tile = &bytes[..32 * bits];
            let windows = windows(tile, bits);
            for i in 0..TILE_WEIGHTS {
                // Each window drops its lowest bits and takes in new ones at the top.
                let next = windows[(i + 1) % TILE_WEIGHTS];
                prop_assert_eq!(windows[i] >> bits, next & ((1 << (WINDOW_BITS - bits)) - 1));
            }
            let mut packed = vec![0; tile.len()];
            pack(&windows, bits, &mut packed);
            prop_assert_eq!(&packed, tile);
            // The bits above the lowest ones are not looked at.
            pack(&windows.map(|w| w & ((1 << bits) - 1)), bits, &mut packed);
            prop_assert_eq!(&packed, tile);
        }
    }

    /// The vectors of docs/format.md: byte `j` of the code is `255 - j`.
    #[test]
    fn test_vectors_of_the_specification() {
        let code: [u8; 160] = std::array::from_fn(|j| 255 - j as u8);
        let vectors = [
            (2, [3839, 4031, 4079, 2043, 3582, 3967, 4063, 1015], [4032, 4080, 4092, 3071]),
            (3, [3839, 4063, 2043, 3839, 4063, 2555, 3903, 4071], [2570, 3905, 4072, 2045]),
            (4, [3839, 4079, 3582, 4063, 3325, 4047, 3068, 4031], [129, 2056, 3968, 4088]),
            (5, [3839, 4087, 3967, 2555, 4047, 3582, 3055, 3935], [1558, 48, 3457, 4076]),
        ];
        for (bits, first, last) in vectors {
            let windows = windows(&code[..32 * bits], bits);
            assert_eq!((&windows[..8], &windows[252..]), (&first[..], &last[..]), "{bits} bits");
        }
    }
}
