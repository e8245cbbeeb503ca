//! Vector kernels: one algorithm, one thin instance per instruction set, chosen once at run time.
//!
//! [`generic`] holds the arithmetic once, written over the small [`Vector`](vector::Vector) trait. An instance is a
//! function with `#[target_feature]` that calls it with its vector type. Look-ups in registers are each
//! instruction set's own, beside a portable definition that they equal to the last bit. [`kernels`] picks the best
//! instance that the running processor has; the environment variable `SQUISH_ISA` (`scalar`, `avx2`, `avxvnni`, `avx512`,
//! `neon`, `neon-dotprod`, `neon-i8mm`) forces one, so that every instance can be tested on one machine.
//!
//! To add an instruction set: a file with its `Vector` and its instances, and a line in [`available`].

pub mod generic;
pub mod integer;
pub mod level_panel;
pub mod page;
pub mod scalar;
pub mod tiles;
pub mod units;
pub mod vector;
mod vectorized;

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

use crate::{Error, Result, scheme::UNIT};
use std::sync::OnceLock;

pub use generic::Panel;
pub use integer::{TileRun, TilesDot};
pub use level_panel::{LevelPanel, PanelKernels};
pub use tiles::Tiles;
pub use units::{UnitRows, UnitsDot};
pub(crate) use vectorized::vectorized;

/// An instance of [`generic::panel_dot`].
pub type PanelDot = fn(Panel, &mut [f32]);

/// Levels for a unit of codes below 16: see [`generic::lookup`].
pub type Lookup = fn(&[u8; UNIT], &[i8; 16], f32, &mut [f32; UNIT]);

/// Decodes tiles of a trellis code into rows that lie [`Tiles::stride`] apart: see [`tiles::decode`].
pub type DecodeTiles = fn(Tiles, &mut [f32]);

/// The kernels of one instruction set.
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    /// The instruction set's name, as `SQUISH_ISA` takes it.
    pub isa: &'static str,
    /// Products of a decoded panel with a batch of inputs.
    pub panel_dot: PanelDot,
    /// Levels of a unit of codes, times the unit's scale.
    pub lookup: Lookup,
    /// Levels of tiles of a trellis code, times their rows' scales.
    pub tiles: DecodeTiles,
    /// Integer dot products of rows of units.
    pub units_dot: UnitsDot,
    /// Integer dot products of a strip of tiles.
    pub tiles_dot: TilesDot,
    /// Integer products with a batch of inputs, where they are faster than those of floats.
    pub panels: Option<PanelKernels>,
    /// Reading pages of keys and values.
    pub pages: page::PageKernels,
}

/// The instances that the running processor can execute, best first.
pub fn available() -> Vec<Kernels> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        found.extend(x86_64::avx512::kernels());
        found.extend(x86_64::avxvnni::kernels());
        found.extend(x86_64::avx2::kernels());
    }
    #[cfg(target_arch = "aarch64")]
    {
        found.extend(aarch64::i8mm::kernels());
        found.extend(aarch64::dotprod::kernels());
        found.extend(aarch64::neon::kernels());
    }
    found.push(scalar::KERNELS);
    found
}

/// The processor's features that decide which kernels it can execute, as the system names them: each, and whether it is there.
pub fn features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    macro_rules! detected {
        ($($name:tt),*) => { vec![$(($name, is_x86_feature_detected!($name))),*] };
    }
    #[cfg(target_arch = "x86_64")]
    return detected!(
        "avx2",
        "fma",
        "f16c",
        "bmi1",
        "avxvnni",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512vbmi",
        "avx512vbmi2",
        "avx512vnni"
    );
    #[cfg(target_arch = "aarch64")]
    macro_rules! detected {
        ($($name:tt),*) => { vec![$(($name, std::arch::is_aarch64_feature_detected!($name))),*] };
    }
    #[cfg(target_arch = "aarch64")]
    return detected!("neon", "dotprod", "i8mm");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

/// The kernels in use: the best available, or those that `SQUISH_ISA` names.
///
/// # Errors
/// [`Error::Isa`] when `SQUISH_ISA` names what this machine does not have.
pub fn kernels() -> Result<Kernels> {
    static CHOSEN: OnceLock<Result<Kernels>> = OnceLock::new();
    CHOSEN.get_or_init(|| choose(std::env::var("SQUISH_ISA").ok().as_deref())).clone()
}

/// Whether `SQUISH_ISA` names the instruction set, so that nothing but these kernels may be used.
pub fn is_forced() -> bool {
    static FORCED: OnceLock<bool> = OnceLock::new();
    *FORCED.get_or_init(|| std::env::var_os("SQUISH_ISA").is_some_and(|v| !v.is_empty()))
}

