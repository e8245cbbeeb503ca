//! A tile's code: 256 windows of eight bits in `32 k` bytes.
//!
//! Bit `b` of the code is bit `b % 8` of byte `b / 8`. Window `i` is the eight bits from bit `k i` on, the first one lowest, and
//! the code wraps around: after its last bit comes its first.

use super::TILE_WEIGHTS;

/// The window of weight `i` in a tile's code of `bits` a weight: the reference reading.
pub fn window(tile: &[u8], bits: usize, i: usize) -> u8 {
    (0..8).fold(0, |window, b| {
        let bit = (bits * i + b) % (bits * TILE_WEIGHTS);
        window | ((tile[bit / 8] >> (bit % 8)) & 1) << b
    })
}

/// The windows of all weights of a tile.
pub fn windows(tile: &[u8], bits: usize) -> [u8; TILE_WEIGHTS] {
    std::array::from_fn(|i| window(tile, bits, i))
}

/// Packs the lowest `bits` of each window into a tile's code of `32 * bits` bytes.
///
/// They determine the rest: [`windows`] gives back what was packed if every window continues the last one around
/// the circle, that is, if `window[i + 1] % 2^(8 - bits) == window[i] >> bits` and window 0 follows window 255.
///
/// # Panics
/// When `tile` has another length.
pub fn pack(windows: &[u8; TILE_WEIGHTS], bits: usize, tile: &mut [u8]) {
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
                prop_assert_eq!(windows[i] >> bits, next & ((1 << (8 - bits)) - 1));
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
            (2, [255, 191, 239, 251, 254, 127, 223, 247], [192, 240, 252, 255]),
            (3, [255, 223, 251, 255, 223, 251, 63, 231], [10, 65, 232, 253]),
            (4, [255, 239, 254, 223, 253, 207, 252, 191], [129, 8, 128, 248]),
            (5, [255, 247, 127, 251, 207, 254, 239, 95], [22, 48, 129, 236]),
        ];
        for (bits, first, last) in vectors {
            let windows = windows(&code[..32 * bits], bits);
            assert_eq!((&windows[..8], &windows[252..]), (&first[..], &last[..]), "{bits} bits");
        }
    }
}
