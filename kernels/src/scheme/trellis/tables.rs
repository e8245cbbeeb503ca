//! The trained codebooks: which level each window of twelve bits stands for.
//!
//! Constants of the format (docs/format.md repeats them): other numbers would be another version of the schemes.
//! Made by simulated annealing, `cargo run --release -p squish-quant --example train_trellis -- --rust` with
//! `--bits 2 --rounds 4000 --temperature 0.015 --seed 2` and `--bits 3 --rounds 4000 --tiles 32`. Those of four bits are the ones that
//! version 2 trained for windows of eight bits, and a search from there found none better; those of five came of such a search from
//! version 2's, `--bits 5 --refine --rounds 2500 --temperature 0.002`.
//! Windows that may follow each other have levels far apart.

use super::Codebook;

/// A codebook, and what it was trained for.
#[derive(Debug)]
pub(super) struct Table {
    pub codebook: Codebook,
    /// A level's distance to the next one, where the source is a Gaussian of standard deviation 1.
    pub step: f32,
}

/// 2 bits a weight: 11.39 dB on a Gaussian.
#[rustfmt::skip]
pub(super) static TABLE_2: Table = Table {
    codebook: Codebook::new(
        2,
        [ -19,    8,  -57,   57,  -25,  -57,   12,   42,   12,  -34,  -13,   24,   19,   80,   56,  -18],
        [  41,  -26,   51,   -5,  -26,   27,  -49,   48,  -91,  -51,  -29,   16,   10,    5,   28,  -42],
    ),
    step: 0.0236,
};

/// 3 bits a weight: 17.08 dB on a Gaussian.
#[rustfmt::skip]
pub(super) static TABLE_3: Table = Table {
    codebook: Codebook::new(
        3,
        [  -4,  -66,   46,  -26,  -38,  -17,    6,   23,  -50,   -4,  -15,   16,   30,    8,  -30,  -14],
        [ -35,   17,   13,  -10,   -8,   30,  -18,   45,    4,   76,   22,  -26,   55,    2,   36,  -53],
    ),
    step: 0.0258,
};

/// 4 bits a weight: 22.31 dB on a Gaussian.
#[rustfmt::skip]
pub(super) static TABLE_4: Table = Table {
    codebook: Codebook::new(
        4,
        [  23,   -8,   41,   22,  -31,   31,    5,   61,  -64,   15,  -11,  -18,  -41,   -1,  -23,    8],
        [ -57,  -43,  -21,   54,    2,   17,   32,    1,   14,    9,   24,  -14,  -25,   -6,   42,  -33],
    ),
    step: 0.0293,
};

/// 5 bits a weight: 28.23 dB on a Gaussian.
#[rustfmt::skip]
pub(super) static TABLE_5: Table = Table {
    codebook: Codebook::new(
        5,
        [  -4,   32,   37,    6,   50,  -23,  -18,  -10,  -52,  -29,    1,   19,   13,   25,  -14,  -66],
        [  61,  -64,  -13,    9,   -1,   -5,   21,  -26,   13,  -18,   -9,    3,  -37,  -30,   32,   40],
    ),
    step: 0.0305,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specification_has_the_same_codebooks() {
        let document = include_str!("../../../../docs/format.md");
        for (name, table) in [("tcq2", &TABLE_2), ("tcq3", &TABLE_3), ("tcq4", &TABLE_4), ("tcq5", &TABLE_5)]
        {
            for (half, expected) in [("LOW", table.codebook.low()), ("HIGH", table.codebook.high())] {
                let (_, row) = document.split_once(&format!("| `{name}` | `{half}` |")).expect("a row");
                let (numbers, _) = row.split_once(" |\n").expect("the end of a row");
                let levels: Vec<i8> =
                    numbers.split(',').map(|n| n.trim().parse().expect("a number")).collect();
                assert_eq!(levels, expected, "{name} {half}");
            }
        }
    }
}
