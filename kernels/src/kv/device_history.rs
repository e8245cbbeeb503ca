//! The pages of one layer in tensors of a GPU.
//!
//! The rule is that of a [`History`](super::History): whether a query sees a page as it came or packed depends on their positions
//! alone. The pages that may still be seen as they came lie in a ring; those of a mark in a copy of it. Packed pages are all
//! kept, those included that no window sees any more.

use super::{
    Codec, Mode, PAGE,
    buffers::{copied, grown},
    history::SEED,
};
use crate::{Rotation, metal::PagesShape};
use candle_core::{DType, Device, Error, Result, Tensor};
use std::{ops::Range, sync::Arc};

/// Packed pages by which a full side grows at least.
const GROWTH: usize = 4;

/// Keys and values of one layer on a GPU, in a mode that packs at least one of them.
#[derive(Debug)]
pub struct DeviceHistory {
    mode: Mode,
    /// Pages before a query's own that are recent to it.
    recent: usize,
    window: Option<usize>,
    held: Option<Held>,
    len: usize,
    /// Pages that are packed, from the first on.
    packed: usize,
    /// Pages that were begun since the ring was empty: it holds the last of these.
    begun: usize,
    /// The first page that it may hold, had it room for more: one that has grown has none of those before.
    oldest: usize,
    mark: Option<Mark>,
}

/// What is allocated.
#[derive(Debug, Clone)]
struct Held {
    kv_heads: usize,
    head_dim: usize,
    rotation: Arc<Rotation>,
    /// Keys and values.
    sides: [Side; 2],
}

#[derive(Debug, Clone)]
struct Side {
    /// `[ring, kv_heads, head_dim, 64]` f16; of a side that is never packed, as many pages as there may be.
    exact: Tensor,
    /// Units `[pages, kv_heads, head_dim, unit bytes]` u8 and scales `[pages, kv_heads, 64]` f16.
    packed: Option<(Tensor, Tensor)>,
}

/// A length to come back to, and the rings as they were.
#[derive(Debug, Clone)]
struct Mark {
    len: usize,
    begun: usize,
    oldest: usize,
    /// Of the sides that are packed.
    exact: [Option<Tensor>; 2],
}

impl DeviceHistory {
    /// An empty one, of which about `recent` positions stay as they came.
    pub fn new(mode: Mode, recent: usize) -> Self {
        let recent = recent.div_ceil(PAGE);
        Self { mode, recent, window: None, held: None, len: 0, packed: 0, begun: 0, oldest: 0, mark: None }
    }

    /// Whether a device can store heads of this width so.
    pub fn takes(mode: Mode, head_dim: usize) -> bool {
        mode.is_packed() && PagesShape::takes(head_dim)
    }

    /// Positions seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that a query sees at most, its own included.
    pub fn window(&self) -> Option<usize> {
        self.window
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        let of = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        let side = |side: &Side| {
            of(&side.exact) + side.packed.iter().map(|(units, scales)| of(units) + of(scales)).sum::<usize>()
        };
        let held: usize = self.held.iter().flat_map(|held| &held.sides).map(side).sum();
        let marked: usize = self.mark.iter().flat_map(|mark| mark.exact.iter().flatten()).map(of).sum();
        held + marked
    }

