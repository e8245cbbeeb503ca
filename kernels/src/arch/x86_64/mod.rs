//! Instances for x86-64.

pub mod avx2;
mod avx2_tiles;
mod avx2_units;
pub mod avx512;
pub mod avxvnni;
mod avxvnni_panel;
mod bytes;
pub mod fetch;
mod vbmi;
pub mod vnni;
mod vnni_panel;
mod vnni_tiles;
mod vnni_units;
