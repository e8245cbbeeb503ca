//! The pages of one layer.
//!
//! A query at position `i` sees the page of position `j` as it came where the page is *recent* to it, and packed otherwise:
//!
//! ```text
//! recent:  i div 64 - j div 64 <= ceil(window of recent positions / 64)
//! ```
//!
//! The rule knows positions only. So it does not matter in what portions a text was read, and a history that goes back to an
//! earlier position is the one of a text that ended there; it goes back only to where the pages that were recent then are still held.

use super::{Codec, Mode, PAGE, Page, Side, Store};
use crate::{
    Error, Result, Rotation,
    arch::{self, page::PageKernels},
    kv::page::Half,
    ops::{Matrices, matrices_of},
};
use candle_core::Tensor;
use rayon::prelude::*;
use std::{borrow::Cow, collections::VecDeque, ops::Range};

/// Seed of the rotation's signs.
pub const SEED: u64 = 0x6b76;

/// Positions that stay as they came, unless said otherwise.
pub const RECENT: usize = 128;

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub struct History {
    mode: Mode,
    /// Pages before a query's own that are recent to it.
    recent: usize,
    window: Option<usize>,
    shape: Option<Shape>,
    /// Index of the first of `pages`.
    first: usize,
    /// Pages that are no longer needed, between others that are, hold nothing.
    pages: VecDeque<Page>,
    len: usize,
    mark: Option<usize>,
}

#[derive(Debug, Clone)]
struct Shape {
    kv_heads: usize,
    head_dim: usize,
    rotation: Option<Rotation>,
}

impl Default for History {
    /// An empty history in f32.
    fn default() -> Self {
        Self::new(Mode::F32, RECENT)
    }
}

impl History {
    /// The most bytes that a history takes which holds up to `positions`, read at most `chunk` at a time.
    pub fn most_bytes(
        mode: Mode,
        recent: usize,
        (kv_heads, head_dim): (usize, usize),
        window: Option<usize>,
        positions: usize,
        chunk: usize,
    ) -> usize {
        let all = positions.div_ceil(PAGE);
        let page = |keys, values| {
            Store::size(Side::Keys, keys, kv_heads, head_dim)
                + Store::size(Side::Values, values, kv_heads, head_dim)
        };
        // At the end and at the mark: what a window or the recent positions span, the pages cut on both sides, and one more.
        let at_two = |pages: usize| (2 * (pages + 2) + chunk.div_ceil(PAGE)).min(all);
        let held = window.map_or(all, |window| at_two(window.div_ceil(PAGE) + 1));
        if !mode.is_packed() {
            return held * page(mode.keys, mode.values);
        }
        let exact = mode.exact();
        // A side that is not packed is held once.
        let side = |side, codec: Codec| match codec.is_packed() {
            true => {
                held * Store::size(side, codec, kv_heads, head_dim)
                    + at_two(recent.div_ceil(PAGE)).min(held) * Store::size(side, exact, kv_heads, head_dim)
            }
            false => held * Store::size(side, exact, kv_heads, head_dim),
        };
        side(Side::Keys, mode.keys) + side(Side::Values, mode.values)
    }

    /// An empty history, of which about `recent` positions stay as they came.
    pub fn new(mode: Mode, recent: usize) -> Self {
        Self {
            mode,
            recent: recent.div_ceil(PAGE),
            window: None,
            shape: None,
            first: 0,
            pages: VecDeque::new(),
            len: 0,
            mark: None,
        }
    }

    /// An empty history of the same kind.
    pub fn emptied(&self) -> Self {
        Self { recent: self.recent, ..Self::new(self.mode, 0) }
    }

    /// Whether this shape can be stored so.
    ///
    /// # Errors
    /// [`Error::KvShape`] for no heads, and where vectors of this width cannot be rotated.
    pub fn check(mode: Mode, kv_heads: usize, head_dim: usize) -> Result<()> {
        let reason = if kv_heads == 0 || head_dim == 0 {
            "there must be some"
        } else if mode.is_packed() && (!head_dim.is_multiple_of(PAGE) || head_dim > 1 << 12) {
            "the width must be a multiple of 64, and 4096 at most"
        } else {
            return Ok(());
        };
        Err(Error::KvShape { mode: mode.to_string(), kv_heads, head_dim, reason })
    }

