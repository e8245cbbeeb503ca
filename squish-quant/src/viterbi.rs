//! The search for the best code of a tile in a trellis scheme: Viterbi's algorithm.
//!
//! Weight `i` of a tile has a window `w_i` of twelve bits, which names its level; with `k` bits a weight and `Q = 4096 / 2^k`
//! the next window is `w_{i+1} = (w_i >> k) + b Q` for some symbol `b < 2^k` ([`squish_kernels::scheme::trellis`]). So all
//! that the windows before `i` need to know of those from `i` on is `w_i % Q`, the *class*. Running from the last weight to the first,
//! the least cost of the windows from `i` on whose first is of class `u` is
//!
//! ```text
//! C_i[u] = min over b of  importance * (target_i - level[u + b Q])^2 + C_{i+1}[(u + b Q) >> k]
//! ```
//!
//! and the minimising `b`, kept for each `i` and `u`, lead back along the best path: `w_i = u_i + b Q`, `u_{i+1} = w_i >> k`.
//!
//! The ring closes: `u_256 = u_0`. A first pass, over a stretch of the ring around its seam only (192 bits to either side, its
//! ends free), decides on that class; the second, over the whole ring, is held to it. Trying every class would be exact, and would take
//! `Q` passes.
//!
//! **Speed.** There are 4096 windows at every weight, but only 256 pairs of four bits that they are looked up by: squares are taken of
//! these, and a window costs an addition and a minimum. A vector's lanes are tiles, so that nothing is ever moved between lanes: as
//! many tiles as a vector has lanes cost as much as one ([`lanes`]). The symbol rides along in the last `k` bits of the cost's
//! significand, where it stands for a relative error of `2^(k - 23)` at most: one minimum gives cost and symbol, and of equal costs the least
//! symbol. Products are rounded before they are added (no fused operations), hence all instruction sets find the same codes.

use pulp::{Arch, Simd, WithSimd};
use squish_kernels::scheme::trellis::{self, Codebook, TILE, TILE_WEIGHTS, WINDOW_BITS, pair};

/// Windows of a weight.
const WINDOWS: usize = 1 << WINDOW_BITS;
/// Pairs of four bits that a window is looked up by.
const PAIRS: usize = 256;

/// Bits to either side of the seam that decide how the ring closes: 16 windows that have none in common.
const REACH_BITS: usize = 192;

/// Targets are held within this many levels' units of zero. A larger one would ask for the outermost level just as well.
const LIMIT: f32 = 65536.0;

/// The cost of what is forbidden: more than any path's, `256 (2 LIMIT)^2`, and far from overflow.
const FORBIDDEN: f32 = 1e30;

/// The cost that passes start from. Not zero: a symbol in the last bits of a zero would make it subnormal.
const START: f32 = 1.0;

/// How many tiles are searched side by side: callers that split work do well to keep to multiples of it.
pub fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    Arch::new().dispatch(Lanes)
}

/// The search in one trellis, with its scratch space: one for each thread.
#[derive(Debug, Clone)]
pub struct Viterbi {
    bits: usize,
    codebook: Codebook,
    /// Targets of as many tiles as there are lanes, weight by weight.
    targets: Aligned<f32>,
    /// What a weight's pairs cost by themselves.
    pairs: Aligned<f32>,
    /// `C_i[u]`, with symbols, of two steps.
    costs: [Aligned<f32>; 2],
    /// The symbols of every step of a pass, [`classes_a_word`] classes in 32 bits, the first one highest.
    symbols: Aligned<u32>,
}

