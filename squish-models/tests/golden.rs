//! The forward pass against transformers' float32 outputs on the testbed's models.

use safetensors::SafeTensors;
use squish_models::{Device, Model, Session};
use std::path::PathBuf;

/// A file of the testbed, or `None` with a message where the testbed is absent.
fn testbed(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/testbed")).join(name);
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

/// transformers' outputs for one model.
struct Golden(Vec<u8>);

impl Golden {
    fn load(model: &str) -> Option<Self> {
        Some(Self(std::fs::read(testbed(&format!("golden/{model}.safetensors"))?).unwrap()))
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.words(name).into_iter().map(u32::from_le_bytes).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

/// Logits of every position, `[positions][vocab]`.
fn all_logits(session: &mut Session, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    session
        .feed_all(ids, |_, logits| {
            rows.extend(logits.to_vec2::<f32>()?);
            Ok(())
        })
        .unwrap();
    rows
}

fn check_model(name: &str) {
    let (Some(dir), Some(golden)) = (testbed(name), Golden::load(name)) else { return };
    let model = Model::from_dir(dir, &Device::Cpu).unwrap();
    for prompt in ["p0", "p1", "p2", "p3"] {
        let ids = golden.ids(&format!("{prompt}.ids"));
        let mut session = model.session();
        let logits = all_logits(&mut session, &ids);

        let found: Vec<u32> = logits.iter().map(|row| argmax(row)).collect();
        assert_eq!(found, golden.ids(&format!("{prompt}.argmax")), "{name} {prompt}: argmax");

        let expected = golden.floats(&format!("{prompt}.logits"));
        let last = &logits[ids.len() - 8..];
        let difference = last.iter().flatten().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name} {prompt}: largest difference of a logit {difference:.2e}");
        assert!(difference <= 2e-3, "{name} {prompt}: logits differ by {difference}");

        // One token at a time, with the tokens chosen greedily.
        let mut greedy = vec![argmax(&logits[ids.len() - 1])];
        while greedy.len() < 48 {
            let next = session.feed(&greedy[greedy.len() - 1..]).unwrap();
            greedy.push(argmax(&next.to_vec1::<f32>().unwrap()));
        }
        assert_eq!(greedy, golden.ids(&format!("{prompt}.greedy")), "{name} {prompt}: greedy tokens");
    }
}

#[test]
fn qwen2_5_tiny_equals_transformers() {
    check_model("qwen2.5-tiny");
}

#[test]
fn qwen3_tiny_equals_transformers() {
    check_model("qwen3-tiny");
}

#[test]
fn gemma3_tiny_equals_transformers() {
    check_model("gemma3-tiny");
}

/// The testbed's models.
const MODELS: [&str; 3] = ["qwen2.5-tiny", "qwen3-tiny", "gemma3-tiny"];

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn decoding_a_token_at_a_time_equals_one_prefill() {
    for name in MODELS {
        let (Some(dir), Some(golden)) = (testbed(name), Golden::load(name)) else { return };
        let model = Model::from_dir(dir, &Device::Cpu).unwrap();
        // Longer than Gemma's window of 256, where the model has one.
        let ids = &golden.ids("p2.ids")[..if name == "gemma3-tiny" { 300 } else { 100 }];
        let prefilled = all_logits(&mut model.session(), ids);
        let mut session = model.session();
        let decoded: Vec<Vec<f32>> =
            ids.iter().map(|id| session.feed(&[*id]).unwrap().to_vec1::<f32>().unwrap()).collect();
        let difference = largest_difference(&decoded, &prefilled);
        println!("{name}: largest difference between decode and prefill {difference:.2e}");
        assert!(difference <= 1e-3, "{name}: decode differs from prefill by {difference}");
    }
}

#[test]
fn prefill_in_chunks_equals_one_prefill() {
    for name in MODELS {
        let (Some(dir), Some(golden)) = (testbed(name), Golden::load(name)) else { return };
        let model = Model::from_dir(dir, &Device::Cpu).unwrap();
        let ids = golden.ids("p2.ids");
        let whole = all_logits(&mut model.session(), &ids);
        for chunk in [7, 100, 256, 300] {
            let mut session = model.session();
            let chunks = ids.chunks(chunk).flat_map(|ids| all_logits(&mut session, ids)).collect::<Vec<_>>();
            let difference = largest_difference(&chunks, &whole);
            println!("{name}: largest difference between chunks of {chunk} and the whole {difference:.2e}");
            assert!(difference <= 1e-3, "{name}: chunks of {chunk} differ by {difference}");
        }
    }
}

#[test]
fn sessions_share_a_model_and_can_be_truncated_and_reset() {
    let (Some(dir), Some(golden)) = (testbed("qwen2.5-tiny"), Golden::load("qwen2.5-tiny")) else { return };
    let model = Model::from_dir(dir, &Device::Cpu).unwrap();
    let (a, b) = (golden.ids("p0.ids"), golden.ids("p3.ids"));
    let alone = |ids: &[u32]| model.session().feed(ids).unwrap().to_vec1::<f32>().unwrap();
    let expected = (alone(&a), alone(&b));
    // Two sessions in two threads.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| alone(&b));
        assert_eq!(alone(&a), expected.0);
        assert_eq!(other.join().unwrap(), expected.1);
    });
    // A session that saw something else, then forgot it.
    let mut session = model.session();
    session.feed(&a[..5]).unwrap();
    session.feed(&b).unwrap();
    session.truncate(5);
    let resumed = session.feed(&a[5..]).unwrap().to_vec1::<f32>().unwrap();
    assert!(resumed.iter().zip(&expected.0).all(|(x, y)| (x - y).abs() < 1e-4));
    session.reset();
    assert_eq!(session.feed(&b).unwrap().to_vec1::<f32>().unwrap(), expected.1);

    assert!(session.feed(&[]).unwrap_err().to_string().contains("no tokens"));
    assert!(session.feed(&[8192]).unwrap_err().to_string().contains("8192"));
    assert_eq!(session.len(), b.len());
    let full = session.feed(&vec![1; 8192]).unwrap_err().to_string();
    assert!(full.contains("the context is full"), "{full}");
    assert_eq!(session.len(), b.len());
}