    /// How positions are stored.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Positions seen, those included that no window sees any more.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes allocated for keys, values and scales.
    pub fn bytes(&self) -> usize {
        self.pages.iter().map(Page::bytes).sum()
    }

    /// Positions that any page is held of, up to the last.
    pub fn held(&self) -> Range<usize> {
        (self.first * PAGE).min(self.len)..self.len
    }

    /// Heads, and their width; `None` before anything was appended.
    pub fn shape(&self) -> Option<(usize, usize)> {
        self.shape.as_ref().map(|shape| (shape.kv_heads, shape.head_dim))
    }

    /// The rotation that keys have passed through, if they have.
    pub fn key_rotation(&self) -> Option<&Rotation> {
        self.shape.as_ref().filter(|_| self.mode.keys.is_packed())?.rotation.as_ref()
    }

    /// The rotation that values have passed through, if they have.
    pub fn value_rotation(&self) -> Option<&Rotation> {
        self.shape.as_ref().filter(|_| self.mode.values.is_packed())?.rotation.as_ref()
    }

    /// The page of this index, if anything of it is held.
    pub fn page(&self, index: usize) -> Option<&Page> {
        self.pages.get(index.checked_sub(self.first)?)
    }

    /// Whether a page is recent to queries of another.
    pub fn is_recent(&self, query_page: usize, page: usize) -> bool {
        query_page <= page + self.recent
    }

    /// The positions that a query sees.
    pub fn seen(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Takes `keys` and `values`, `[kv_heads, n, head_dim]` f32, of the next `n` positions. Queries see `window` positions,
    /// their own included, and all before them where that is `None`.
    ///
    /// # Errors
    /// When shapes do not fit together or the mode; the history is then as it was.
    pub fn append(
        &mut self,
        keys: &Tensor,
        values: &Tensor,
        window: Option<usize>,
    ) -> candle_core::Result<()> {
        let (k, v) = (matrices_of("KV history: keys", keys), matrices_of("KV history: values", values));
        self.extend(&k.get()?, &v.get()?, window)
    }

    /// [`append`](Self::append) of a single position on the CPU: `keys` and `values [kv_heads, head_dim]`, which are then as the history
    /// rotates them.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_single(
        &mut self,
        keys: &mut [f32],
        values: &mut [f32],
        head_dim: usize,
        window: Option<usize>,
    ) -> candle_core::Result<()> {
        let dims = |x: &[f32]| [x.len().checked_div(head_dim).unwrap_or(0), 1, head_dim];
        let whole = [&*keys, &*values].iter().all(|x| x.len().is_multiple_of(head_dim));
        let kernels = self.prepare(dims(keys), if whole { dims(values) } else { [0; 3] }, window)?;
        for (x, rotation) in [(&mut *keys, self.key_rotation()), (&mut *values, self.value_rotation())] {
            rotation.iter().for_each(|rotation| x.chunks_exact_mut(head_dim).for_each(|x| rotation.apply(x)));
        }
        self.store(kernels, keys, values, 1);
        Ok(())
    }

    /// As [`append`](Self::append).
    pub(crate) fn extend(
        &mut self,
        k: &Matrices,
        v: &Matrices,
        window: Option<usize>,
    ) -> candle_core::Result<()> {
        let kernels = self.prepare(k.dims, v.dims, window)?;
        let keys = rotated(k, self.key_rotation());
        let values = rotated(v, self.value_rotation());
        self.store(kernels, &keys, &values, k.dims[1]);
        Ok(())
    }

    /// Looks whether keys and values `[kv_heads, n, head_dim]` fit, and remembers what they are like.
    fn prepare(
        &mut self,
        k: [usize; 3],
        v: [usize; 3],
        window: Option<usize>,
    ) -> candle_core::Result<PageKernels> {
        let [kv_heads, _, head_dim] = k;
        Self::check(self.mode, kv_heads, head_dim).map_err(candle_core::Error::wrap)?;
        let fits = self.shape().is_none_or(|shape| shape == (kv_heads, head_dim));
        if k != v || !fits || window == Some(0) {
            let message = format!(
                "KV history of {:?}: keys {k:?} and values {v:?} do not fit, window {window:?}",
                self.shape()
            );
            return Err(candle_core::Error::Msg(message).bt());
        }
        let kernels = arch::kernels().map_err(candle_core::Error::wrap)?.pages;
        if self.shape.is_none() {
            let block = Rotation::best_block(head_dim).filter(|_| self.mode.is_packed());
            let rotation = block.map(|block| Rotation::new(head_dim, block, SEED)).transpose();
            let rotation = rotation.map_err(candle_core::Error::wrap)?;
            self.shape = Some(Shape { kv_heads, head_dim, rotation });
        }
        self.window = window;
        Ok(kernels)
    }

