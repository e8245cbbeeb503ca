//! The search for the best code of a tile in a trellis scheme: Viterbi's algorithm.
//!
//! Weight `i` of a tile has a window `w_i` of eight bits, which names its level; with `k` bits a weight and `Q = 256 / 2^k`
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
//! ends free), decides on that class; the second, over the whole ring, is held to it. Trying every class would be exact, would take `Q`
//! passes, and was measured to gain 0.0014 dB at 2 bits, 0.0009 at 3 and 0.0006 at 4.
//!
//! **Speed.** A vector's lanes are tiles, so that nothing is ever moved between lanes: as many tiles as a vector has lanes cost as
//! much as one ([`lanes`]). The symbol rides along in the last `k` bits of the cost's significand, where it stands for a relative error
//! of 2^-19 at most: one minimum gives cost and symbol, and of equal costs the least symbol. Products are rounded before they are added
//! (no fused operations), hence all instruction sets find the same codes.

use pulp::{Arch, Simd, WithSimd};
use squish_kernels::scheme::trellis::{self, TILE, TILE_WEIGHTS};

/// Bits to either side of the seam that decide how the ring closes: 24 windows that have none in common.
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
    levels: [f32; 256],
    /// Weights to either side of the seam that the first pass looks at.
    reach: usize,
    /// Targets of as many tiles as there are lanes, weight by weight.
    targets: Aligned,
    /// `C_i[u]`, with symbols, of every step of a pass.
    costs: Aligned,
}

impl Viterbi {
    /// The trellis of `bits` a weight with this table of levels.
    ///
    /// # Panics
    /// Unless `bits` is 2, 3, 4 or 5.
    pub fn new(bits: usize, table: &[i8; 256]) -> Self {
        Self::with_levels(bits, table.map(f32::from))
    }

    /// The same for levels that are not integers: finite, and less than 65536 in magnitude.
    ///
    /// # Panics
    /// Unless `bits` is 2, 3, 4 or 5.
    pub fn with_levels(bits: usize, levels: [f32; 256]) -> Self {
        assert!((2..=5).contains(&bits), "trellis codes have 2, 3, 4 or 5 bits a weight");
        let lanes = lanes();
        let targets = Aligned::new(TILE_WEIGHTS * lanes);
        let costs = Aligned::new((TILE_WEIGHTS + 1) * (256 >> bits) * lanes);
        Self { bits, levels, reach: REACH_BITS / bits, targets, costs }
    }

    /// The same with a first pass that looks at this many bits to either side of the seam, not at 192: with 96 there are 14 to 21 %
    /// fewer steps, and 0.004 to 0.008 dB are lost.
    pub fn reach(self, bits: usize) -> Self {
        Self { reach: (bits / self.bits).clamp(1, TILE_WEIGHTS / 2), ..self }
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
        let scaled = Scaled::new(&self.levels, importance);
        let bytes = self.tile_bytes();
        let lanes = lanes();
        let groups = targets.chunks(lanes).zip(codes.chunks_mut(lanes * bytes)).zip(levels.chunks_mut(lanes));
        for ((targets, codes), levels) in groups {
            self.load(targets, &scaled.roots, lanes);
            let windows = Arch::new().dispatch(Search { viterbi: self, scaled: &scaled });
            for (lane, (code, levels)) in codes.chunks_exact_mut(bytes).zip(levels).enumerate() {
                let windows = windows.each_ref().map(|windows| windows[lane]);
                trellis::pack(&windows, self.bits, code);
                *levels = windows.map(|window| self.levels[usize::from(window)]);
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
    levels: [[f32; 256]; TILE],
}

impl Scaled {
    fn new(levels: &[f32; 256], importance: &[f32; TILE]) -> Self {
        let most = importance.iter().copied().fold(0.0, f32::max);
        let roots = importance.map(|importance| if most > 0.0 { (importance / most).sqrt() } else { 1.0 });
        Self { roots, levels: roots.map(|root| levels.map(|level| root * level)) }
    }
}

/// At most this many tiles are searched side by side on any machine.
const MAX_LANES: usize = 16;
/// The windows of the tiles' weights: of each weight, those of all tiles.
type Windows = [[u8; MAX_LANES]; TILE_WEIGHTS];
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
            2 => self.run::<S, 2>(simd),
            3 => self.run::<S, 3>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, 5>(simd),
        }
    }
}

