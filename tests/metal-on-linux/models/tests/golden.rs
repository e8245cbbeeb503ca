//! The testbed's models on the stand-in device, against transformers' outputs.

use model_tests::{Golden, argmax, largest_difference, testbed};
use squish_models::{Device, Model};

fn check(name: &str, prompts: &[&str]) {
    let (Some(dir), Some(golden)) = (testbed(name), Golden::load(name)) else { return };
    let model = Model::from_dir(dir, &Device::new_metal(0).unwrap()).unwrap();
    for prompt in prompts {
        let ids = golden.ids(&format!("{prompt}.ids"));
        let mut session = model.session();
        let mut logits = Vec::new();
        session
            .feed_all(&ids, |_, rows| {
                logits.extend(rows.to_vec2::<f32>()?);
                Ok(())
            })
            .unwrap();
        let found: Vec<u32> = logits.iter().map(|row| argmax(row)).collect();
        assert_eq!(found, golden.ids(&format!("{prompt}.argmax")), "{name} {prompt}: argmax");
        let expected = golden.floats(&format!("{prompt}.logits"));
        let difference = largest_difference(&expected, &logits[ids.len() - 8..].concat());
        println!("{name} {prompt}: largest difference of a logit {difference:.2e}");
        assert!(difference <= 2e-3, "{name} {prompt}: logits differ by {difference}");

        if *prompt == prompts[0] {
            let mut greedy = vec![argmax(&logits[ids.len() - 1])];
            while greedy.len() < 32 {
                session.advance(&greedy[greedy.len() - 1..]).unwrap();
                greedy.push(argmax(session.logits()));
            }
            assert_eq!(
                greedy,
                golden.ids(&format!("{prompt}.greedy"))[..32],
                "{name} {prompt}: greedy tokens"
            );
        }
    }
}

#[test]
fn qwen2_5_tiny() {
    check("qwen2.5-tiny", &["p0", "p3"]);
}

#[test]
fn qwen3_tiny() {
    check("qwen3-tiny", &["p0", "p3"]);
}

#[test]
fn gemma3_tiny() {
    check("gemma3-tiny", &["p0", "p3"]);
}
