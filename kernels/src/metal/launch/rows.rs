//! Single weights: embedding look-up, low-rank and sparse corrections.

use super::{Argument, Before, Launch, PLAIN_THREADS, rotation::rotation_launches, shape, words};
use crate::{
    Packed, Rotation, Sparse,
    scheme::{Integers, UNIT},
};

/// The levels that codes, or windows of them, are looked up in; none where a code is its own level.
pub(super) fn levels(w: &Packed) -> Vec<u8> {
    let bytes = |levels: &[i8]| levels.iter().map(|&level| level as u8).collect();
    match w.scheme().integers() {
        Some(Integers::Tiles { codebook, .. }) => bytes(codebook.levels()),
        Some(Integers::Units { bits, table, minima: None, .. }) if bits < 8 => bytes(&table[..1 << bits]),
        _ => Vec::new(),
    }
}

/// The parts of a matrix, as the kernels of `decode.metal` take them: where a scheme lacks one, another stands in.
pub(super) fn stored(w: &Packed) -> [(&'static str, Argument); 4] {
    let last = w.scheme().parts(w.rows(), w.cols(), w.group()).len() - 1;
    let levels = levels(w);
    let table = if levels.is_empty() { words(&[0]) } else { Argument::Bytes(levels) };
    let part = |i: usize| Argument::Part(i.min(last));
    [("codes", part(0)), ("scales", part(1)), ("mins", part(2)), ("table", table)]
}

/// Rows `ids [n]` of a matrix, in the unrotated frame where there is a rotation: input 0 to the output.
pub fn gather(w: &Packed, rotation: Option<&Rotation>, n: usize) -> Vec<Launch> {
    let mut arguments = vec![("ids", Argument::Input(0))];
    arguments.extend(stored(w));
    arguments.extend([("y", Argument::Output), ("p", shape(w.rows(), w.cols(), n, w.group()))]);
    let kernel = format!("gather_{}", w.scheme().name());
    let groups = [w.cols().div_ceil(PLAIN_THREADS), n, 1];
    let mut launches = vec![Launch { kernel, groups, threads: PLAIN_THREADS, shared: vec![], arguments }];
    if let Some(rotation) = rotation {
        // In place: a threadgroup has read its columns before it writes them.
        launches.extend(rotation_launches(rotation, n, Before::Nothing, Argument::Output, true));
    }
    launches
}

/// `z [batch, rows] -> z L [batch, cols]`: input 0 to the output.
pub fn transposed(l: &Packed, batch: usize) -> Launch {
    let mut arguments = stored(l).to_vec();
    let p = shape(l.rows(), l.cols(), batch, l.group());
    arguments.extend([("z", Argument::Input(0)), ("y", Argument::Output), ("p", p)]);
    Launch {
        kernel: format!("transposed_{}", l.scheme().name()),
        groups: [l.cols().div_ceil(PLAIN_THREADS), batch, 1],
        threads: PLAIN_THREADS,
        shared: vec![],
        arguments,
    }
}

/// `x [batch, cols] -> S x [batch, rows]`: input 0 to the output; parts are offsets, columns and values.
pub fn sparse(s: &Sparse, batch: usize) -> Launch {
    Launch {
        kernel: "sparse".into(),
        groups: [s.rows().div_ceil(PLAIN_THREADS), batch, 1],
        threads: PLAIN_THREADS,
        shared: vec![],
        arguments: vec![
            ("offsets", Argument::Part(0)),
            ("columns", Argument::Part(1)),
            ("values", Argument::Part(2)),
            ("x", Argument::Input(0)),
            ("y", Argument::Output),
            ("p", shape(s.rows(), s.cols(), batch, UNIT)),
        ],
    }
}
