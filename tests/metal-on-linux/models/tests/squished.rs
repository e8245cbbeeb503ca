//! The bundled squished model: trellis codes, rotations, an int8 embedding. On the stand-in device and on the CPU.

use model_tests::argmax;
use objc2_metal::stand_in;
use squish_models::{Arithmetic, Checkpoint, Device, Model, Session};
use std::path::Path;

fn bundled(device: &Device) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../assets/squish-tiny-sqint2");
    let mut checkpoint = Checkpoint::open(dir).unwrap();
    // The CPU would round single inputs to eight bits.
    checkpoint.set_arithmetic(Arithmetic::F32);
    Model::from_checkpoint(&checkpoint, device).unwrap()
}

fn feed(session: &mut Session, ids: &[u32]) -> Vec<f32> {
    session.feed(ids).unwrap().to_vec1().unwrap()
}

/// 37 tokens to begin with, then one at a time.
#[test]
fn tokens_are_those_of_the_cpu() {
    let prompt: Vec<u32> = (0..37).map(|i| 100 + 97 * i % 1000).collect();
    let models = [bundled(&Device::Cpu), bundled(&Device::new_metal(0).unwrap())];
    let mut sessions = models.each_ref().map(Model::session);
    let mut next = prompt;
    for step in 0..33 {
        let [cpu, metal] = sessions.each_mut().map(|session| feed(session, &next));
        let difference = cpu.iter().zip(&metal).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference < 1e-3, "step {step}: logits differ by {difference}");
        assert_eq!(argmax(&cpu), argmax(&metal), "step {step}");
        next = vec![argmax(&cpu)];
    }
}

/// Loading copies no matrix, and a token waits for the device once: for its logits.
#[test]
fn weights_are_not_copied_and_nothing_waits_between_layers() {
    let before = stand_in::counts();
    let model = bundled(&Device::new_metal(0).unwrap());
    let mut session = model.session();
    feed(&mut session, &[1, 2, 3]);
    let loaded = stand_in::counts();
    // Norms and biases, which are read into f32, and what commands carry.
    let copied = loaded.copied - before.copied;
    assert!(copied < 1 << 18, "{copied} bytes were copied");
    feed(&mut session, &[4]);
    let after = stand_in::counts();
    assert_eq!(after.waits - loaded.waits, 1);
    let kernels = stand_in::take_kernels();
    println!(
        "{copied} bytes copied, {} dispatches a token, among them:",
        after.dispatches - loaded.dispatches
    );
    println!("{:?}", &kernels[kernels.len().saturating_sub(30)..]);
}
