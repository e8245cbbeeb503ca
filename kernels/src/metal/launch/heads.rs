//! Queries, keys and values made ready for attention.

use super::{Argument, Launch, SIMDGROUP, words};

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

impl HeadsShape {
    /// The first ten arguments: inputs 0 to 2, then, from `first` on, cosines and sines, three biases and two factors of norms, so far
    /// as there are such.
    pub(super) fn operands(&self, first: usize) -> Vec<(&'static str, Argument)> {
        let (biases, factors) = (first + 2, first + if self.biased { 5 } else { 2 });
        let bias = |i: usize| Argument::Input(if self.biased { biases + i } else { i });
        let factor = |i: usize| Argument::Input(if self.norm.is_some() { factors + i } else { i });
        vec![
            ("q", Argument::Input(0)),
            ("k", Argument::Input(1)),
            ("v", Argument::Input(2)),
            ("q_bias", bias(0)),
            ("k_bias", bias(1)),
            ("v_bias", bias(2)),
            ("q_factor", factor(0)),
            ("k_factor", factor(1)),
            ("cosines", Argument::Input(first)),
            ("sines", Argument::Input(first + 1)),
        ]
    }

    /// `SplitHeads` of `heads.metal`.
    pub(super) fn parameters(&self) -> Argument {
        let [k_stride, v_stride] = self.strides;
        let sizes =
            [self.heads, self.kv_heads, self.positions, self.head_dim, self.start, k_stride, v_stride];
        let mut p: Vec<u32> = sizes.iter().map(|&n| n as u32).collect();
        p.extend([self.biased.into(), self.norm.is_some().into(), self.norm.unwrap_or(0.0).to_bits()]);
        words(&p)
    }
}

/// Queries, keys and values `[positions, heads * head_dim]`, inputs 0 to 2, as attention wants them: queries to the output `[heads,
/// positions, head_dim]`, keys and values into inputs 3 and 4, which are f16 where `half` is set. Inputs 5 and 6 are cosines and sines
/// `[positions, head_dim / 2]`; then come three biases and two factors of norms, so far as there are such.
pub fn split_heads(s: &HeadsShape, half: bool) -> Launch {
    let mut arguments = s.operands(5);
    arguments.extend([
        ("y", Argument::Output),
        ("keys", Argument::Written(3)),
        ("values", Argument::Written(4)),
        ("p", s.parameters()),
    ]);
    Launch {
        kernel: if half { "split_heads_f16" } else { "split_heads_f32" }.into(),
        groups: [s.heads + 2 * s.kv_heads, s.positions, 1],
        threads: SIMDGROUP,
        shared: vec![],
        arguments,
    }
}
