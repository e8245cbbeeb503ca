//! `tcq2` to `tcq5`: a scale per row, and for each tile the path through the trellis that costs least.

use super::{Block, Encoder, Metric, put_f16};
use crate::viterbi::Viterbi;
use squish_kernels::scheme::{LEVEL_UNIT, TILE, TILE_WEIGHTS, Trellis};
use std::{cell::RefCell, collections::HashMap};

/// Rows of tiles that are searched together: as many tiles as the widest vectors have lanes.
const STRIP: usize = 16 * TILE;

thread_local! {
    /// The search's scratch space, by bits a weight.
    static SEARCH: RefCell<HashMap<usize, Viterbi>> = RefCell::default();
}

impl Encoder for Trellis {
    fn strip(&self) -> usize {
        STRIP
    }

    fn block(&self, _group: usize) -> usize {
        TILE
    }

    fn begin(&self, rows: &[f32], cols: usize, factor: f32, parts: &mut [&mut [u8]]) {
        for (r, row) in rows.chunks(cols).enumerate() {
            let energy: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
            let sigma = (energy / cols as f64).sqrt() as f32;
            put_f16(parts[1], r, factor * sigma * self.gaussian_scale());
        }
    }

    /// Targets carry the errors of earlier columns, so that they vary more than the weights.
    fn scale_factors(&self) -> &'static [f32] {
        &[1.0, 0.94, 1.06, 1.13, 1.2]
    }

    fn encode(&self, block: Block, _group: usize, parts: &mut [&mut [u8]]) {
        let Block { first, values, metric, .. } = block;
        let [codes, scales] = parts else { unreachable!("trellis schemes have two parts") };
        let steps: Vec<f32> = scales
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&scale| half::f16::from_le_bytes(scale).to_f32() / LEVEL_UNIT)
            .collect();
        // Tile after tile, from the top; rows past the last one follow zero.
        let tiles = values.len().div_ceil(TILE_WEIGHTS);
        let mut targets = vec![[0.0; TILE_WEIGHTS]; tiles];
        for ((row, target), step) in
            values.chunks(TILE).zip(targets.as_flattened_mut().chunks_mut(TILE)).zip(&steps)
        {
            let inverse = if *step > 0.0 { 1.0 / step } else { 0.0 };
            target.iter_mut().zip(row).for_each(|(t, v)| *t = v * inverse);
        }
        let bytes = self.tile_bytes();
        let (mut found, mut levels) = (vec![0; tiles * bytes], targets.clone());
        SEARCH.with_borrow_mut(|searches| {
            let search =
                searches.entry(self.bits()).or_insert_with(|| Viterbi::new(self.bits(), self.codebook()));
            search.encode(&targets, &importance(metric), &mut found, &mut levels);
        });
        let row_bytes = codes.len() / tiles;
        for (codes, found) in codes.chunks_mut(row_bytes).zip(found.chunks(bytes)) {
            codes[first / TILE * bytes..][..bytes].copy_from_slice(found);
        }
        let levels = levels.as_flattened();
        for ((row, levels), step) in values.chunks_mut(TILE).zip(levels.chunks(TILE)).zip(&steps) {
            row.iter_mut().zip(levels).for_each(|(v, level)| *v = step * level);
        }
    }
}

/// What the squared error of each column of a tile costs by itself: the diagonal of `V V^T`, to mean 1.
fn importance(metric: Option<Metric>) -> [f32; TILE] {
    let Some(metric) = metric else { return [1.0; TILE] };
    let mut costs: [f32; TILE] = std::array::from_fn(|r| (r..TILE).map(|c| metric.at(r, c).powi(2)).sum());
    let mean = costs.iter().sum::<f32>() / TILE as f32;
    costs.iter_mut().for_each(|c| *c /= mean);
    costs
}
