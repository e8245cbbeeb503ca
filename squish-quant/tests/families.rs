//! Qwen3 and Gemma 3: their configurations, right and wrong, and compression of their checkpoints, random and trained.

mod support;

use serde_json::{Value, json};
use squish_models::{Device, Model};
use squish_quant::{
    Options, Recipe, Silent, Windows,
    calibrate::text::{Amount, Text},
    compress, kl,
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use support::*;

/// A random tensor, small, the same for the same name.
fn random(name: &str, shape: &[usize]) -> Raw {
    let mut state = name.bytes().fold(1u32, |h, b| h.wrapping_mul(16777619) ^ u32::from(b));
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        half::bf16::from_f32((state >> 16) as f32 / 65536.0 - 0.5)
    };
    let bytes = (0..shape.iter().product()).flat_map(|_| next().to_le_bytes()).collect();
    Raw { dtype: safetensors::Dtype::BF16, shape: shape.to_vec(), bytes }
}

/// The default checkpoint as another family has it: no biases, four query heads of 32, norms over heads.
fn family(architecture: &str) -> Source {
    let mut source = Source::tiny();
    source.config["architectures"] = json!([architecture]);
    source.config["head_dim"] = 32.into();
    source.tensors.retain(|name, _| !name.ends_with(".bias"));
    for layer in 0..3 {
        let shapes = [
            ("q_proj", vec![128, 64]),
            ("k_proj", vec![64, 64]),
            ("v_proj", vec![64, 64]),
            ("o_proj", vec![64, 128]),
        ];
        let norms = [("q_norm", vec![32]), ("k_norm", vec![32])];
        for (name, shape) in shapes.into_iter().chain(norms) {
            let name = format!("model.layers.{layer}.self_attn.{name}.weight");
            let raw = random(&name, &shape);
            source.tensors.insert(name, raw);
        }
    }
    source
}

fn qwen3() -> Source {
    family("Qwen3ForCausalLM")
}

fn gemma3() -> Source {
    let mut source = family("Gemma3ForCausalLM");
    let config = source.config.as_object_mut().unwrap();
    config.remove("hidden_act");
    // Left out by real configurations too.
    config.remove("tie_word_embeddings");
    config.insert("hidden_activation".into(), "gelu_pytorch_tanh".into());
    config.insert("rope_theta".into(), 1e6.into());
    config.insert("query_pre_attn_scalar".into(), 32.into());
    config.insert("sliding_window".into(), 5.into());
    config.insert("sliding_window_pattern".into(), 3.into());
    for layer in 0..3 {
        for name in ["pre_feedforward_layernorm", "post_feedforward_layernorm"] {
            let name = format!("model.layers.{layer}.{name}.weight");
            let raw = random(&name, &[64]);
            source.tensors.insert(name, raw);
        }
    }
    source
}

/// The same language model, as it stands beside an image encoder.
fn gemma3_with_images(prefix: [&str; 2]) -> Source {
    let mut source = gemma3();
    let mut text = source.config.take();
    text.as_object_mut().unwrap().remove("architectures");
    source.config = json!({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text});
    let renamed = std::mem::take(&mut source.tensors).into_iter();
    source.tensors = renamed.map(|(name, raw)| (name.replacen(prefix[0], prefix[1], 1), raw)).collect();
    let of_encoder = "vision_tower.vision_model.encoder.layers.7.self_attn.q_proj.weight";
    source.tensors.insert(of_encoder.into(), random(of_encoder, &[64, 64]));
    source
}

/// Logits of 20 tokens, several times a window.
fn logits(dir: &Path) -> Vec<Vec<f32>> {
    let model = Model::from_dir(dir, &Device::Cpu).unwrap();
    let ids: Vec<u32> = (0..20).map(|i| 1 + i * 37 % 90).collect();
    let mut rows = Vec::new();
    let visit = |_, logits: squish_models::Tensor| {
        rows.extend(logits.to_vec2::<f32>()?);
        Ok(())
    };
    model.session().feed_all(&ids, visit).unwrap();
    rows
}

fn logits_of(source: &Source) -> Vec<Vec<f32>> {
    logits(&Sandbox::new(source).path("source"))
}

fn with(source: impl Fn() -> Source, key: &str, value: Value) -> Source {
    let mut source = source();
    source.config[key] = value;
    source
}

