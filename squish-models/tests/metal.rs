//! The bundled squished model on a Metal device and on the CPU. Does nothing where there is no such device.
#![cfg(feature = "metal")]

use squish_models::{Arithmetic, Checkpoint, Device, KvPolicy, Model, Session, SessionOptions, metal_device};
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

/// The largest difference of two logits; none where one is no number.
fn difference(expected: &[f32], found: &[f32]) -> f32 {
    assert!(expected.iter().chain(found).all(|logit| logit.is_finite()));
    expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
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
        // As the engine takes them.
        let feed = |session: &mut Session| {
            session.advance(&next).unwrap();
            session.logits().to_vec()
        };
        let [cpu, metal] = sessions.each_mut().map(feed);
        let difference = difference(&cpu, &metal);
        assert!(difference < 2e-2, "step {step}: logits differ by {difference}");
        assert_eq!(argmax(&cpu), argmax(&metal), "step {step}");
        next = vec![argmax(&cpu) as u32];
    }
}

/// Keys and values packed but for those of a query's own page: 40 tokens to begin with, then 32 that are the likeliest on the CPU, of
/// which the 25th packs the first page.
#[test]
fn packed_keys_and_values_give_the_tokens_of_the_cpu() {
    let Some(device) = metal_device() else {
        eprintln!("skipped: there is no Metal device");
        return;
    };
    let models = [bundled(&Device::Cpu), bundled(&device)];
    // A number between two codes may fall to the other: the fewer bits, the further.
    for (mode, bound) in [("k8v4", 5e-2), ("k8v8", 2e-2), ("k4v4", 2e-1)] {
        let kv = KvPolicy::Fixed(mode.parse().unwrap());
        let options = SessionOptions { kv, recent: 0, ..SessionOptions::default() };
        let mut sessions = models.each_ref().map(|model| model.session_with(options).unwrap());
        let mut next: Vec<u32> = (0..40).map(|i| 100 + 97 * i % 1000).collect();
        let mut most = 0f32;
        for step in 0..33 {
            let feed = |session: &mut Session| session.feed(&next).unwrap().to_vec1::<f32>().unwrap();
            let [cpu, metal] = sessions.each_mut().map(feed);
            most = most.max(difference(&cpu, &metal));
            assert_eq!(argmax(&cpu), argmax(&metal), "{mode}, step {step}");
            next = vec![argmax(&cpu) as u32];
        }
        println!("{mode}: largest difference of a logit {most:.2e}");
        assert!(most < bound, "{mode}: logits differ by {most}");
        if mode != "k8v4" {
            continue;
        }
        // A session that goes back to a mark gives what it gave, though the page of the mark has been written over since: three pages
        // are held as they came.
        let [_, session] = &mut sessions;
        session.set_mark();
        let feed = |session: &mut Session| session.feed(&[7]).unwrap().to_vec1::<f32>().unwrap();
        let (len, before) = (session.len(), feed(session));
        for _ in 0..3 {
            session.feed(&[8; 64]).unwrap();
        }
        assert_eq!(session.truncate(len), len);
        assert!(feed(session) == before, "{mode}: other logits after going back");
    }
}
