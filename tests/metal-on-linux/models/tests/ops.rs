//! Each op through Candle on the stand-in device.

#[path = "../../../../kernels/tests/metal.rs"]
mod metal;
