//! Writes the Metal shaders as one source, for Apple's own tools:
//!
//!     cargo run -p squish-kernels --example shaders > squish.metal
//!     xcrun -sdk macosx metal -std=metal3.0 -Wall -c squish.metal -o squish.air

fn main() {
    print!("{}", squish_kernels::metal::SOURCE);
}
