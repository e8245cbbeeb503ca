//! Launches: what each op asks of the device.

use crate::{
    Packed, Rotation, Sparse,
    ops::DenseAttention,
    scheme::{Integers, TILE, UNIT},
};

/// The most inputs that one product straight from the codes takes.
pub const GEMV_BATCH: usize = 8;

/// Threads of a simdgroup.
const SIMDGROUP: usize = 32;
/// Rows of a threadgroup of `gemv_units.metal` and `gemv_float.metal`: two simdgroups of four rows.
const GEMV_ROWS: usize = 8;
/// Simdgroups that share the rows of a strip in `gemv_trellis.metal`.
const TRELLIS_SIMDGROUPS: usize = 4;
/// Inputs and rows of a threadgroup of `gemm.metal`, and the distance of lines in its memory.
const GEMM_INPUTS: usize = 64;
const GEMM_ROWS: usize = 32;
const GEMM_STRIDE: usize = 36;
/// Simdgroups that share the keys of a query in `attention.metal`.
const ATTENTION_SIMDGROUPS: usize = 8;
/// The longest transform that fits into one threadgroup.
const LARGEST_SPAN: usize = 4096;
/// Threads of kernels that use no simd operations.
const PLAIN_THREADS: usize = 64;
/// Threads of a row's norm.
const NORM_THREADS: usize = 256;
/// Bytes that a norm adds up in, and that of what is added before.
const PARTIAL: usize = 2 * SIMDGROUP * size_of::<f32>();

/// The most matrices of one launch.
const TOGETHER: usize = 3;

/// What a kernel's argument is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A part of the stored matrix; of several, those of the first matrix come first.
    Part(usize),
    /// An input of the op.
    Input(usize),
    /// An input of the op that it also writes.
    Written(usize),
    /// The op's output.
    Output,
    /// These bytes.
    Bytes(Vec<u8>),
}

/// One run of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The kernel's name in the library.
    pub kernel: String,
    /// Threadgroups of the grid.
    pub groups: [usize; 3],
    /// Threads of a threadgroup.
    pub threads: usize,
    /// Bytes of each piece of threadgroup memory, multiples of 16.
    pub shared: Vec<usize>,
    /// The kernel's buffers, in order of their index: the parameter's name and what is bound to it.
    pub arguments: Vec<(&'static str, Argument)>,
}

/// What is computed before a rotation, in the same launch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// `silu(x) * up`, with `up` the second input.
    Silu,
    /// `gelu(x) * up`, by the approximation with tanh.
    Gelu,
}

/// What is added to the residual stream `x` before it is normalised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sum {
    /// Nothing.
    Nothing,
    /// Another value.
    Added,
    /// `added / sqrt(mean(added^2) + eps) * after`.
    Normed {
        /// Added to the mean square.
        eps: f32,
    },
}

/// Sizes of a launch that makes heads ready for attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadsShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// New positions.
    pub positions: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Where the first new position lies among the keys and values.
    pub start: usize,
    /// Values from one head's keys to those of the next one, and the same of values.
    pub strides: [usize; 2],
    /// Whether there are biases.
    pub biased: bool,
    /// Added to the mean square of a head of queries or keys, where these are normalised.
    pub norm: Option<f32>,
}

/// Words of a parameter block, as a shader's struct has them.
fn words(words: &[u32]) -> Argument {
    Argument::Bytes(words.iter().flat_map(|w| w.to_le_bytes()).collect())
}

/// `Product` of `common.metal`.
fn shape(rows: usize, cols: usize, batch: usize, group: usize) -> Argument {
    words(&[rows, cols, batch, group].map(|n| n as u32))
}

/// The levels that codes, or windows of them, are looked up in; none where a code is its own level.
fn levels(w: &Packed) -> Vec<u8> {
    let bytes = |levels: &[i8]| levels.iter().map(|&level| level as u8).collect();
    match w.scheme().integers() {
        Some(Integers::Tiles { codebook, .. }) => bytes(codebook.levels()),
        Some(Integers::Units { bits, table, minima: None, .. }) if bits < 8 => bytes(&table[..1 << bits]),
        _ => Vec::new(),
    }
}

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