fn far(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

// Configurations.

#[test]
fn one_gemma_in_many_words() {
    let expected = logits_of(&gemma3());
    let types = ["sliding_attention", "sliding_attention", "full_attention"];
    let mut listed = with(gemma3, "layer_types", json!(types));
    listed.config.as_object_mut().unwrap().remove("sliding_window_pattern");
    let mut older = with(gemma3, "_sliding_window_pattern", json!(3));
    older.config.as_object_mut().unwrap().remove("sliding_window_pattern");
    let parameters = json!({
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    });
    let mut newer = with(gemma3, "rope_parameters", parameters);
    newer.config.as_object_mut().unwrap().remove("rope_theta");
    for source in [listed, older, newer] {
        assert_eq!(logits_of(&source), expected, "{}", source.config);
    }
    for prefix in [["model.", "language_model.model."], ["model.", "model.language_model."]] {
        assert_eq!(logits_of(&gemma3_with_images(prefix)), expected, "{prefix:?}");
    }
}

#[test]
fn every_field_of_gemma_counts() {
    let plain = logits_of(&gemma3());
    for (key, value) in [
        ("sliding_window", json!(6)),
        ("sliding_window_pattern", json!(1)),
        ("rope_theta", json!(1e5)),
        ("rope_local_base_freq", json!(1e5)),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 8.0})),
        ("query_pre_attn_scalar", json!(64)),
        ("attn_logit_softcapping", json!(0.5)),
        ("final_logit_softcapping", json!(2.0)),
        ("rms_norm_eps", json!(0.1)),
    ] {
        let changed = logits_of(&with(gemma3, key, value));
        assert!(far(&plain, &changed) > 1e-3, "{key}");
        // A single position has nothing to turn, to mask or to weigh.
        let first = far(&plain[..1], &changed[..1]);
        assert_eq!(
            first < 1e-5,
            !["final_logit_softcapping", "rms_norm_eps"].contains(&key),
            "{key}: {first}"
        );
    }
    let capped = logits_of(&with(gemma3, "final_logit_softcapping", json!(2.0)));
    let expected: Vec<Vec<f32>> =
        plain.iter().map(|row| row.iter().map(|l| 2.0 * (l / 2.0).tanh()).collect()).collect();
    assert!(far(&capped, &expected) < 1e-5);
    // A window that holds everything hides nothing.
    let wide = with(gemma3, "sliding_window", json!(100));
    assert!(far(&logits_of(&wide), &plain) > 1e-3);
}

