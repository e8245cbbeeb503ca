//! How fast trellis codes decode to f32 on one core, by each instruction set that the processor has.
//!
//!     cargo run --release -p squish-kernels --example decode

use squish_kernels::{
    arch::{self, Tiles},
    scheme::{PANEL_COLS, PANEL_ROWS, TCQ2, TCQ3, TCQ4, TCQ5, TILE},
};
use std::{hint::black_box, time::Instant};

/// Panels of 16 rows x 256 columns: at 5 bits their codes are 640 KiB.
const PANELS: usize = 256;
/// Passes over the panels; the fastest counts.
const PASSES: usize = 200;

fn main() {
    println!("{:>8} {:>6} {:>14} {:>16}", "isa", "scheme", "G weights/s", "GB/s of codes");
    for kernels in arch::available() {
        for (name, scheme) in [("tcq2", &TCQ2), ("tcq3", &TCQ3), ("tcq4", &TCQ4), ("tcq5", &TCQ5)] {
            let bytes = PANEL_COLS / TILE * scheme.tile_bytes();
            let codes: Vec<u8> =
                (0..PANELS * bytes).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
            let (steps, mut out) = ([0.01; PANEL_ROWS], vec![0.0; PANEL_ROWS * PANEL_COLS]);
            let mut seconds = f64::INFINITY;
            for _ in 0..PASSES {
                let start = Instant::now();
                for codes in codes.chunks_exact(bytes) {
                    let (bits, codebook) = (scheme.bits(), scheme.codebook());
                    let tiles = Tiles { bits, codebook, codes, first: 0, steps: &steps, stride: PANEL_COLS };
                    (kernels.tiles)(black_box(tiles), &mut out);
                    black_box(&out);
                }
                seconds = seconds.min(start.elapsed().as_secs_f64());
            }
            let weights = (PANELS * PANEL_ROWS * PANEL_COLS) as f64;
            let (rate, read) = (weights / seconds / 1e9, codes.len() as f64 / seconds / 1e9);
            println!("{:>8} {name:>6} {rate:>14.2} {read:>16.2}", kernels.isa);
        }
    }
}
