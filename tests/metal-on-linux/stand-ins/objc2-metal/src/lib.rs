//! Stand-in for Apple's Metal on Linux, for an unmodified Candle: commands are recorded as a device would be given them, and
//! run on the CPU when their command buffer is committed.
//!
//! | file | holds |
//! | --- | --- |
//! | [`memory`] | devices and buffers |
//! | [`pipeline`] | libraries, functions, pipelines |
//! | [`commands`] | queues, command buffers, encoders |
//! | [`candle`] | the few shaders of Candle's own that models use, as Rust functions |
//! | [`stand_in`] | what tests ask of it all: how many dispatches, how many waits |
//!
//! Two dispatches of one encoder that touch the same buffer, one of them writing, without a barrier between them are an
//! error: the device may run them at the same time. Not modelled: fences between encoders, and what a driver refuses.
#![allow(non_snake_case, non_upper_case_globals, missing_docs, clippy::type_complexity)]

pub mod candle;
pub mod commands;
pub mod memory;
pub mod pipeline;
pub mod stand_in;

pub use commands::*;
pub use memory::*;
pub use pipeline::*;

use objc2::rc::Retained;
use objc2_foundation::{NSError, NSURL};

/// Capturing frames for Apple's tools is not there.
#[derive(Debug)]
pub struct MTLCaptureManager;
#[derive(Debug)]
pub struct MTLCaptureDescriptor;
#[derive(Debug, Clone, Copy)]
pub enum MTLCaptureDestination {
    GPUTraceDocument,
}

impl MTLCaptureDescriptor {
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Retained<Self> {
        Retained::stand_in(Self)
    }

    pub fn setDestination(&self, _: MTLCaptureDestination) {}

    pub fn set_capture_device<T: ?Sized>(&self, _: &T) {}

    pub fn setOutputURL(&self, _: Option<&NSURL>) {}
}

impl MTLCaptureManager {
    /// The manager.
    ///
    /// # Safety
    /// None is needed here.
    pub unsafe fn sharedCaptureManager() -> Retained<Self> {
        Retained::stand_in(Self)
    }

    pub fn startCaptureWithDescriptor_error(
        &self,
        _: &MTLCaptureDescriptor,
    ) -> Result<(), Retained<NSError>> {
        Err(NSError::stand_in("there is nothing to capture".into()))
    }
}
