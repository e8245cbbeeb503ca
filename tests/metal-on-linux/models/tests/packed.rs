//! The testbed's models on the stand-in device with packed keys and values, against the CPU with the same.

use model_tests::{Golden, MODELS, argmax, largest_difference, testbed};
use squish_models::{Device, KvPolicy, Model, Session, SessionOptions, metal_device};

/// Tokens to begin with.
const PROMPT: usize = 40;
/// Greedy tokens, of which the 25th packs the first page.
const TOKENS: usize = 32;

#[test]
fn greedy_tokens_are_those_of_the_cpu() {
    for name in MODELS {
        let (Some(dir), Some(golden)) = (testbed(name), Golden::load(name)) else { return };
        let [cpu, metal] =
            [Device::Cpu, metal_device().unwrap()].map(|on| Model::from_dir(&dir, &on).unwrap());
        // A short text again and again, so that there is something to attend to.
        let text = golden.ids("p0.ids");
        let prompt: Vec<u32> = text.iter().copied().cycle().take(PROMPT).collect();
        // A number between two codes may fall to the other: the fewer bits, the further.
        for (mode, bound) in [("k8v8", 2e-2), ("k8v4", 5e-2), ("k4v4", 2e-1)] {
            let kv = KvPolicy::Fixed(mode.parse().unwrap());
            // None but those of the query's own page stay as they came.
            let options = SessionOptions { kv, recent: 0, ..SessionOptions::default() };
            let mut sessions = [&cpu, &metal].map(|model| model.session_with(options).unwrap());
            let (mut next, mut largest) = (prompt.clone(), 0f32);
            for step in 0..TOKENS {
                let feed = |session: &mut Session| session.feed(&next).unwrap().to_vec1::<f32>().unwrap();
                let [expected, found] = sessions.each_mut().map(feed);
                largest = largest.max(largest_difference(&expected, &found));
                next = vec![argmax(&expected)];
                assert_eq!(next[0], argmax(&found), "{name} {mode}, token {step}");
            }
            println!("{name} {mode}: {TOKENS} tokens equal, largest difference of a logit {largest:.2e}");
            assert!(largest < bound, "{name} {mode}: logits differ by {largest}");
        }
    }
}
