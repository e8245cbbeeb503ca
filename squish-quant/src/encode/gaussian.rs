//! `nf2`, `int3`, `int4r`: a scale per group, chosen by search.
//!
//! For a given assignment of levels `l` to weights `w`, the best scale is `s = <w, l> / <l, l>`, and its
//! error `<w, w> - <w, l>^2 / <l, l>`. So each candidate scale is judged by the error of the best
//! scale for *its* assignment; the winner is refined and then rounded to f16.

use super::{Block, Encoder, Metric, put_f16, scalar::round_block};
use squish_kernels::scheme::{CodeUnit, Gaussian, UNIT};

/// Candidate scales, as multiples of the one that fits a Gaussian of the group's energy.
const CANDIDATES: [f32; 9] = [0.70, 0.78, 0.86, 0.93, 1.0, 1.08, 1.17, 1.28, 1.42];

impl<U: CodeUnit> Encoder for Gaussian<U> {
    fn block(&self, group: usize) -> usize {
        group
    }

    fn encode(&self, block: Block, group: usize, parts: &mut [&mut [u8]]) {
        let [codes, scales] = parts else { unreachable!("Gaussian schemes have two parts") };
        let Block { first, width, values, metric } = block;
        let levels = Levels::new(self);
        let best = levels.search(values);
        let best = metric.map_or(best, |metric| levels.search_metric(values, metric, best));
        let scale = put_f16(scales, first / group, best);
        let mut group_codes = vec![0; width];
        levels.round(values, metric, scale, |c, code| group_codes[c] = code);
        U::pack_row(&group_codes, &mut codes[first / UNIT * U::BYTES..][..width / UNIT * U::BYTES]);
    }
}

/// Scales around the one of least squared error that are judged by the metric.
const METRIC_CANDIDATES: [f32; 5] = [0.85, 0.92, 1.0, 1.08, 1.17];

/// Ascending levels, as the thresholds between them and the steps across those.
struct Levels {
    lowest: f32,
    levels: Vec<f32>,
    /// `(midpoint between two neighbours, distance of the two)`.
    steps: Vec<(f32, f32)>,
    /// The scale that fits a Gaussian of standard deviation 1.
    gaussian: f32,
}

impl Levels {
    fn new<U: CodeUnit>(scheme: &Gaussian<U>) -> Self {
        let levels = scheme.levels();
        let steps: Vec<_> = levels.windows(2).map(|w| ((w[0] + w[1]) / 2.0, w[1] - w[0])).collect();
        Self { lowest: levels[0], levels, steps, gaussian: scheme.gaussian_scale() }
    }

    /// Rounds to the levels of a scale, telling the codes to `code(column, code)`; returns the cost of the error.
    fn round(
        &self,
        values: &mut [f32],
        metric: Option<Metric>,
        scale: f32,
        mut code: impl FnMut(usize, u8),
    ) -> f32 {
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        round_block(values, metric, |c, v| {
            let nearest = self.code(v * inverse);
            code(c, nearest);
            scale * self.levels[usize::from(nearest)]
        })
    }

    /// The scale near `best` whose rounding costs least.
    fn search_metric(&self, values: &[f32], metric: Metric, best: f32) -> f32 {
        let mut work = values.to_vec();
        let cost = |candidate: f32| {
            work.copy_from_slice(values);
            self.round(&mut work, Some(metric), candidate, |_, _| {})
        };
        let candidates = METRIC_CANDIDATES.map(|factor| best * factor);
        let costs = candidates.map(cost);
        let least = (0..costs.len()).min_by(|&a, &b| costs[a].total_cmp(&costs[b])).unwrap_or(0);
        candidates[least]
    }

    /// The code of the nearest level: the thresholds below the value are counted.
    fn code(&self, value: f32) -> u8 {
        self.steps.iter().map(|&(threshold, _)| u8::from(value > threshold)).sum()
    }

    /// The scale of least squared error, as far as the candidates show it.
    fn search(&self, values: &[f32]) -> f32 {
        let energy: f32 = values.iter().map(|v| v * v).sum();
        if energy <= 0.0 {
            return 0.0;
        }
        let base = self.gaussian * (energy / values.len() as f32).sqrt();
        let (mut best, mut most) = (base, 0.0);
        for candidate in CANDIDATES {
            let mut scale = base * candidate;
            for _ in 0..2 {
                let (wl, ll) = self.products(values, 1.0 / scale);
                // The error falls as <w, l>^2 / <l, l> grows.
                let explained = wl * wl / ll;
                scale = wl / ll;
                if explained > most {
                    (best, most) = (scale, explained);
                }
            }
        }
        best
    }

    /// `<w, l>` and `<l, l>` for the levels nearest to `w * inverse`.
    fn products(&self, values: &[f32], inverse: f32) -> (f32, f32) {
        const LANES: usize = 16;
        let (mut wl, mut ll) = ([0.0f32; LANES], [0.0f32; LANES]);
        // Groups are multiples of 64 weights.
        for w in values.as_chunks::<LANES>().0 {
            let mut level = [self.lowest; LANES];
            for &(threshold, distance) in &self.steps {
                for i in 0..LANES {
                    level[i] += if w[i] * inverse > threshold { distance } else { 0.0 };
                }
            }
            for i in 0..LANES {
                wl[i] += w[i] * level[i];
                ll[i] += level[i] * level[i];
            }
        }
        (wl.iter().sum(), ll.iter().sum())
    }
}
