//! Products of matrices and inputs.

use super::{
    Argument, Launch, SIMDGROUP,
    rows::{levels, stored},
    shape, words,
};
use crate::{
    Packed,
    scheme::{Integers, TILE},
};

/// The most inputs that one product straight from the codes takes.
pub const GEMV_BATCH: usize = 8;

/// Rows of a threadgroup of `gemv_units.metal` and `gemv_float.metal`: two simdgroups of four rows.
const GEMV_ROWS: usize = 8;

/// Simdgroups that share the rows of a strip in `gemv_trellis.metal`.
const TRELLIS_SIMDGROUPS: usize = 4;
/// Inputs and rows of a threadgroup of `gemm.metal`, and the distance of lines in its memory.
const GEMM_INPUTS: usize = 64;
const GEMM_ROWS: usize = 32;
const GEMM_STRIDE: usize = 36;
/// The most matrices of one launch.
const TOGETHER: usize = 3;

/// `y [batch, rows] = x [batch, cols] W^T`: input 0 to the output.
pub fn product(w: &Packed, batch: usize) -> Launch {
    if batch > GEMV_BATCH { gemm(w, batch) } else { gemv(w, batch) }
}

/// Whether one launch multiplies these matrices: of one width, all in trellis codes, or all in one scheme and group.
fn joins(first: &Packed, w: &Packed) -> bool {
    let same = first.scheme().name() == w.scheme().name() && first.group() == w.group();
    first.cols() == w.cols() && (same || (first.scheme().strip() == TILE && w.scheme().strip() == TILE))
}

/// How many of these matrices, from the first on, one launch of [`products`] takes.
pub fn joined(weights: &[&Packed]) -> usize {
    let Some(first) = weights.first() else { return 0 };
    weights.iter().take(TOGETHER).take_while(|w| joins(first, w)).count()
}

/// `y [sum of rows] = W x` for at most [`joined`] matrices of one input: input 0 to the output.
pub fn products(weights: &[&Packed]) -> Launch {
    match weights {
        [w] => product(w, 1),
        weights => together(weights),
    }
}

/// The product of two or three matrices with one input.
fn together(weights: &[&Packed]) -> Launch {
    debug_assert_eq!(joined(weights), weights.len());
    let first = weights[0];
    let one = gemv(first, 1);
    let trellis = first.scheme().strip() == TILE;
    let at = |i: usize| weights.get(i).copied();
    let names: &[[&'static str; TOGETHER]] = match one.arguments[0].0 {
        "weights" => &[["weights_a", "weights_b", "weights_c"]],
        _ => &[
            ["codes_a", "codes_b", "codes_c"],
            ["scales_a", "scales_b", "scales_c"],
            ["mins_a", "mins_b", "mins_c"],
        ],
    };
    let parts = first.scheme().parts(first.rows(), first.cols(), first.group()).len();
    let mut arguments = Vec::new();
    for (part, names) in names[..parts].iter().enumerate() {
        // In the place of a matrix that there is not stands the first.
        let bound = |i: usize| Argument::Part(if at(i).is_some() { parts * i } else { 0 } + part);
        arguments.extend(names.iter().enumerate().map(|(i, &name)| (name, bound(i))));
    }
    if trellis {
        let table = |i: usize| Argument::Bytes(levels(at(i).unwrap_or(first)));
        arguments.extend([("table_a", table(0)), ("table_b", table(1)), ("table_c", table(2))]);
    } else {
        arguments.extend(one.arguments.iter().filter(|(name, _)| *name == "table").cloned());
    }
    let strip = if trellis { TILE } else { GEMV_ROWS };
    let bits = |w: &Packed| match w.scheme().integers() {
        Some(Integers::Tiles { bits, .. }) => bits as u32,
        _ => 0,
    };
    let mut p = [0, 1, 2].map(|i| at(i).map_or(0, |w| w.rows() as u32)).to_vec();
    p.extend([0, 1, 2].map(|i| at(i).map_or(0, bits)));
    p.extend([first.cols() as u32, first.group() as u32]);
    arguments.extend([("x", Argument::Input(0)), ("y", Argument::Output), ("p", words(&p))]);
    let kernel = match one.kernel.strip_suffix("_1") {
        _ if trellis => "gemv_trellis_together".into(),
        Some(name) => format!("{name}_together"),
        None => unreachable!("a kernel for one input"),
    };
    let groups = [weights.iter().map(|w| w.rows().div_ceil(strip)).sum(), 1, 1];
    Launch { kernel, groups, arguments, ..one }
}

fn gemm(w: &Packed, batch: usize) -> Launch {
    let mut arguments = stored(w).to_vec();
    let p = shape(w.rows(), w.cols(), batch, w.group());
    arguments.extend([("x", Argument::Input(0)), ("y", Argument::Output), ("p", p)]);
    Launch {
        kernel: format!("gemm_{}", w.scheme().name()),
        groups: [w.rows().div_ceil(GEMM_ROWS), batch.div_ceil(GEMM_INPUTS), 1],
        threads: 4 * SIMDGROUP,
        shared: [GEMM_INPUTS, GEMM_ROWS].map(|lines| lines * GEMM_STRIDE * size_of::<f32>()).into(),
        arguments,
    }
}

/// The product with few inputs.
fn gemv(w: &Packed, batch: usize) -> Launch {
    let (name, rows, cols) = (w.scheme().name(), w.rows(), w.cols());
    // Instances take a power of two, and leave out those past the batch.
    let n = batch.next_power_of_two();
    let p = shape(rows, cols, batch, w.group());
    let parts = |names: &[&'static str]| -> Vec<(&'static str, Argument)> {
        names.iter().enumerate().map(|(i, &name)| (name, Argument::Part(i))).collect()
    };
    let levels = levels(w);
    let room = levels.len() * size_of::<f32>();
    let (kernel, strip, threads, shared, mut arguments) = if w.scheme().strip() == TILE {
        let partial = TRELLIS_SIMDGROUPS * n * TILE * size_of::<f32>();
        let shared = vec![room, partial];
        (
            format!("gemv_{name}_{n}"),
            TILE,
            TRELLIS_SIMDGROUPS * SIMDGROUP,
            shared,
            parts(&["codes", "scales"]),
        )
    } else if w.scheme().parts(rows, cols, w.group()).len() == 1 {
        // Four elements at a time where rows begin at multiples of four.
        let width = if cols.is_multiple_of(4) { 4 } else { 1 };
        (format!("gemv_{name}_{width}_{n}"), GEMV_ROWS, 2 * SIMDGROUP, vec![], parts(&["weights"]))
    } else {
        let names = ["codes", "scales", "mins"];
        let count = w.scheme().parts(rows, cols, w.group()).len();
        let shared = if room > 0 { vec![room] } else { vec![] };
        (format!("gemv_{name}_{n}"), GEMV_ROWS, 2 * SIMDGROUP, shared, parts(&names[..count]))
    };
    if !levels.is_empty() {
        arguments.push(("table", Argument::Bytes(levels)));
    }
    arguments.extend([("x", Argument::Input(0)), ("y", Argument::Output), ("p", p)]);
    Launch { kernel, groups: [rows.div_ceil(strip), 1, 1], threads, shared, arguments }
}
