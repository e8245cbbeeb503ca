//! The levels of neighbouring weights of a trellis code, for processors that have no look-up of 256 entries in registers and read those of
//! several weights at once from memory.
//!
//! Windows of neighbours overlap: `n` of them, `k` bits apart, are `8 + (n - 1) k` bits. With two bits a weight, four levels follow from 14
//! bits, a table of 64 KiB, most of which the second-level cache holds; with more, two from 11 to 13 bits, of 4 to 16 KiB.

use std::sync::OnceLock;

/// The table of a code.
#[derive(Debug)]
pub enum Neighbours {
    /// Of two bits a weight: four levels for each code of 14 bits.
    Four(Vec<[i8; 4]>),
    /// Of `k` bits, more than two: two levels for each code of `8 + k` bits.
    Two(Vec<[i8; 2]>),
}

/// Made when it is first asked for.
pub type LazyNeighbours = OnceLock<Neighbours>;

impl Neighbours {
    /// The table for the levels of a code of `bits` bits a weight.
    pub fn new(bits: usize, levels: &[i8; 256]) -> Self {
        /// The levels of `N` neighbours, from the lowest bits on.
        fn table<const N: usize>(bits: usize, levels: &[i8; 256]) -> Vec<[i8; N]> {
            let level = |code: usize, i: usize| levels[code >> (i * bits) & 255];
            (0..1 << (8 + (N - 1) * bits)).map(|code| std::array::from_fn(|i| level(code, i))).collect()
        }
        match bits {
            2 => Self::Four(table(bits, levels)),
            _ => Self::Two(table(bits, levels)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_those_of_their_windows() {
        let levels: [i8; 256] = std::array::from_fn(|i| (i as u8).wrapping_mul(37) as i8);
        for bits in 2..=5 {
            let at = |code: usize, i: usize| levels[code >> (i * bits) & 255];
            match Neighbours::new(bits, &levels) {
                Neighbours::Four(table) => {
                    assert!(bits == 2 && table.len() == 1 << 14);
                    for (code, found) in table.iter().enumerate() {
                        assert_eq!(*found, [0, 1, 2, 3].map(|i| at(code, i)));
                    }
                }
                Neighbours::Two(table) => {
                    assert!(bits > 2 && table.len() == 1 << (8 + bits));
                    for (code, found) in table.iter().enumerate() {
                        assert_eq!(*found, [0, 1].map(|i| at(code, i)));
                    }
                }
            }
        }
    }
}