/// The rotation of each row of `x [batch, cols]` and what comes before it: inputs 0 and 1 to the output.
pub fn rotate(rotation: &Rotation, batch: usize, before: Before) -> Vec<Launch> {
    rotation_launches(rotation, batch, before, Argument::Input(0), false)
}

/// `s / sqrt(mean(s^2) + eps) * factor`, rotated where there is a rotation, for each row `s` of `x [batch, cols]` with what is added
/// to it: inputs x, `factor [cols]`, what is added and `after [cols]` to the output, which is `[2, batch, cols]` with `s` behind
/// the norm where something is added.
pub fn norm(cols: usize, batch: usize, sum: Sum, eps: f32, rotation: Option<&Rotation>) -> Vec<Launch> {
    let (adds, after_eps) = match sum {
        Sum::Nothing => (0, 0.0),
        Sum::Added => (1, 0.0),
        Sum::Normed { eps } => (2, eps),
    };
    let input = |i: usize| Argument::Input(if i == 3 && adds < 2 || i == 2 && adds < 1 { 0 } else { i });
    let operands = [("x", input(0)), ("added", input(2)), ("after", input(3)), ("factor", input(1))];
    let p = words(&[cols as u32, batch as u32, adds, eps.to_bits(), after_eps.to_bits()]);
    let Some(rotation) = rotation else {
        return vec![Launch {
            kernel: "rms_norm".into(),
            groups: [batch, 1, 1],
            threads: NORM_THREADS,
            shared: vec![PARTIAL],
            arguments: operands.into_iter().chain([("y", Argument::Output), ("p", p)]).collect(),
        }];
    };
    let mut launches = rotate(rotation, batch, Before::Nothing);
    let first = &mut launches[0];
    first.kernel = first.kernel.replace("rotate", "rotate_norm");
    first.shared.push(PARTIAL);
    let rest = first.arguments.drain(..).filter(|(name, _)| !["x", "other"].contains(name));
    first.arguments = operands.into_iter().chain(rest).chain([("norm", p)]).collect();
    launches
}

/// The launches of a rotation, or of its inverse.
fn rotation_launches(
    rotation: &Rotation,
    batch: usize,
    before: Before,
    x: Argument,
    inverse: bool,
) -> Vec<Launch> {
    let (cols, block) = (rotation.cols(), rotation.block());
    let span = block.clamp(SIMDGROUP, LARGEST_SPAN);
    // span = 32 * simdgroups * values, with as many values a thread as simdgroups, or twice as many.
    let bits = (span / SIMDGROUP).ilog2();
    let (values, simdgroups) = (1usize << bits.div_ceil(2), 1usize << (bits / 2));
    let name = match before {
        Before::Nothing => "rotate",
        Before::Silu => "rotate_silu",
        Before::Gelu => "rotate_gelu",
    };
    let other = if before == Before::Nothing { x.clone() } else { Argument::Input(1) };
    let signs = Argument::Bytes(rotation.signs().iter().flat_map(|s| s.to_le_bytes()).collect());
    let norm = 1.0 / (block as f32).sqrt();
    let parameters = |length: usize, last: bool| {
        let flags = [u32::from(!inverse), u32::from(inverse && last)];
        words(&[cols as u32, length as u32, norm.to_bits(), flags[0], flags[1]])
    };
    let mut launches = vec![Launch {
        kernel: format!("{name}_{values}"),
        groups: [cols.div_ceil(span), batch, 1],
        threads: simdgroups * SIMDGROUP,
        shared: vec![if simdgroups > 1 { span * size_of::<f32>() } else { 16 }],
        arguments: vec![
            ("x", x),
            ("other", other),
            ("signs", signs.clone()),
            ("y", Argument::Output),
            ("p", parameters(block.min(LARGEST_SPAN), block <= LARGEST_SPAN)),
        ],
    }];
    let mut distance = LARGEST_SPAN;
    while distance < block {
        launches.push(Launch {
            kernel: "hadamard_pass".into(),
            groups: [(cols / 2).div_ceil(PLAIN_THREADS), batch, 1],
            threads: PLAIN_THREADS,
            shared: vec![],
            arguments: vec![
                ("signs", signs.clone()),
                ("y", Argument::Output),
                ("p", parameters(distance, 2 * distance == block)),
            ],
        });
        distance *= 2;
    }
    launches
}