#[test]
fn broken_configurations_of_qwen3() {
    let mut layer_types = vec!["full_attention"; 3];
    layer_types[1] = "sliding_attention";
    for (key, value) in [
        ("hidden_act", json!("gelu")),
        ("use_sliding_window", json!(true)),
        ("layer_types", json!(layer_types)),
        ("layer_types", json!(["full_attention"])),
        ("layer_types", json!(vec!["linear_attention"; 3])),
        ("attention_bias", json!("yes")),
        ("tie_word_embeddings", json!(3)),
        ("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0})),
        ("rope_theta", json!(0)),
        ("partial_rotary_factor", json!(0.5)),
        ("num_key_value_heads", json!(3)),
        ("max_position_embeddings", json!(0)),
    ] {
        Sandbox::new(&with(qwen3, key, value)).refuses_source(&["source/config.json", key]);
    }
    Sandbox::new(&with(qwen3, "head_dim", json!(15))).refuses_source(&["source/config.json", "15"]);
    // Without the field, heads are 128 wide.
    Sandbox::new(&with(qwen3, "head_dim", json!(64))).refuses_source(&["source/model.safetensors", "q_proj"]);
    let biased = with(qwen3, "attention_bias", json!(true));
    Sandbox::new(&biased).refuses_source(&["self_attn.q_proj.bias", "missing"]);
    let mut no_norm = qwen3();
    no_norm.tensors.remove("model.layers.1.self_attn.k_norm.weight");
    Sandbox::new(&no_norm).refuses_source(&["model.layers.1.self_attn.k_norm.weight", "missing"]);
    let mut long = qwen3();
    long.tensors.insert("model.layers.0.self_attn.q_norm.weight".into(), random("x", &[64]));
    Sandbox::new(&long).refuses_source(&["q_norm", "[64]", "[32]"]);
}

#[test]
fn broken_configurations_of_gemma3() {
    for (key, value) in [
        ("hidden_activation", json!("gelu")),
        ("use_bidirectional_attention", json!(true)),
        ("query_pre_attn_scalar", json!(0)),
        ("query_pre_attn_scalar", json!("x")),
        ("attn_logit_softcapping", json!(-1)),
        ("final_logit_softcapping", json!([])),
        ("sliding_window", json!(0)),
        ("sliding_window", json!(1.5)),
        ("sliding_window", json!(1u64 << 60)),
        ("sliding_window_pattern", json!(0)),
        ("layer_types", json!(vec!["full_attention"; 4])),
        ("layer_types", json!("full_attention")),
        ("layer_types", json!(vec!["chunked_attention"; 3])),
        ("rope_local_base_freq", json!(0.5)),
        ("rope_local_base_freq", json!("1e4")),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0})),
        ("rope_parameters", json!({"full_attention": {"rope_theta": 1e6}})),
        ("num_hidden_layers", json!(0)),
        ("rms_norm_eps", json!(-1)),
    ] {
        Sandbox::new(&with(gemma3, key, value)).refuses_source(&["source/config.json", key]);
    }
    let mut no_norm = gemma3();
    no_norm.tensors.remove("model.layers.2.post_feedforward_layernorm.weight");
    Sandbox::new(&no_norm).refuses_source(&["model.layers.2.post_feedforward_layernorm.weight", "missing"]);
    let untied = with(gemma3, "tie_word_embeddings", json!(false));
    Sandbox::new(&untied).refuses_source(&["lm_head.weight", "missing"]);

    let with_images = || gemma3_with_images(["model.", "language_model.model."]);
    for value in [json!(null), json!(3), json!([])] {
        Sandbox::new(&with(with_images, "text_config", value))
            .refuses_source(&["source/config.json", "text_config"]);
    }
    let mut wrong = with_images();
    wrong.config["text_config"]["sliding_window"] = 0.into();
    Sandbox::new(&wrong).refuses_source(&["source/config.json", "sliding_window"]);
}

// Compression.

/// Calibrated trellis codes and allocation over a short text.
#[test]
fn small_checkpoints_are_compressed_with_calibration() {
    let with_images = gemma3_with_images(["model.", "language_model.model."]);
    for (source, prefix) in [(qwen3(), "model"), (gemma3(), "model"), (with_images, "language_model.model")] {
        let sandbox = Sandbox::new(&source);
        fs::write(sandbox.path("source/tokenizer.json"), tokenizer_json(96)).unwrap();
        fs::write(sandbox.path("text"), words(400)).unwrap();
        let quick = ["--calibration-window", "16", "--calibration-windows", "8"];
        for text in ["text", "self"] {
            let command = ["compress", "source", "--out", "out", "--recipe", "sqint2", "--calibrate", text];
            for bits in ["0", "5"] {
                let bits = ["--target-bpw", bits, "--json"];
                let json = sandbox.succeeds(&[&command[..], &quick, &bits].concat());
                let json: Value = serde_json::from_str(&json).unwrap();
                let scheme = |name: &str| {
                    let tensors = json["tensors"].as_array().unwrap();
                    tensors.iter().find(|t| t["name"] == name).unwrap()["scheme"].as_str().unwrap()
                };
                for name in ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"] {
                    assert!(scheme(&format!("{prefix}.layers.2.{name}.weight")).starts_with("tcq"), "{name}");
                }
                assert_ne!(scheme(&format!("{prefix}.embed_tokens.weight")), "bf16");
                if prefix != "model" {
                    let of_encoder = "vision_tower.vision_model.encoder.layers.7.self_attn.q_proj.weight";
                    assert_eq!(scheme(of_encoder), "bf16");
                }
                assert!(logits(&sandbox.path("out")).iter().flatten().all(|l| l.is_finite()));
                fs::remove_dir_all(sandbox.path("out")).unwrap();
            }
        }
    }
}

