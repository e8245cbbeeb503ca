//! Instances for aarch64.
//!
//! One algorithm for all of them ([`units`], [`tiles`], [`panel`]), written over the instructions that multiply bytes ([`bytes`]).

pub(super) mod bytes;
pub mod dotprod;
pub mod i8mm;
pub mod neon;
mod panel;
mod registers;
mod tiles;
mod units;