impl Viterbi {
    /// The trellis of `bits` a weight with these levels.
    ///
    /// # Panics
    /// Unless `bits` is 2, 3, 4 or 5.
    pub fn new(bits: usize, codebook: &Codebook) -> Self {
        assert!((2..=5).contains(&bits), "trellis codes have 2, 3, 4 or 5 bits a weight");
        let (lanes, classes) = (lanes(), WINDOWS >> bits);
        Self {
            bits,
            codebook: *codebook,
            targets: Aligned::new(TILE_WEIGHTS * lanes),
            pairs: Aligned::new(PAIRS * lanes),
            costs: [(); 2].map(|()| Aligned::new(classes * lanes)),
            symbols: Aligned::new(TILE_WEIGHTS * classes / classes_a_word(bits) * lanes),
        }
    }

    /// Bytes of a tile's code.
    pub fn tile_bytes(&self) -> usize {
        TILE_WEIGHTS / 8 * self.bits
    }

    /// Finds the code of each tile, and the levels that it stands for, with the least
    /// `sum over i of importance[i % 16] * (target[i] - level[i])^2`.
    ///
    /// `targets` are tiles of 16 x 16, row by row, in units of the levels; so are `levels`. `importance`, of a column, is not negative;
    /// if it is zero all over, all columns count alike. `codes` are the tiles' codes, one after another.
    ///
    /// # Panics
    /// When `codes` or `levels` are not of as many tiles as `targets`.
    pub fn encode(
        &mut self,
        targets: &[[f32; TILE_WEIGHTS]],
        importance: &[f32; TILE],
        codes: &mut [u8],
        levels: &mut [[f32; TILE_WEIGHTS]],
    ) {
        assert_eq!(codes.len(), targets.len() * self.tile_bytes(), "room for one code a tile");
        assert_eq!(levels.len(), targets.len(), "room for one tile of levels a tile");
        let scaled = Scaled::new(self.codebook.levels(), importance);
        let bytes = self.tile_bytes();
        let lanes = lanes();
        let groups = targets.chunks(lanes).zip(codes.chunks_mut(lanes * bytes)).zip(levels.chunks_mut(lanes));
        for ((targets, codes), levels) in groups {
            self.load(targets, &scaled.roots, lanes);
            let windows = Arch::new().dispatch(Search { viterbi: self, scaled: &scaled });
            for (lane, (code, levels)) in codes.chunks_exact_mut(bytes).zip(levels).enumerate() {
                let windows = windows.each_ref().map(|windows| windows[lane]);
                trellis::pack(&windows, self.bits, code);
                *levels = windows.map(|window| f32::from(self.codebook.level(window)));
            }
        }
    }

    /// Puts the tiles' targets side by side, times the root of their importance.
    fn load(&mut self, tiles: &[[f32; TILE_WEIGHTS]], roots: &[f32; TILE], lanes: usize) {
        for (i, out) in self.targets.get().chunks_exact_mut(lanes).enumerate() {
            out.fill(0.0);
            for (out, tile) in out.iter_mut().zip(tiles) {
                *out = tile[i].clamp(-LIMIT, LIMIT) * roots[i % TILE];
            }
        }
    }
}

/// The levels as each column sees them: `importance * (target - level)^2` is `(root * target - root * level)^2`.
struct Scaled {
    roots: [f32; TILE],
    levels: [[f32; PAIRS]; TILE],
}

impl Scaled {
    fn new(levels: &[i8; PAIRS], importance: &[f32; TILE]) -> Self {
        let most = importance.iter().copied().fold(0.0, f32::max);
        let roots = importance.map(|importance| if most > 0.0 { (importance / most).sqrt() } else { 1.0 });
        Self { roots, levels: roots.map(|root| levels.map(|level| root * f32::from(level))) }
    }
}

/// At most this many tiles are searched side by side on any machine.
const MAX_LANES: usize = 16;
/// The windows of the tiles' weights: of each weight, those of all tiles.
type Windows = [[u16; MAX_LANES]; TILE_WEIGHTS];
/// A class for each tile.
type Classes = [usize; MAX_LANES];

/// Both passes over the tiles that [`Viterbi::load`] put in place.
struct Search<'a> {
    viterbi: &'a mut Viterbi,
    scaled: &'a Scaled,
}

