//! Attention.

use super::{Argument, Launch, PagesShape, SIMDGROUP, pages::WIDEST, words};
use crate::{kv::PAGE, ops::DenseAttention};

/// Simdgroups that share the keys of a query in `attention.metal`.
const ATTENTION_SIMDGROUPS: usize = 8;

/// From so many positions on, queries come in tiles.
const TILED: usize = 8;

/// `AttentionShape` of `attention.metal`.
fn parameters(
    op: &DenseAttention,
    [heads, n, head_dim]: [usize; 3],
    [kv_heads, positions]: [usize; 2],
    strides: [usize; 2],
) -> Argument {
    let window = op.window.map_or(0, |window| window.min(positions));
    let sizes = [heads, kv_heads, n, positions, head_dim, strides[0], strides[1], window];
    let mut p: Vec<u32> = sizes.iter().map(|&n| n as u32).collect();
    p.extend([op.scale.to_bits(), op.softcap.unwrap_or(0.0).to_bits()]);
    words(&p)
}

/// Bytes of the mixes of a threadgroup's simdgroups, and of their largest scores and sums.
fn partial(head_dim: usize) -> [usize; 2] {
    let mixes = (ATTENTION_SIMDGROUPS * head_dim * size_of::<f32>()).next_multiple_of(16);
    [mixes, 2 * ATTENTION_SIMDGROUPS * size_of::<f32>()]
}

/// `Tile` of `attention_tiled.metal`.
struct Tile {
    width: usize,
    rows: usize,
}

impl Tile {
    /// That of the kernel for heads of this width.
    fn of(head_dim: usize) -> Self {
        let width = head_dim.next_power_of_two().max(64);
        Self { width, rows: if width > 128 { 16 } else { 32 } }
    }

    fn threads(&self) -> usize {
        4 * self.rows
    }

    /// A threadgroup for a key head's queries of each tile of the pages that they are in.
    fn groups(&self, heads: usize, n: usize, [kv_heads, positions]: [usize; 2]) -> [usize; 3] {
        let pages = positions.div_ceil(PAGE) - (positions - n) / PAGE;
        [kv_heads, pages * (PAGE * heads / kv_heads / self.rows), 1]
    }

    /// Bytes of the block, and of the scores with a diagonal matrix a simdgroup.
    fn shared(&self) -> [usize; 2] {
        let simdgroups = self.rows / 8;
        [self.rows * (self.width + 4), simdgroups * (8 * (self.rows + 4) + 64)].map(|n| n * size_of::<f32>())
    }
}

/// Attention of `q [heads, n, head_dim]`, input 0, over keys and values `[kv_heads, positions, head_dim]`, inputs 1 and 2,
/// whose heads lie `strides` values apart and which are f16 where `half` is set; `None` for heads wider than 256.
pub fn attention(
    op: &DenseAttention,
    q: [usize; 3],
    kv: [usize; 2],
    strides: [usize; 2],
    half: bool,
) -> Option<Launch> {
    let [heads, n, head_dim] = q;
    let (per_lane, name) =
        (head_dim.div_ceil(SIMDGROUP).next_power_of_two(), if half { "f16" } else { "f32" });
    if head_dim > WIDEST {
        return None;
    }
    let (kernel, groups, threads, shared) = if n < TILED {
        let threads = ATTENTION_SIMDGROUPS * SIMDGROUP;
        (format!("attention_{name}_{per_lane}"), [heads, n, 1], threads, partial(head_dim).into())
    } else {
        let tile = Tile::of(head_dim);
        let groups = tile.groups(heads, n, kv);
        (format!("attention_tiled_{name}_{}", tile.width), groups, tile.threads(), tile.shared().into())
    };
    Some(Launch {
        kernel,
        groups,
        threads,
        shared,
        arguments: vec![
            ("q", Argument::Input(0)),
            ("k", Argument::Input(1)),
            ("v", Argument::Input(2)),
            ("y", Argument::Output),
            ("p", parameters(op, q, kv, strides)),
        ],
    })
}

/// Attention of `q [heads, n, head_dim]`, input 0, for the last `n` of `positions` in pages: inputs 1 to 6 are keys and values as they
/// came, packed keys and values, scales of keys and of values. Queries have been rotated where keys are packed. `None` for widths
/// that [`PagesShape::takes`] not.
pub fn attention_pages(
    op: &DenseAttention,
    [heads, n]: [usize; 2],
    positions: usize,
    pages: &PagesShape,
) -> Option<Launch> {
    let head_dim = pages.head_dim;
    if !PagesShape::takes(head_dim) {
        return None;
    }
    let kv = [pages.kv_heads, positions];
    let (kernel, groups, threads, [a, b]) = if n < TILED {
        let threads = ATTENTION_SIMDGROUPS * SIMDGROUP;
        (format!("attention_pages_{}", head_dim / PAGE), [heads, n, 1], threads, partial(head_dim))
    } else {
        let tile = Tile::of(head_dim);
        let groups = tile.groups(heads, n, kv);
        (format!("attention_pages_tiled_{}", tile.width), groups, tile.threads(), tile.shared())
    };
    Some(Launch {
        kernel,
        groups,
        threads,
        shared: vec![2 * 16 * size_of::<f32>(), a, b],
        arguments: vec![
            ("q", Argument::Input(0)),
            ("recent_keys", Argument::Input(1)),
            ("recent_values", Argument::Input(2)),
            ("packed_keys", Argument::Input(3)),
            ("packed_values", Argument::Input(4)),
            ("key_scales", Argument::Input(5)),
            ("value_scales", Argument::Input(6)),
            ("signs", pages.signs()),
            ("table", pages.levels()),
            ("y", Argument::Output),
            ("p", parameters(op, [heads, n, head_dim], kv, [0, 0])),
            ("pages", pages.parameters()),
        ],
    })
}
