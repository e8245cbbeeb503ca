//! Each op through Candle on the stand-in device.

#[path = "../../../../kernels/tests/metal.rs"]
mod metal;

#[path = "../../../../kernels/tests/metal_pages.rs"]
mod metal_pages;
