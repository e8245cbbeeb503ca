//! Instances for aarch64.
//!
//! One algorithm for all of them ([`units`], [`tiles`]), written over the instruction that multiplies bytes ([`bytes`]).

mod bytes;
pub mod dotprod;
pub mod neon;
mod registers;
mod tiles;
mod units;