#[test]
fn a_recipe_that_the_family_does_not_bear_is_refused() {
    let mut source = gemma3();
    // Logits near zero, which any recipe keeps well.
    (0..64).for_each(|i| source.tensor("model.norm.weight").set(i, -0.9));
    let sandbox = Sandbox::new(&source);
    fs::write(sandbox.path("source/tokenizer.json"), tokenizer_json(96)).unwrap();
    fs::write(sandbox.path("text"), words(400)).unwrap();
    let rounded = ["compress", "source", "--out", "out", "--recipe", "int3"];
    sandbox
        .refuses(&rounded, &["source/config.json", "int3", "Gemma 3", "about 15 points", "--force-recipe"]);
    for recipe in ["int4", "sqint2-plan"] {
        let guarded = recipe == "sqint2-plan";
        let command = ["compress", "source", "--out", recipe, "--recipe", recipe];
        if guarded {
            sandbox.refuses(&command, &["Gemma 3"]);
        } else {
            sandbox.succeeds(&command);
        }
    }
    // Calibration is another matter than rounding.
    let calibration = ["--calibrate", "text", "--calibration-window", "16", "--calibration-windows", "4"];
    sandbox.succeeds(
        &[&["compress", "source", "--out", "calibrated", "--recipe", "int3"][..], &calibration].concat(),
    );
    // Other families, and other sizes of one, are not meant.
    Sandbox::new(&qwen3()).succeeds(&rounded);
    let mut guarded = qwen3();
    guarded.config["num_hidden_layers"] = 36.into();
    guarded.config["hidden_size"] = 2560.into();
    let guards = squish_quant::guard::Guard::all();
    let guard = guards.iter().find(|guard| guard.name == "Qwen3-4B").unwrap();
    assert!(guard.sizes.iter().all(|(key, value)| guarded.config[key] == *value));

    // Forced, and then lifted by what was measured.
    sandbox.succeeds(&["compress", "source", "--out", "forced", "--recipe", "int3", "--force-recipe"]);
    let certified = |by: &'static str| [&rounded[..], &["--certified", by]].concat();
    sandbox.refuses(&certified("forced"), &["forced/model.safetensors", "no divergence"]);
    sandbox.refuses(&certified("source"), &["no certificate"]);
    sandbox.refuses(&certified("absent"), &["absent"]);
    let measure = |dir: &'static str, against: &'static str| {
        let windows = ["--window", "16", "--windows", "2", "--certify"];
        let command = ["eval", dir, "--task", "kl", "--text", "text", "--against", against];
        sandbox.succeeds(&[&command[..], &windows].concat());
    };
    measure("forced", "source");
    let kl = |dir: &str| {
        let json: Value = serde_json::from_str(&sandbox.succeeds(&["inspect", dir, "--json"])).unwrap();
        json["certificate"]["measurements"][0]["values"]["kl_mean"].as_f64().unwrap()
    };
    let limit = guards[0].max_kl;
    assert!(kl("forced") <= limit, "{}", kl("forced"));
    sandbox.succeeds(&certified("forced"));
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    // Of another recipe.
    measure("int4", "source");
    assert!(kl("int4") <= limit);
    sandbox.refuses(&certified("int4"), &["int4/model.safetensors", "recipe int4", "recipe int3"]);
}

/// A trained model of the testbed.
fn testbed(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/testbed").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn trained_models_bear_four_bits_rounded_and_two_calibrated() {
    let (Some(text), Some(calibration)) = (testbed("wiki.test.raw"), testbed("calibration.txt")) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for name in ["qwen3-tiny", "gemma3-tiny"] {
        let Some(source) = testbed(name) else { return };
        let divergence = |recipe: &str, calibration: Option<Text>| {
            let mut recipe = Recipe::load(recipe).unwrap();
            recipe.target_bits = None;
            let amount = Amount { window: 512, windows: 16 };
            let calibrated = calibration.is_some();
            let out = dir.path().join(format!("{name}-{}-{calibrated}", recipe.name));
            let options = Options { calibration, amount, force_recipe: true, ..Options::new(recipe) };
            compress(&source, &out, &options, &Silent).unwrap();
            kl(&source, &out, &text, Windows { size: 512, count: Some(2) }, Default::default(), &Silent)
                .unwrap()
                .kl_mean
        };
        let four = divergence("int4", None);
        let (rounded, two) =
            (divergence("sqint2", None), divergence("sqint2", Some(Text::File(calibration.clone()))));
        println!("{name}: KL {four:.4} by int4, {rounded:.4} by tcq2 rounded, {two:.4} calibrated");
        assert!(four < 0.04, "{name}: {four}");
        assert!(two < 0.8 * rounded && two < 0.4, "{name}: {rounded} {two}");
    }
}