impl WithSimd for Search<'_> {
    type Output = Windows;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Windows {
        match self.viterbi.bits {
            2 => self.run::<S, 2, 4>(simd),
            3 => self.run::<S, 3, 8>(simd),
            4 => self.run::<S, 4, 16>(simd),
            _ => self.run::<S, 5, 32>(simd),
        }
    }
}

impl Search<'_> {
    #[inline(always)]
    fn run<S: Simd, const BITS: usize, const SYMBOLS: usize>(mut self, simd: S) -> Windows {
        const { assert!(S::F32_LANES <= MAX_LANES && SYMBOLS == 1 << BITS) };
        let reach = REACH_BITS / BITS;
        let mut windows = [[0; MAX_LANES]; TILE_WEIGHTS];
        // Around the seam: from weight `reach - 1` down to 0, then from 255 down to `256 - reach`.
        self.viterbi.costs[0].get().fill(START);
        self.pass::<S, BITS, SYMBOLS>(simd, reach, 2 * reach);
        let classes = best(self.viterbi.costs[0].get(), S::F32_LANES);
        let classes = self.trace::<BITS>(S::F32_LANES, 2 * reach, classes, &mut windows[..reach]);
        // Around the ring, from the class of the seam to itself.
        for (u, costs) in self.viterbi.costs[0].get().chunks_exact_mut(S::F32_LANES).enumerate() {
            for (cost, class) in costs.iter_mut().zip(classes) {
                *cost = if class == u { START } else { FORBIDDEN };
            }
        }
        self.pass::<S, BITS, SYMBOLS>(simd, TILE_WEIGHTS, TILE_WEIGHTS);
        self.trace::<BITS>(S::F32_LANES, TILE_WEIGHTS, classes, &mut windows);
        windows
    }

    /// One pass over `count` weights of the ring, an even number, from the one before `end` backwards.
    ///
    /// The first costs are those of the classes where the pass starts, and become those where it ends.
    #[inline(always)]
    fn pass<S: Simd, const BITS: usize, const SYMBOLS: usize>(&mut self, simd: S, end: usize, count: usize) {
        let Viterbi { targets, pairs, costs: [even, odd], symbols, .. } = &mut *self.viterbi;
        let (targets, pairs) = (S::as_simd_f32s(targets.get()).0, S::as_mut_simd_f32s(pairs.get()).0);
        let (mut after, mut now) = (S::as_mut_simd_f32s(even.get()).0, S::as_mut_simd_f32s(odd.get()).0);
        let of_step = (WINDOWS >> BITS) / classes_a_word(BITS);
        let symbols = S::as_mut_simd_u32s(symbols.get()).0;
        for (step, symbols) in symbols.chunks_exact_mut(of_step).take(count).enumerate() {
            let i = (end + TILE_WEIGHTS - 1 - step) % TILE_WEIGHTS;
            for (pair, &level) in pairs.iter_mut().zip(&self.scaled.levels[i % TILE]) {
                let miss = simd.sub_f32s(targets[i], simd.splat_f32s(level));
                *pair = simd.mul_f32s(miss, miss);
            }
            step_back::<S, BITS, SYMBOLS>(simd, pairs, after, now, symbols);
            std::mem::swap(&mut after, &mut now);
        }
        assert!(count.is_multiple_of(2), "the costs end where they began");
    }

    /// Follows the symbols of a pass over `count` weights from its last step back towards its first, for as many windows as asked for.
    /// Gives the classes after them.
    #[inline(always)]
    fn trace<const BITS: usize>(
        &mut self,
        lanes: usize,
        count: usize,
        mut classes: Classes,
        windows: &mut [[u16; MAX_LANES]],
    ) -> Classes {
        let per_word = classes_a_word(BITS);
        let of_step = (WINDOWS >> BITS) / per_word * lanes;
        let symbols = self.viterbi.symbols.get();
        for (i, windows) in windows.iter_mut().enumerate() {
            let symbols = &symbols[(count - i - 1) * of_step..][..of_step];
            for lane in 0..lanes {
                let class = classes[lane];
                let word = symbols[class / per_word * lanes + lane];
                let symbol = (word >> (BITS * (per_word - 1 - class % per_word))) as usize % (1 << BITS);
                let window = class + (symbol << (WINDOW_BITS - BITS));
                windows[lane] = window as u16;
                classes[lane] = window >> BITS;
            }
        }
        classes
    }
}