    /// Writes the vectors `[kv_heads, n, head_dim]` of the next positions, rotated where they are to be, and packs what they push out of the
    /// recent ones.
    fn store(&mut self, kernels: PageKernels, keys: &[f32], values: &[f32], n: usize) {
        let (kv_heads, head_dim) = self.shape().expect("what is stored was prepared for");
        let (start, end) = (self.len, self.len + n);
        if self.pages.is_empty() {
            self.first = start / PAGE;
        }
        while (self.first + self.pages.len()) * PAGE < end {
            self.pages.push_back(Page::default());
        }
        let (first, exact, mode, recent) = (self.first, self.mode.exact(), self.mode, self.recent);
        let touched = (start / PAGE).min(self.last_packed(end)).max(first) - first;
        let work = |(i, page): (usize, &mut Page)| {
            let index = first + touched + i;
            let positions = start.max(index * PAGE)..end.min((index + 1) * PAGE);
            if !positions.is_empty() {
                let write = |side, half: &mut Half, vectors: &[f32]| {
                    let store = half.exact.get_or_insert_with(|| Store::new(side, exact, kv_heads, head_dim));
                    for head in 0..kv_heads {
                        for position in positions.clone() {
                            let row = head * n + position - start;
                            store.write(head, position % PAGE, &vectors[row * head_dim..][..head_dim]);
                        }
                    }
                };
                write(Side::Keys, &mut page.keys, keys);
                write(Side::Values, &mut page.values, values);
            }
            // Some query among the last ones sees the page packed.
            if n > 0 && index + recent < (end - 1) / PAGE {
                for (codec, half) in [(mode.keys, &mut page.keys), (mode.values, &mut page.values)] {
                    if codec.is_packed() && half.packed.is_none() {
                        half.packed = half.exact.as_ref().map(|exact| exact.packed(codec, kernels));
                    }
                }
            }
        };
        let pages = &mut self.pages.make_contiguous()[touched..];
        match n {
            0 | 1 => pages.iter_mut().enumerate().for_each(work),
            _ => pages.par_iter_mut().with_max_len(1).enumerate().for_each(work),
        }
        self.len = end;
    }

    /// The first page that may have to be packed when the history grows to `end`.
    fn last_packed(&self, end: usize) -> usize {
        let unpacked = |page: &Page| {
            let missing = |codec: Codec, half: &Half| {
                codec.is_packed() && half.packed.is_none() && half.exact.is_some()
            };
            missing(self.mode.keys, &page.keys) || missing(self.mode.values, &page.values)
        };
        let at = self.pages.iter().position(unpacked).unwrap_or(self.pages.len());
        (self.first + at).min(end / PAGE)
    }

    /// Remembers the present length as one to go back to, in the place of the one remembered before.
    pub fn set_mark(&mut self) {
        self.mark = Some(self.len);
    }

    /// The length remembered.
    pub fn mark(&self) -> Option<usize> {
        self.mark
    }

    /// This history with another length remembered.
    pub fn with_mark(self, mark: Option<usize>) -> Self {
        Self { mark, ..self }
    }

    /// Positions that a query sees at most, its own included.
    pub fn window(&self) -> Option<usize> {
        self.window
    }

    /// Drops what no query at the next position or the mark needs: pages that no window sees, and pages as they came that are no longer
    /// recent. A page more than necessary is kept, so that a few positions can be taken back.
    pub fn prune(&mut self) {
        // A mark that is not there is the end once more.
        let places = [self.len, self.mark.unwrap_or(self.len)];
        let (recent, first) = (self.recent, self.first);
        let seen = places.map(|at| (self.seen(at).start / PAGE).saturating_sub(1));
        for (i, page) in self.pages.iter_mut().enumerate() {
            let index = first + i;
            // Between two places that see a window each, there may be what neither sees.
            let near = |at: usize, from: usize| from <= index && index <= at / PAGE;
            if !places.iter().zip(&seen).any(|(&at, &from)| near(at, from)) {
                *page = Page::default();
                continue;
            }
            if !places.iter().any(|&at| near(at, (at / PAGE).saturating_sub(recent + 1))) {
                for half in [&mut page.keys, &mut page.values] {
                    if half.packed.is_some() {
                        half.exact = None;
                    }
                }
            }
        }
        while self.pages.front().is_some_and(|page| page.bytes() == 0) {
            self.pages.pop_front();
            self.first += 1;
        }
    }

