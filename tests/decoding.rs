//! A step of decoding on the CPU: the same logits as over tensors to the bit, and nothing allocated.
//!
//! In a program of its own, since it counts what all threads allocate.

use squish::{GenerationOptions, Sampler};
use squish_models::{Arithmetic, Checkpoint, Device, KvMode, Model, SessionOptions, kv_cache::KvCache};
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
    let (packed, plain) = (KvMode::K8V4, KvMode::F16);
    check(Path::new(BUNDLED), Arithmetic::Int8, plain);
    check(Path::new(BUNDLED), Arithmetic::F32, packed);
    for (shape, config) in SHAPES {
        let path = dir.path().join(format!("{shape}.json"));
        fs::write(&path, config).unwrap();
        let recipes = [Recipe::load("int4").unwrap(), Recipe::parse("mixed", MIXED).unwrap()];
        for (recipe, kv) in recipes.into_iter().zip([plain, packed]) {
            let out = dir.path().join(format!("{shape}-{}", recipe.name));
            let synthetic = Synthetic { recipe, target_bits: None, seed: 1 };
            synthetic.write(&path, &out, &Silent).unwrap();
            check(&out, Arithmetic::Int8, kv);
        }
    }
}

fn check(dir: &Path, arithmetic: Arithmetic, kv: KvMode) {
    let what = format!("{} in {arithmetic:?}, {kv}", dir.file_name().unwrap().display());
    let mut checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.set_arithmetic(arithmetic);
    let model = Model::from_checkpoint(&checkpoint, &Device::Cpu).unwrap();
    assert!(model.layers().decodes_without_tensors());
    let options = SessionOptions { recent: PAGE, ..SessionOptions::in_mode(kv) };
    let mut session = model.session_with(options).unwrap();
    let mut cache = KvCache::new(model.config().num_hidden_layers, kv, PAGE, &Device::Cpu);

    // All that a sampler may have to do.
    let options = GenerationOptions::default().repetition_penalty(1.1).top_k(40).top_p(0.9);
    let mut sampler = Sampler::new(&options, 7).unwrap();
    // Past a sliding window of 96 and its pages, and past what is recent.
    let (mut id, mut steps) = (1, 0);
    for position in 0..330 {
        sampler.observe(&[id]);
        let region = Region::new(ALLOCATOR);
        session.advance(&[id]).unwrap();
        let next = sampler.sample(session.logits()).unwrap();
        let change = region.change();
        let allocated = change.allocations + change.reallocations;
        // The first page has the buffers made, later ones have them grow.
        if position >= PAGE && !position.is_multiple_of(PAGE) {
            assert_eq!(allocated, 0, "{what}: {} bytes at position {position}", change.bytes_allocated);
            steps += 1;
        }

        let layers = model.layers();
        let region = Region::new(ALLOCATOR);
        let hidden = layers.hidden(&[id], &mut cache).unwrap();
        assert!(region.change().allocations > 100, "tensors are not counted");
        let expected = layers.head(hidden).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(session.logits() == expected, "{what}: other logits at position {position}");
        id = next;
    }
    assert!(steps > 250);
}
