//! Rotations, norms and gated products.

use super::{Argument, Launch, PLAIN_THREADS, SIMDGROUP, words};
use crate::Rotation;

/// The longest transform that fits into one threadgroup.
const LARGEST_SPAN: usize = 4096;

/// Threads of a row's norm.
const NORM_THREADS: usize = 256;

/// Bytes that a norm adds up in, and that of what is added before.
const PARTIAL: usize = 2 * SIMDGROUP * size_of::<f32>();

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
pub(super) fn rotation_launches(
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