    /// Whether all that a query at position `len` may see is held as it must see it.
    fn holds_for(&self, len: usize) -> bool {
        let seen = self.seen(len).start / PAGE..len.div_ceil(PAGE);
        seen.into_iter().all(|index| {
            let recent = self.is_recent(len / PAGE, index);
            self.page(index)
                .is_some_and(|page| page.keys.seen(recent).is_some() && page.values.seen(recent).is_some())
        })
    }

    /// The greatest length up to `len` to which [`truncate`](Self::truncate) can go back.
    pub fn reachable(&self, len: usize) -> usize {
        if len >= self.len {
            return self.len;
        }
        let pages = (0..=len / PAGE).rev().map(|page| page * PAGE);
        let mark = self.mark.filter(|&mark| mark <= len);
        let by_page = pages.into_iter().find(|&len| len == 0 || self.holds_for(len)).unwrap_or(0);
        let single = [Some(len), mark].into_iter().flatten().filter(|&len| self.holds_for(len)).max();
        single.unwrap_or(0).max(by_page)
    }

    /// Forgets the positions from `len` on, where `len` is [`reachable`](Self::reachable); otherwise all of them.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        if len == 0 || !self.holds_for(len) {
            self.pages.clear();
            (self.first, self.len, self.mark) = (0, 0, None);
            return;
        }
        self.pages.truncate(len.div_ceil(PAGE).saturating_sub(self.first));
        // A page that is to be written on is recent.
        if let Some(page) = self.pages.back_mut().filter(|_| !len.is_multiple_of(PAGE)) {
            for half in [&mut page.keys, &mut page.values] {
                if half.exact.is_some() {
                    half.packed = None;
                }
            }
        }
        self.len = len;
        self.mark = self.mark.filter(|&mark| mark <= len);
    }

    /// The index of the first page held, and the pages: what [`History::restored`] takes.
    pub fn pages(&self) -> (usize, impl Iterator<Item = &Page>) {
        (self.first, self.pages.iter())
    }

    /// A history of pages written down before; `None` where they do not fit.
    pub fn restored(
        mode: Mode,
        recent: usize,
        (kv_heads, head_dim): (usize, usize),
        window: Option<usize>,
        len: usize,
        first: usize,
        pages: Vec<Page>,
    ) -> Option<Self> {
        Self::check(mode, kv_heads, head_dim).ok()?;
        if len == 0 {
            return (first == 0 && pages.is_empty()).then(|| Self::new(mode, recent));
        }
        let block = Rotation::best_block(head_dim).filter(|_| mode.is_packed());
        let rotation = block.and_then(|block| Rotation::new(head_dim, block, SEED).ok());
        let found = Self {
            window,
            shape: Some(Shape { kv_heads, head_dim, rotation }),
            first,
            pages: pages.into(),
            len,
            ..Self::new(mode, recent)
        };
        let fits = first.checked_add(found.pages.len()) == Some(len.div_ceil(PAGE)) && window != Some(0);
        (fits && found.holds_for(len)).then_some(found)
    }
}

/// The vectors, one after the other, and rotated where they are to be.
fn rotated<'a>(m: &Matrices<'a>, rotation: Option<&Rotation>) -> Cow<'a, [f32]> {
    let [count, rows, cols] = m.dims;
    if rotation.is_none() && (m.stride == rows * cols || count == 1) {
        return Cow::Borrowed(&m.values[..count * rows * cols]);
    }
    let mut all: Vec<f32> = Vec::with_capacity(count * rows * cols);
    (0..count).for_each(|i| all.extend(m.rows(i, 0..rows)));
    if let Some(rotation) = rotation {
        match rows {
            1 => all.chunks_exact_mut(cols).for_each(|x| rotation.apply(x)),
            _ => all.par_chunks_exact_mut(cols).with_min_len(32).for_each(|x| rotation.apply(x)),
        }
    }
    Cow::Owned(all)
}
