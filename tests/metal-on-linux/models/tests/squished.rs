//! The bundled squished model on the stand-in device: trellis codes, rotations, an int8 embedding.

use objc2_metal::stand_in;
use squish_models::{Model, metal_device};
use std::path::Path;

#[path = "../../../../squish-models/tests/metal.rs"]
mod against_the_cpu;

/// Loading copies no matrix, and a token waits for the device once: for its logits.
#[test]
fn weights_are_not_copied_and_nothing_waits_between_layers() {
    let before = stand_in::counts();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../assets/squish-tiny-sqint2");
    let model = Model::from_dir(dir, &metal_device().unwrap()).unwrap();
    let mut session = model.session();
    let mut feed = |ids: &[u32]| session.feed(ids).unwrap().to_vec1::<f32>().unwrap();
    feed(&[1, 2, 3]);
    let loaded = stand_in::counts();
    // Norms and biases, which are read into f32, and what commands carry.
    let copied = loaded.copied - before.copied;
    assert!(copied < 1 << 18, "{copied} bytes were copied");
    feed(&[4]);
    let after = stand_in::counts();
    assert_eq!(after.waits - loaded.waits, 1);
    println!("{copied} bytes copied, {} dispatches a token", after.dispatches - loaded.dispatches);
}