    /// How attention and appending see what is held.
    pub(crate) fn shape(&self) -> Option<PagesShape<'_>> {
        let held = self.held.as_ref()?;
        Some(PagesShape {
            kv_heads: held.kv_heads,
            head_dim: held.head_dim,
            recent: self.recent,
            rings: held.sides.each_ref().map(|side| side.exact.dims()[0]),
            codecs: [self.mode.keys, self.mode.values],
            rotation: &held.rotation,
        })
    }

    /// Keys and values as they came, packed keys and values, their scales. Where a side is not packed, the first stands in.
    #[cfg(feature = "metal")]
    pub(crate) fn tensors(&self) -> Option<[&Tensor; 6]> {
        let [k, v] = &self.held.as_ref()?.sides;
        let (units, scales) = ([k, v].map(Side::units), [k, v].map(Side::scales));
        Some([&k.exact, &v.exact, units[0], units[1], scales[0], scales[1]])
    }

    /// Makes room for the next `n` positions, and returns the pages that are to be packed with them.
    ///
    /// # Errors
    /// Where heads of this width cannot be stored, or others are held, or there is no memory; the history is then as it was.
    pub(crate) fn reserve(
        &mut self,
        (kv_heads, n, head_dim): (usize, usize, usize),
        device: &Device,
    ) -> Result<Range<usize>> {
        let shape = self.held.as_ref().map(|held| (held.kv_heads, held.head_dim));
        let fits = shape.is_none_or(|shape| shape == (kv_heads, head_dim));
        if !Self::takes(self.mode, head_dim) || kv_heads == 0 || n == 0 || !fits {
            let message = format!(
                "KV pages of {} for {shape:?}: {n} positions of {kv_heads} heads of {head_dim} do not fit",
                self.mode
            );
            return Err(Error::Msg(message).bt());
        }
        let end = self.len + n;
        let pack = self.packed..self.packable(end).max(self.packed);
        let rotation = match &self.held {
            Some(held) => held.rotation.clone(),
            None => {
                let block = Rotation::best_block(head_dim).unwrap_or(PAGE);
                Arc::new(Rotation::new(head_dim, block, SEED).map_err(Error::wrap)?)
            }
        };
        let side = |i: usize, codec: Codec| {
            let held = self.held.as_ref().map(|held| &held.sides[i]);
            let exact = match codec.is_packed() {
                true => Room::exactly(self.recent + n.div_ceil(PAGE) + 2, self.exact_pages()),
                false => Room::ahead(end.div_ceil(PAGE), 0..self.len.div_ceil(PAGE)),
            };
            let exact =
                exact.of(held.map(|held| &held.exact), &[kv_heads, head_dim, PAGE], DType::F16, device)?;
            if !codec.is_packed() {
                return Ok(Side { exact, packed: None });
            }
            let held = held.and_then(|held| held.packed.as_ref());
            let (room, unit) = (Room::ahead(pack.end.max(1), 0..self.packed), codec.unit_bytes());
            let units =
                room.of(held.map(|(units, _)| units), &[kv_heads, head_dim, unit], DType::U8, device)?;
            let scales = room.of(held.map(|(_, scales)| scales), &[kv_heads, PAGE], DType::F16, device)?;
            Ok::<_, Error>(Side { exact, packed: Some((units, scales)) })
        };
        let sides = [side(0, self.mode.keys)?, side(1, self.mode.values)?];
        self.oldest = self.exact_pages().start;
        self.held = Some(Held { kv_heads, head_dim, rotation, sides });
        // From here on the ring's oldest pages may be written over.
        self.begun = self.begun.max(end.div_ceil(PAGE));
        Ok(pack)
    }

    /// Counts the positions that were put where [`reserve`](Self::reserve) made room, and the pages packed with them. Queries see
    /// `window` positions, their own included, and all before them where that is `None`.
    pub(crate) fn advance(&mut self, n: usize, pack: Range<usize>, window: Option<usize>) {
        (self.len, self.packed, self.window) = (self.len + n, pack.end, window);
    }

    /// Pages that the latest of `len` positions sees packed.
    fn packable(&self, len: usize) -> usize {
        (len.saturating_sub(1) / PAGE).saturating_sub(self.recent)
    }

    /// Pages that are held as they came.
    fn exact_pages(&self) -> Range<usize> {
        let packed = [self.mode.keys, self.mode.values].map(Codec::is_packed);
        let rings = self.shape().map(|shape| shape.rings.into_iter().zip(packed));
        let ring = rings.into_iter().flatten().filter(|(_, packed)| *packed).map(|(ring, _)| ring).min();
        self.begun.saturating_sub(ring.unwrap_or(0)).max(self.oldest)..self.begun
    }

    /// Whether the pages are held that a query at position `len` sees as they came.
    fn holds_for(&self, len: usize) -> bool {
        len == 0 || (len / PAGE).saturating_sub(self.recent) >= self.exact_pages().start
    }

    /// Remembers the present length as one to go back to, in the place of the one remembered before.
    pub fn set_mark(&mut self) {
        let ring = |side: &Side| side.packed.is_some().then(|| copied(&side.exact)).transpose();
        let rings =
            self.held.as_ref().map(|held| Ok::<_, Error>([ring(&held.sides[0])?, ring(&held.sides[1])?]));
        // Without memory for it there is none to go back to.
        let exact = rings.and_then(Result::ok);
        self.mark = exact.map(|exact| Mark { len: self.len, begun: self.begun, oldest: self.oldest, exact });
    }

    /// The greatest length up to `len` to which [`truncate`](Self::truncate) can go back.
    pub fn reachable(&self, len: usize) -> usize {
        if len >= self.len {
            return self.len;
        }
        let mark = self.mark.as_ref().map(|mark| mark.len).filter(|&mark| mark <= len);
        if self.holds_for(len) { len } else { mark.unwrap_or(0) }
    }

    /// Forgets the positions from `len` on, where `len` is [`reachable`](Self::reachable); otherwise all of them.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        if len == 0 || (!self.holds_for(len) && !self.restore_mark(len)) {
            *self = self.emptied();
            return;
        }
        self.len = len;
        // Of those packed already, the ones that a query at `len` sees so.
        self.packed = self.packed.min((len / PAGE).saturating_sub(self.recent));
        self.mark = self.mark.take().filter(|mark| mark.len <= len);
    }

    /// Puts the rings back as they were at the mark, where that is `len`.
    fn restore_mark(&mut self, len: usize) -> bool {
        let (Some(mark), Some(held)) = (self.mark.as_ref().filter(|mark| mark.len == len), &mut self.held)
        else {
            return false;
        };
        for (side, exact) in held.sides.iter_mut().zip(&mark.exact) {
            let Some(exact) = exact else { continue };
            let Ok(exact) = copied(exact) else { return false };
            side.exact = exact;
        }
        (self.begun, self.oldest) = (mark.begun, mark.oldest);
        true
    }

    /// An empty one of the same kind.
    pub fn emptied(&self) -> Self {
        Self { recent: self.recent, ..Self::new(self.mode, 0) }
    }
}

