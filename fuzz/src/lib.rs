//! What is fuzzed, as functions of bytes. Each must return, within bounds of time and memory, whatever the bytes are; what an
//! answer promises is asserted. `docs/security.md` has the results of long runs; `squish-engine/tests/fuzzed.rs` runs the same functions
//! for a moment with every test.

pub mod hub;
#[cfg(feature = "models")]
pub mod models;
mod scratch;
pub mod seeds;
