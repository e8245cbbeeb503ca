//! A step of decoding on the CPU: the same logits as over tensors to the bit, and nothing allocated.
//!
//! In a program of its own, since it counts what all threads allocate.

use squish::{GenerationOptions, Sampler};
use squish_models::{
    Arithmetic, Checkpoint, Device, Error, KvMode, Model, Session, SessionOptions, kv_cache::KvCache,
};
use squish_quant::{Recipe, Silent, Synthetic};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::{alloc::System, fs, path::Path};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/squish-tiny-sqint2");

/// Positions of a page of keys and values: where one begins, there may be allocations.
const PAGE: usize = 64;

/// Small models of each architecture, with everything that theirs may have.
const SHAPES: [(&str, &str); 3] = [
    (
        "qwen2",
        r#"{"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 576,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": false, "vocab_size": 700}"#,
    ),
    (
        "qwen3",
        r#"{"architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 2304,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 128,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
            "attention_bias": false, "vocab_size": 700}"#,
    ),
    (
        "gemma3",
        r#"{"architectures": ["Gemma3ForCausalLM"], "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 384,
            "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1,
            "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 96, "sliding_window_pattern": 2,
            "attention_bias": true, "attn_logit_softcapping": 30.0, "final_logit_softcapping": 20.0,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
            "tie_word_embeddings": true, "vocab_size": 700}"#,
    ),
];

/// Every kind of scheme, rotated or not within one layer, with both corrections.
const MIXED: &str = r#"
    name = "mixed"
    [[rules]]
    tensors = ["*embed_tokens.weight"]
    scheme = "int8"
    [[rules]]
    tensors = ["*.q_proj.weight", "*.up_proj.weight"]
    scheme = "tcq2"
    [[rules]]
    tensors = ["*.k_proj.weight"]
    scheme = "int4"
    [[rules]]
    tensors = ["*.v_proj.weight"]
    scheme = "keep"
    [[rules]]
    tensors = ["*.gate_proj.weight"]
    scheme = "nf2"
    rank = 4
    sparse = 0.01
    [[rules]]
    tensors = ["*_proj.weight"]
    scheme = "int3"
"#;

#[test]
fn a_step_gives_what_tensors_give_and_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    check(Path::new(BUNDLED), Arithmetic::Int8, KvMode::F16);
    check(Path::new(BUNDLED), Arithmetic::F32, KvMode::K8V8);
    for (shape, config) in SHAPES {
        let path = dir.path().join(format!("{shape}.json"));
        fs::write(&path, config).unwrap();
        for recipe in [Recipe::load("int4").unwrap(), Recipe::parse("mixed", MIXED).unwrap()] {
            let out = dir.path().join(format!("{shape}-{}", recipe.name));
            let synthetic = Synthetic { recipe, target_bits: None, seed: 1 };
            synthetic.write(&path, &out, &Silent).unwrap();
            disturb(&out.join("model.safetensors"));
            check(&out, Arithmetic::Int8, KvMode::K8V4);
            check(&out, Arithmetic::F32, KvMode::F32);
        }
    }
    what_a_session_keeps();
}

/// Biases of a synthetic checkpoint are zero and norms one: makes them random, so that none may take another's place.
fn disturb(weights: &Path) {
    let mut file = fs::read(weights).unwrap();
    let (size, rest) = file.split_first_chunk_mut::<8>().unwrap();
    let (header, data) = rest.split_at_mut(u64::from_le_bytes(*size) as usize);
    let header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let (mut state, mut found) = (7u64, 0);
    for (name, tensor) in header.as_object().unwrap() {
        if !name.ends_with(".bias") && !name.ends_with("norm.weight") {
            continue;
        }
        assert_eq!(tensor["dtype"], "BF16", "{name}");
        let [start, end] = [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap() as usize);
        for value in data[start..end].as_chunks_mut::<2>().0 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // A bf16 is the upper half of an f32; these are in 0.5 .. 1.
            *value = [(state >> 40) as u8, 0x3f];
            value[0] &= 0x7f;
        }
        found += 1;
    }
    assert!(found > 4, "{found} biases and norms");
    fs::write(weights, file).unwrap();
}

