//! Multiplies 16 rows of 1,024 columns again and again, for `tests/neon-on-linux/count`, which counts the instructions:
//!
//!     cargo run --release -p squish-kernels --example products -- SCHEME ISA token|decode|prompt TIMES
//!
//! `token`: by one input; `decode`: levels into a panel; `prompt`: the panel by 12 inputs.

use squish_kernels::{
    Packed, QuantizedBatch, QuantizedInput,
    arch::{self, LevelPanel},
    scheme,
};
use std::hint::black_box;

const ROWS: usize = 16;
const COLS: usize = 1024;
const INPUTS: usize = 12;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "products SCHEME ISA token|decode|prompt TIMES";
    let [_, name, isa, what, times] =
        <[String; 5]>::try_from(std::env::args().collect::<Vec<_>>()).map_err(|_| usage)?;
    let kernels =
        arch::available().into_iter().find(|k| k.isa == isa).ok_or("no such instruction set here")?;
    let scheme = scheme::by_name(&name)?;
    let (integers, group) =
        (scheme.integers().ok_or("not a scheme of integers")?, scheme.default_group(COLS));
    let parts = Packed::layout(scheme, ROWS, COLS, group)?;
    // Any bytes are a matrix; these are small scales, too.
    let parts = parts.iter().map(|part| vec![0x12; part.bytes()].into()).collect();
    let weights = Packed::new(scheme, ROWS, COLS, group, parts)?;
    let x: Vec<f32> = (0..INPUTS * COLS).map(|i| (i % 17) as f32).collect();
    let (input, mut y) = (QuantizedInput::new(&x[..COLS]), [0.0; ROWS]);
    let (mut panel, mut sums) = (LevelPanel::new(), [[0.0; ROWS]; INPUTS]);
    let groups = 0..input.scales().len();
    match what.as_str() {
        "token" => {
            for _ in 0..times.parse()? {
                integers.dot(&kernels, &weights, 0, black_box(&input), black_box(&mut y));
            }
        }
        "decode" | "prompt" => {
            let panels = kernels.panels.ok_or("this instruction set has no panels")?;
            let inputs = QuantizedBatch::new(&x, COLS, panels.depth);
            integers.panel(&panels, &weights, 0, groups.clone(), &mut panel);
            for _ in 0..times.parse()? {
                if what == "decode" {
                    integers.panel(&panels, &weights, 0, groups.clone(), black_box(&mut panel));
                } else {
                    (panels.multiply)(
                        black_box(&panel),
                        inputs.block(0, groups.clone()),
                        black_box(&mut sums),
                    );
                }
            }
        }
        _ => return Err(usage.into()),
    }
    Ok(())
}