impl Clone for DeviceHistory {
    /// A copy with tensors of its own: appending to one does not show in the other. Empty where there is no memory for it.
    fn clone(&self) -> Self {
        let copied = || {
            let held = self.held.as_ref().map(|held| {
                let sides = [held.sides[0].copy()?, held.sides[1].copy()?];
                Ok::<_, Error>(Held { sides, rotation: held.rotation.clone(), ..*held })
            });
            held.transpose()
        };
        match copied() {
            Ok(held) => Self { held, mark: self.mark.clone(), ..*self },
            Err(_) => self.emptied(),
        }
    }
}

impl Side {
    #[cfg(feature = "metal")]
    fn units(&self) -> &Tensor {
        self.packed.as_ref().map_or(&self.exact, |(units, _)| units)
    }

    #[cfg(feature = "metal")]
    fn scales(&self) -> &Tensor {
        self.packed.as_ref().map_or(&self.exact, |(_, scales)| scales)
    }

    fn copy(&self) -> Result<Self> {
        let packed = self.packed.as_ref();
        let packed = packed.map(|(units, scales)| Ok::<_, Error>((copied(units)?, copied(scales)?)));
        Ok(Self { exact: copied(&self.exact)?, packed: packed.transpose()? })
    }
}

/// How many pages a tensor must have.
struct Room {
    needed: usize,
    /// Whether one that has fewer grows by a share of them too, which keeps the copying per position constant.
    ahead: bool,
    /// Pages that are held already.
    kept: Range<usize>,
}

impl Room {
    fn exactly(needed: usize, kept: Range<usize>) -> Self {
        Self { needed, ahead: false, kept }
    }

    fn ahead(needed: usize, kept: Range<usize>) -> Self {
        Self { needed, ahead: true, kept }
    }

    /// The tensor of pages, or a larger one with what it holds: page `i` at `i` modulo the number of pages.
    fn of(&self, held: Option<&Tensor>, dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let pages = held.map_or(0, |held| held.dims()[0]);
        if let Some(held) = held.filter(|_| pages >= self.needed) {
            return Ok(held.clone());
        }
        let wanted = if self.ahead { grown(pages, self.needed, GROWTH) } else { self.needed };
        let new = Tensor::zeros([&[wanted][..], dims].concat(), dtype, device)?;
        if let Some(held) = held {
            let mut page = self.kept.start;
            while page < self.kept.end {
                let (from, to) = (page % pages, page % wanted);
                let run = (pages - from).min(wanted - to).min(self.kept.end - page);
                new.slice_set(&held.narrow(0, from, run)?, 0, to)?;
                page += run;
            }
        }
        Ok(new)
    }
}
