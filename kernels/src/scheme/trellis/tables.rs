//! The trained codebooks: which level each window of eight bits stands for.
//!
//! Constants of the format (docs/format.md repeats them): other numbers would be another version of the schemes.
//! Made by simulated annealing, `cargo run --release -p squish-quant --example train_trellis -- --rust` with `--bits 2 --seed 2` and
//! `--bits 3,4,5 --rounds 20000`; longer searches from other seeds end at the same decibels.
//! Windows that may follow each other have levels far apart.

use super::Codebook;

/// A codebook, and what it was trained for.
#[derive(Debug)]
pub(super) struct Table {
    pub codebook: Codebook,
    /// A level's distance to the next one, where the source is a Gaussian of standard deviation 1.
    pub step: f32,
}

/// 2 bits a weight: 11.07 dB on a Gaussian.
#[rustfmt::skip]
pub(super) static TABLE_2: Table = Table {
    codebook: Codebook::new(
        2,
        [   6,  -35,   34,  -16,   36,   15,  -21,  -60,   -3,  -33,   58,   22,  -78,  -12,   14,   33],
        [  40,  -42,  -32,   40,  -41,    5,    1,   -6,   -6,   -6,  -50,  -42,    3,   41,   70,    5],
    ),
    step: 0.0236,
};

/// 3 bits a weight: 16.72 dB on a Gaussian.
#[rustfmt::skip]
pub(super) static TABLE_3: Table = Table {
    codebook: Codebook::new(
        3,
        [  52,   36,   21,  -33,  -10,    6,    6,  -18,    2,   26,   -6,   71,  -24,  -54,   15,   40],
        [   2,    7,   23,  -60,  -60,   -1,    6,   23,  -18,  -15,  -37,   45,   45,  -25,  -15,  -41],
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

/// 5 bits a weight: 27.78 dB on a Gaussian.
#[rustfmt::skip]
pub(super) static TABLE_5: Table = Table {
    codebook: Codebook::new(
        5,
        [ -29,   37,   -4,  -17,    1,  -23,   -9,  -64,   13,  -48,   31,   49,  -13,   25,    6,   19],
        [   3,  -18,   63,   -9,   21,  -37,   32,  -25,  -13,   -5,    8,   -1,  -30,   41,  -58,   13],
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
