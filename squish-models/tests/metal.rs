//! The bundled squished model on a Metal device and on the CPU. Does nothing where there is no such device.
#![cfg(feature = "metal")]

use squish_models::{Arithmetic, Checkpoint, Device, Model, Session, metal_device};
use std::path::Path;

fn bundled(device: &Device) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let assets = dir.ancestors().map(|dir| dir.join("assets/squish-tiny-sqint2")).find(|dir| dir.exists());
    let mut checkpoint = Checkpoint::open(assets.expect("the bundled model")).unwrap();
    // The CPU would round single inputs to eight bits.
    checkpoint.set_arithmetic(Arithmetic::F32);
    Model::from_checkpoint(&checkpoint, device).unwrap()
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap()
}

/// 37 tokens to begin with, then one at a time.
#[test]
fn tokens_are_those_of_the_cpu() {
    let Some(device) = metal_device() else {
        eprintln!("skipped: there is no Metal device");
        return;
    };
    let models = [bundled(&Device::Cpu), bundled(&device)];
    let mut sessions = models.each_ref().map(Model::session);
    let mut next: Vec<u32> = (0..37).map(|i| 100 + 97 * i % 1000).collect();
    for step in 0..33 {
        let feed = |session: &mut Session| session.feed(&next).unwrap().to_vec1::<f32>().unwrap();
        let [cpu, metal] = sessions.each_mut().map(feed);
        let difference = cpu.iter().zip(&metal).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference < 2e-2, "step {step}: logits differ by {difference}");
        assert_eq!(argmax(&cpu), argmax(&metal), "step {step}");
        next = vec![argmax(&cpu) as u32];
    }
}