/// Classes whose symbols are kept in 32 bits: a power of two.
const fn classes_a_word(bits: usize) -> usize {
    1 << (32 / bits).ilog2()
}

/// From the costs of the classes after a weight to those before it, and the symbols that lead there.
#[inline(always)]
fn step_back<S: Simd, const BITS: usize, const SYMBOLS: usize>(
    simd: S,
    pairs: &[S::f32s],
    after: &[S::f32s],
    now: &mut [S::f32s],
    symbols: &mut [S::u32s],
) {
    let (classes, per_word) = (WINDOWS >> BITS, classes_a_word(BITS));
    // A class and a symbol have no bits of the window in common: what the symbol adds to the pair does not depend on the class.
    let of_symbol = |symbol: usize| usize::from(pair((symbol * classes) as u16));
    let span = of_symbol(SYMBOLS - 1) + 1;
    let groups = classes / SYMBOLS;
    let (after, now) = (&after[..classes], &mut now[..classes]);
    let symbols = &mut symbols[..classes / per_word];
    let keep = simd.splat_u32s(!0 << BITS);
    let mut word = simd.splat_u32s(0);
    // Classes of a group lead to the same classes.
    for (group, now) in now.chunks_exact_mut(SYMBOLS).enumerate() {
        let following: [S::f32s; SYMBOLS] = std::array::from_fn(|symbol| after[group + symbol * groups]);
        for (c, now) in now.iter_mut().enumerate() {
            let class = group * SYMBOLS + c;
            let pairs = &pairs[usize::from(pair(class as u16))..][..span];
            let mut least = simd.splat_f32s(f32::MAX);
            for (symbol, &following) in following.iter().enumerate() {
                let cost = simd.add_f32s(pairs[of_symbol(symbol)], following);
                let tagged = simd.and_u32s(simd.transmute_u32s_f32s(cost), keep);
                let tagged = simd.or_u32s(tagged, simd.splat_u32s(symbol as u32));
                least = simd.min_f32s(simd.transmute_f32s_u32s(tagged), least);
            }
            *now = least;
            for _ in 0..BITS {
                word = simd.add_u32s(word, word);
            }
            word = simd.or_u32s(word, simd.and_u32s(simd.transmute_u32s_f32s(least), simd.not_u32s(keep)));
            if class % per_word == per_word - 1 {
                symbols[class / per_word] = word;
                word = simd.splat_u32s(0);
            }
        }
    }
}

/// The class of least cost, for each tile; of equal ones the first.
fn best(costs: &[f32], lanes: usize) -> Classes {
    let mut least = [(f32::INFINITY, 0); MAX_LANES];
    for (u, costs) in costs.chunks_exact(lanes).enumerate() {
        for (least, &cost) in least.iter_mut().zip(costs) {
            if cost < least.0 {
                *least = (cost, u);
            }
        }
    }
    least.map(|(_, u)| u)
}

/// Numbers that begin at the start of a cache line.
#[derive(Debug, Clone)]
struct Aligned<T> {
    numbers: Vec<T>,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    fn new(len: usize) -> Self {
        Self { numbers: vec![T::default(); len + 64 / size_of::<T>()], len }
    }

    fn get(&mut self) -> &mut [T] {
        let start = self.numbers.as_ptr().align_offset(64).min(64 / size_of::<T>());
        &mut self.numbers[start..start + self.len]
    }
}

#[cfg(test)]
mod tests;