/// Has the cache line `ahead` bytes after the start of a slice brought near, where Rust has an instruction for it. It may lie behind the slice.
#[inline(always)]
pub(crate) fn fetch(bytes: &[u8], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    x86_64::fetch::fetch(bytes.as_ptr().wrapping_add(ahead));
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, ahead);
}

fn choose(asked: Option<&str>) -> Result<Kernels> {
    let available = available();
    let Some(asked) = asked.filter(|a| !a.is_empty()) else {
        return Ok(available[0]);
    };
    available.iter().find(|k| k.isa == asked).copied().ok_or_else(|| Error::Isa {
        asked: asked.into(),
        available: available.iter().map(|k| k.isa).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::trellis::{self, Codebook};
    use proptest::prelude::*;

    #[test]
    fn an_instruction_set_can_be_forced() {
        assert_eq!(choose(Some("scalar")).unwrap().isa, "scalar");
        assert_eq!(choose(None).unwrap().isa, available()[0].isa);
        assert!(choose(Some("z80")).unwrap_err().to_string().contains("available: "));
    }

    proptest! {
        #[test]
        fn every_lookup_equals_the_definition(
            codes in prop::collection::vec(0..16u8, UNIT), table: [i8; 16], step in -4f32..4.,
        ) {
            let codes: [u8; UNIT] = codes.try_into().unwrap();
            for kernels in available() {
                let mut out = [f32::NAN; UNIT];
                (kernels.lookup)(&codes, &table, step, &mut out);
                for (i, &found) in out.iter().enumerate() {
                    let expected = step * f32::from(table[usize::from(codes[i])]);
                    prop_assert_eq!(found.to_bits(), expected.to_bits(), "{} {}", kernels.isa, i);
                }
            }
        }

        #[test]
        fn every_decoding_of_tiles_equals_the_definition(
            bits in 2..6usize, count in 1..17usize, first in 0..16usize, rows in 0..17usize, steps: [f32; 16],
            low: [i8; 16], high: [i8; 16], codes in prop::collection::vec(any::<u8>(), 16 * 160),
        ) {
            let (codes, rows) = (&codes[..count * 32 * bits], rows.min(16 - first));
            let (codebook, stride) = (&Codebook::any(bits, low, high), 16 * count + 3);
            for kernels in available() {
                let mut out = vec![7.0; 16 * stride];
                let tiles = Tiles { bits, codebook, codes, first, steps: &steps[..rows], stride };
                (kernels.tiles)(tiles, &mut out);
                for (i, found) in out.iter().enumerate() {
                    let (row, col) = (i / stride, i % stride);
                    let expected = if row < rows && col < 16 * count {
                        let tile = &codes[col / 16 * 32 * bits..][..32 * bits];
                        let window = trellis::window(tile, bits, (first + row) * 16 + col % 16);
                        steps[row] * f32::from(codebook.level(window))
                    } else {
                        7.0
                    };
                    prop_assert_eq!(found.to_bits(), expected.to_bits(), "{} {} {}", kernels.isa, row, col);
                }
            }
        }

        #[test]
        fn every_instance_equals_the_definition(
            rows in 1..17usize, width in 1..257usize, batch in 1..19usize, extra in 0..5usize, seed: u64,
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            };
            let (panel_stride, x_stride) = (256, width + extra);
            let panel: Vec<f32> = (0..16 * panel_stride).map(|_| next()).collect();
            let x: Vec<f32> = (0..(batch - 1) * x_stride + width).map(|_| next()).collect();
            let before: Vec<f32> = (0..rows * batch).map(|_| next()).collect();
            for kernels in available() {
                let mut y = before.clone();
                let all = Panel { weights: &panel, stride: panel_stride, width, x: &x, x_stride, batch };
                (kernels.panel_dot)(all, &mut y);
                for r in 0..rows {
                    for b in 0..batch {
                        let dot: f64 = (0..width)
                            .map(|c| f64::from(panel[r * panel_stride + c]) * f64::from(x[b * x_stride + c]))
                            .sum();
                        let expected = dot + f64::from(before[r * batch + b]);
                        let error = (f64::from(y[r * batch + b]) - expected).abs();
                        prop_assert!(error < 1e-4, "{} {r} {b}: {error}", kernels.isa);
                    }
                }
                // One output does not depend on how many others are computed with it.
                let mut alone = vec![before[0]];
                (kernels.panel_dot)(Panel { x: &x[..width], batch: 1, ..all }, &mut alone);
                prop_assert_eq!(alone[0].to_bits(), y[0].to_bits());
            }
        }
    }
}
