//! Models and their golden outputs, as tests here use them.

use safetensors::SafeTensors;
use std::path::PathBuf;

/// The testbed's models.
pub const MODELS: [&str; 3] = ["qwen2.5-tiny", "qwen3-tiny", "gemma3-tiny"];

/// A file of the testbed, or `None` with a message where the testbed is absent.
pub fn testbed(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../../shared/testbed")).join(name);
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

/// transformers' outputs for one model.
pub struct Golden(Vec<u8>);

impl Golden {
    /// Those of a model of the testbed.
    pub fn load(model: &str) -> Option<Self> {
        Some(Self(std::fs::read(testbed(&format!("golden/{model}.safetensors"))?).expect("a readable file")))
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        file.tensor(name).expect("a golden tensor").data().as_chunks::<4>().0.to_vec()
    }

    /// A tensor of token ids.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.words(name).into_iter().map(u32::from_le_bytes).collect()
    }

    /// A tensor of numbers.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }
}

/// The most likely token.
pub fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary") as u32
}

/// The largest difference of two logits.
///
/// # Panics
/// Where one is no number, or there are more of the one than of the other.
pub fn largest_difference(expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len());
    assert!(expected.iter().chain(found).all(|logit| logit.is_finite()), "a logit that is no number");
    expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