impl Search<'_> {
    #[inline(always)]
    fn run<S: Simd, const BITS: usize>(self, simd: S) -> Windows {
        const { assert!(S::F32_LANES <= MAX_LANES) };
        let Viterbi { targets, costs, reach, .. } = self.viterbi;
        let (targets, costs, reach) = (targets.get(), costs.get(), *reach);
        let first = 0..S::F32_LANES << (8 - BITS);
        let mut windows = [[0; MAX_LANES]; TILE_WEIGHTS];
        // Around the seam: from weight `reach - 1` down to 0, then from 255 down to `256 - reach`.
        costs[first.clone()].fill(START);
        pass::<S, BITS>(simd, targets, &self.scaled.levels, costs, reach, 2 * reach);
        let classes = best(&costs[2 * reach * first.end..][first.clone()], S::F32_LANES);
        let classes = trace::<BITS>(costs, S::F32_LANES, 2 * reach, classes, &mut windows[..reach]);
        // Around the ring, from the class of the seam to itself.
        for (u, costs) in costs[first].chunks_exact_mut(S::F32_LANES).enumerate() {
            for (cost, class) in costs.iter_mut().zip(classes) {
                *cost = if class == u { START } else { FORBIDDEN };
            }
        }
        pass::<S, BITS>(simd, targets, &self.scaled.levels, costs, TILE_WEIGHTS, TILE_WEIGHTS);
        trace::<BITS>(costs, S::F32_LANES, TILE_WEIGHTS, classes, &mut windows);
        windows
    }
}

/// One pass over `count` weights of the ring, from the one before `end` backwards.
///
/// `costs` begins with the costs of the classes where the pass starts, and gets those after each of its steps.
#[inline(always)]
fn pass<S: Simd, const BITS: usize>(
    simd: S,
    targets: &[f32],
    levels: &[[f32; 256]; TILE],
    costs: &mut [f32],
    end: usize,
    count: usize,
) {
    let classes = 256 >> BITS;
    let (targets, costs) = (S::as_simd_f32s(targets).0, S::as_mut_simd_f32s(costs).0);
    let keep = simd.splat_u32s(!0 << BITS);
    for step in 0..count {
        let i = (end + TILE_WEIGHTS - 1 - step) % TILE_WEIGHTS;
        let (target, levels) = (targets[i], &levels[i % TILE]);
        let (after, now) = costs[step * classes..][..2 * classes].split_at_mut(classes);
        for (u, now) in now.iter_mut().enumerate() {
            let mut least = simd.splat_f32s(f32::MAX);
            for symbol in 0..1 << BITS {
                let window = u + symbol * classes;
                let miss = simd.sub_f32s(target, simd.splat_f32s(levels[window]));
                let cost = simd.add_f32s(simd.mul_f32s(miss, miss), after[window >> BITS]);
                let tagged = simd.and_u32s(simd.transmute_u32s_f32s(cost), keep);
                let tagged = simd.or_u32s(tagged, simd.splat_u32s(symbol as u32));
                least = simd.min_f32s(simd.transmute_f32s_u32s(tagged), least);
            }
            *now = least;
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

/// Follows the symbols of a pass over `count` weights from its last step back towards its first, for as many windows as asked for.
/// Gives the classes after them.
#[inline(always)]
fn trace<const BITS: usize>(
    costs: &[f32],
    lanes: usize,
    count: usize,
    mut classes: Classes,
    windows: &mut [[u8; MAX_LANES]],
) -> Classes {
    let of_step = lanes << (8 - BITS);
    for (i, windows) in windows.iter_mut().enumerate() {
        let costs = &costs[(count - i) * of_step..][..of_step];
        for lane in 0..lanes {
            let symbol = costs[classes[lane] * lanes + lane].to_bits() as usize % (1 << BITS);
            let window = classes[lane] + (symbol << (8 - BITS));
            windows[lane] = window as u8;
            classes[lane] = window >> BITS;
        }
    }
    classes
}

/// Numbers that begin at the start of a cache line.
#[derive(Debug, Clone)]
struct Aligned {
    numbers: Vec<f32>,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        Self { numbers: vec![0.0; len + 16], len }
    }

    fn get(&mut self) -> &mut [f32] {
        let start = self.numbers.as_ptr().align_offset(64).min(16);
        &mut self.numbers[start..start + self.len]
    }
}

#[cfg(test)]
mod tests;
