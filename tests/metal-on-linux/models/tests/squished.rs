//! The bundled squished model on the stand-in device: trellis codes, rotations, an int8 embedding.

#[path = "../../../../squish-models/tests/metal.rs"]
mod against_the_cpu;
