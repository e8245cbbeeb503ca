//! Where to compute.

use anyhow::{Result, anyhow};
use squish_engine::Device;

/// A kind of device.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum DeviceChoice {
    /// The processor.
    Cpu,
    /// Apple's GPU.
    Metal,
}

/// The device asked for, or the best there is.
///
/// # Errors
/// When Metal is asked for and not there.
pub fn chosen(choice: Option<DeviceChoice>) -> Result<Device> {
    match choice {
        None => Ok(squish_engine::best_device()),
        Some(DeviceChoice::Cpu) => Ok(Device::Cpu),
        Some(DeviceChoice::Metal) => squish_engine::metal_device()
            .ok_or_else(|| anyhow!("no Metal device (is this built with `--features metal`?)")),
    }
}
