//! Runs the project's Metal shaders, unmodified, on a CPU under Linux.
//!
//! | module | what happens there |
//! | --- | --- |
//! | [`signature`] | the kernels of a preprocessed source and the arguments they take are read from their attributes |
//! | [`library`] | clang preprocesses the source and compiles it with `runtime/metal.h`, which spells Metal's library in C++ |
//! | [`launch`] | a grid of threads runs as fibers (`runtime/fibers.cpp`), in an order of choice |
//! | [`lint`] | a check of what the runner erases: address spaces |
//!
//! A library that is compiled [`Build::Traced`] also sees every access to memory (`runtime/trace.cpp`): whether it is in bounds,
//! aligned, and ordered by a barrier with those of other threads, and how much of each buffer is fetched.
//! One compiled [`Build::Sanitized`] runs under AddressSanitizer, which also sees variables of a thread.
//!
//! What is not seen: limits of registers, Apple's rounding under fast mathematics, and speed.

pub mod launch;
pub mod library;
pub mod lint;
pub mod signature;

pub use launch::{Fault, Launch, Memory, Order, Report, Traffic};
pub use library::{Build, Error, Library};
pub use signature::{Kernel, Parameter, Source};