/// A session of a model, and the same over tensors.
struct Both {
    model: Model,
    session: Session,
    cache: KvCache,
}

impl Both {
    fn logits_of_tensors(&mut self, ids: &[u32]) -> Vec<f32> {
        let layers = self.model.layers();
        let hidden = layers.hidden(ids, &mut self.cache).unwrap();
        let last = hidden.narrow(0, ids.len() - 1, 1).unwrap();
        layers.head(last).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }
}

fn check(dir: &Path, arithmetic: Arithmetic, kv: KvMode) {
    let what = format!("{} in {arithmetic:?}, {kv}", dir.file_name().unwrap().display());
    let mut checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.set_arithmetic(arithmetic);
    let model = Model::from_checkpoint(&checkpoint, &Device::Cpu).unwrap();
    assert!(model.layers().decodes_without_tensors());
    let options = SessionOptions { recent: PAGE, ..SessionOptions::in_mode(kv) };
    let session = model.session_with(options).unwrap();
    let cache = KvCache::new(model.config().num_hidden_layers, kv, PAGE, &Device::Cpu);
    let mut both = Both { model, session, cache };

    // All that a sampler may have to do.
    let options = GenerationOptions::default().repetition_penalty(1.1).top_k(40).top_p(0.9);
    let mut sampler = Sampler::new(&options, 7).unwrap();
    // Past a sliding window of 96 and its pages, and past what is recent; then back to the prompt's end, and on from there.
    let prompt: Vec<u32> = (1..=70).collect();
    both.session.advance(&prompt).unwrap();
    let expected = both.logits_of_tensors(&prompt);
    assert!(both.session.logits() == expected, "{what}: a prompt");
    both.session.set_mark();
    both.cache.set_mark();
    let (mut id, mut steps) = (1, 0);
    for count in [290, 90] {
        for position in both.session.len()..both.session.len() + count {
            sampler.observe(&[id]);
            let region = Region::new(ALLOCATOR);
            both.session.advance(&[id]).unwrap();
            let next = sampler.sample(both.session.logits()).unwrap();
            let change = region.change();
            let allocated = change.allocations + change.reallocations;
            // The first steps have the buffers made.
            if position > prompt.len() + 1 && !position.is_multiple_of(PAGE) {
                assert_eq!(allocated, 0, "{what}: {} bytes at position {position}", change.bytes_allocated);
                steps += 1;
            }

            let region = Region::new(ALLOCATOR);
            let expected = both.logits_of_tensors(&[id]);
            assert!(region.change().allocations > 100, "tensors are not counted");
            assert!(both.session.logits() == expected, "{what}: other logits at position {position}");
            id = next;
        }
        assert_eq!(both.session.truncate(prompt.len()), prompt.len());
        assert_eq!(both.cache.truncate(prompt.len()), prompt.len());
    }
    assert!(steps > 350);
}

fn what_a_session_keeps() {
    let model = Model::from_dir(BUNDLED, &Device::Cpu).unwrap();
    let (mut session, mut other) = (model.session(), model.session());
    assert!(session.logits().is_empty());
    session.advance(&[5, 6, 7]).unwrap();
    assert_eq!(session.logits(), other.feed(&[5, 6, 7]).unwrap().to_vec1::<f32>().unwrap());
    session.advance(&[8]).unwrap();
    assert_eq!(session.logits(), other.feed(&[8]).unwrap().to_vec1::<f32>().unwrap());
    let copy = session.clone();
    assert_eq!(session.logits(), copy.logits());
    // What cannot be taken leaves everything as it was.
    let limit = session.context_length();
    assert!(matches!(session.advance(&[]), Err(Error::NoTokens)));
    assert!(matches!(session.advance(&[8192]), Err(Error::Token { id: 8192, .. })));
    assert!(matches!(session.advance(&vec![1; limit]), Err(Error::ContextFull { .. })));
    assert_eq!((session.len(), session.logits()), (4, copy.logits()));
    session.truncate(3);
    assert!(session.logits().is_empty());
    session.advance(&[8]).unwrap();
    assert_eq!(session.logits(), copy.logits());
    session.reset();
    assert!(session.logits().is_empty() && session.is_empty());
}
