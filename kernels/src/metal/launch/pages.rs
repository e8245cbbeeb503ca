//! Keys and values put into pages.

use super::{Argument, HeadsShape, Launch, SIMDGROUP, words};
use crate::{
    Rotation,
    kv::{Codec, PAGE, codec::ROUNDS},
};
use std::ops::Range;

/// The widest head that there are kernels for: a lane holds eight channels.
pub(super) const WIDEST: usize = 256;

/// Pages of one layer on a device: `pages.metal` has their layout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PagesShape<'a> {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Pages before a query's own that it sees as they came.
    pub recent: usize,
    /// Pages of keys, and of values, that are held as they came.
    pub rings: [usize; 2],
    /// Of keys and of values.
    pub codecs: [Codec; 2],
    /// What packed sides have passed through.
    pub rotation: &'a Rotation,
}

impl PagesShape<'_> {
    /// Whether there are kernels for heads of this width.
    pub fn takes(head_dim: usize) -> bool {
        head_dim.is_multiple_of(PAGE) && (PAGE..=WIDEST).contains(&head_dim)
    }

    /// `Pages` of `pages.metal`.
    pub(super) fn parameters(&self) -> Argument {
        let bits = self.codecs.map(|codec| codec.bits().min(16));
        let block = self.rotation.block();
        let [keys, values] = self.rings;
        words(
            &[self.kv_heads, self.head_dim, self.recent, block, keys, values, bits[0], bits[1]]
                .map(|n| n as u32),
        )
    }

    /// The rotation's signs, of as many channels as there may be.
    pub(super) fn signs(&self) -> Argument {
        let signs = self.rotation.signs().iter().copied().chain(std::iter::repeat(0)).take(WIDEST / 64);
        Argument::Bytes(signs.flat_map(u64::to_le_bytes).collect())
    }

    /// The levels of keys, then of values.
    pub(super) fn levels(&self) -> Argument {
        let levels = self.codecs.iter().flat_map(|codec| codec.table());
        Argument::Bytes(levels.flat_map(|level| level.to_le_bytes()).collect())
    }

    /// Threadgroups that pack a head of a page.
    fn packers(&self) -> usize {
        self.codecs.iter().filter(|codec| codec.is_packed()).map(|codec| codec.unit_bytes()).sum()
    }
}

/// As [`split_heads`](super::split_heads), but keys and values are put into pages, and the pages `pack` packed: inputs 3 to 8 are
/// keys and values as they came, packed keys and values, scales of keys and of values; cosines and so on follow.
///
/// Those of a single position, which were full before it, go into its launch, others into one of their own.
pub fn append_pages(s: &HeadsShape, pages: &PagesShape, pack: Range<usize>) -> Vec<Launch> {
    let launch = |heads: usize, positions: usize, pack: &Range<usize>| {
        let packing = [heads as u32, pack.start as u32, ROUNDS as u32];
        let scales = pages.codecs.map(|codec| codec.gaussian_scale().to_bits());
        let mut arguments = s.operands(9);
        arguments.extend([
            ("y", Argument::Output),
            ("recent_keys", Argument::Written(3)),
            ("recent_values", Argument::Written(4)),
            ("packed_keys", Argument::Written(5)),
            ("packed_values", Argument::Written(6)),
            ("key_scales", Argument::Written(7)),
            ("value_scales", Argument::Written(8)),
            ("signs", pages.signs()),
            ("levels", pages.levels()),
            ("p", s.parameters()),
            ("pages", pages.parameters()),
            ("packing", words(&[packing[0], packing[1], packing[2], scales[0], scales[1]])),
        ]);
        let packers = pack.len() * pages.kv_heads * pages.packers();
        let groups = [heads + packers, positions, 1];
        Launch { kernel: "append_pages".into(), groups, threads: SIMDGROUP, shared: vec![], arguments }
    };
    let heads = s.heads + 2 * s.kv_heads;
    if s.positions == 1 || pack.is_empty() {
        vec![launch(heads, s.positions, &pack)]
    } else {
        vec![launch(heads, s.positions, &(0..0)), launch(0, 1, &pack)]
    }
}