/// Queries, keys and values `[positions, heads * head_dim]`, inputs 0 to 2, as attention wants them: queries to the output `[heads,
/// positions, head_dim]`, keys and values into inputs 3 and 4, which are f16 where `half` is set. Inputs 5 and 6 are cosines and sines
/// `[positions, head_dim / 2]`; then come three biases and two factors of norms, so far as there are such.
pub fn split_heads(s: &HeadsShape, half: bool) -> Launch {
    let (biases, factors) = (7, if s.biased { 10 } else { 7 });
    let bias = |i: usize| Argument::Input(if s.biased { biases + i } else { i });
    let factor = |i: usize| Argument::Input(if s.norm.is_some() { factors + i } else { i });
    let sizes = [s.heads, s.kv_heads, s.positions, s.head_dim, s.start, s.strides[0], s.strides[1]];
    let mut p: Vec<u32> = sizes.iter().map(|&n| n as u32).collect();
    p.extend([s.biased.into(), s.norm.is_some().into(), s.norm.unwrap_or(0.0).to_bits()]);
    Launch {
        kernel: if half { "split_heads_f16" } else { "split_heads_f32" }.into(),
        groups: [s.heads + 2 * s.kv_heads, s.positions, 1],
        threads: SIMDGROUP,
        shared: vec![],
        arguments: vec![
            ("q", Argument::Input(0)),
            ("k", Argument::Input(1)),
            ("v", Argument::Input(2)),
            ("q_bias", bias(0)),
            ("k_bias", bias(1)),
            ("v_bias", bias(2)),
            ("q_factor", factor(0)),
            ("k_factor", factor(1)),
            ("cosines", Argument::Input(5)),
            ("sines", Argument::Input(6)),
            ("y", Argument::Output),
            ("keys", Argument::Written(3)),
            ("values", Argument::Written(4)),
            ("p", words(&p)),
        ],
    }
}

/// `silu(gate) * up`, or `gelu(gate) * up`, of `count` values: inputs 0 and 1 to the output.
pub fn gated(count: usize, gelu: bool) -> Launch {
    Launch {
        kernel: if gelu { "gated_gelu" } else { "gated_silu" }.into(),
        groups: [count.div_ceil(NORM_THREADS), 1, 1],
        threads: NORM_THREADS,
        shared: vec![],
        arguments: vec![
            ("gate", Argument::Input(0)),
            ("up", Argument::Input(1)),
            ("y", Argument::Output),
            ("count", words(&[count as u32])),
        ],
    }
}

/// The parts of a matrix, as the kernels of `decode.metal` take them: where a scheme lacks one, another stands in.
fn stored(w: &Packed) -> [(&'static str, Argument); 4] {
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

/// Attention of `q [heads, n, head_dim]`, input 0, over keys and values `[kv_heads, positions, head_dim]`, inputs 1 and 2,
/// whose heads lie `strides` values apart and which are f16 where `half` is set; `None` for heads wider than 256.
pub fn attention(
    op: &DenseAttention,
    [heads, n, head_dim]: [usize; 3],
    [kv_heads, positions]: [usize; 2],
    strides: [usize; 2],
    half: bool,
) -> Option<Launch> {
    let per_lane = head_dim.div_ceil(SIMDGROUP).next_power_of_two();
    if per_lane > 8 {
        return None;
    }
    let window = op.window.map_or(0, |window| window.min(positions));
    let sizes = [heads, kv_heads, n, positions, head_dim, strides[0], strides[1], window];
    let mut p: Vec<u32> = sizes.iter().map(|&n| n as u32).collect();
    p.extend([op.scale.to_bits(), op.softcap.unwrap_or(0.0).to_bits()]);
    let mixes = (ATTENTION_SIMDGROUPS * head_dim * size_of::<f32>()).next_multiple_of(16);
    Some(Launch {
        kernel: format!("attention_{}_{per_lane}", if half { "f16" } else { "f32" }),
        groups: [heads, n, 1],
        threads: ATTENTION_SIMDGROUPS * SIMDGROUP,
        shared: vec![mixes, 2 * ATTENTION_SIMDGROUPS * size_of::<f32>()],
        arguments: vec![
            ("q", Argument::Input(0)),
            ("k", Argument::Input(1)),
            ("v", Argument::Input(2)),
            ("y", Argument::Output),
            ("p", words(&p)),
        ],
    })
}
