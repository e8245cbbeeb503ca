use super::*;
use crate::layers::{Rope, RopeScaling};
use serde_json::json;

/// A checkpoint with this configuration and no tensors.
fn checkpoint(config: &Value) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let header = b"\x08\0\0\0\0\0\0\0{}      ";
    std::fs::write(dir.path().join("model.safetensors"), header).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

fn rope(config: Value) -> Result<Rope> {
    Fields::new(&checkpoint(&config).1, json!({})).rope()
}

#[test]
fn rope_theta_in_both_styles() {
    let theta = |config| rope(config).unwrap().theta;
    assert_eq!(theta(json!({"rope_theta": 1e6, "rope_scaling": null})), 1e6);
    assert_eq!(theta(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})), 5e5);
    assert_eq!(theta(json!({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}})), 5e5);
    // Where both are given, the newer style is the one that transformers reads.
    assert_eq!(theta(json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}})), 5e5);
}

#[test]
fn scalings_in_both_styles() {
    let scaling = |value: Value| {
        let old = rope(json!({"rope_theta": 1e6, "rope_scaling": value})).unwrap();
        let mut parameters = value;
        parameters["rope_theta"] = 1e6.into();
        assert_eq!(rope(json!({"rope_parameters": parameters})).unwrap(), old);
        old.scaling
    };
    assert_eq!(scaling(json!({"rope_type": "linear", "factor": 8.0})), RopeScaling::Linear { factor: 8.0 });
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: Some(32768),
        attention_factor: None,
        beta_fast: None,
        beta_slow: None,
    };
    let config = json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768});
    assert_eq!(scaling(config), yarn);
    let llama3 = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    assert!(matches!(scaling(llama3), RopeScaling::Llama3 { original_max_position_embeddings: 8192, .. }));
}

#[test]
fn rotary_embeddings_that_are_unknown_or_absurd_are_refused() {
    let refused = |config: Value, expected: &[&str]| {
        let error = rope(config).unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    let scaling = |value: Value| json!({"rope_theta": 1e6, "rope_scaling": value});
    refused(scaling(json!({"type": "dynamic", "factor": 4.0})), &["`rope_scaling`", "dynamic"]);
    refused(scaling(json!({"rope_type": 3})), &["`rope_scaling`", "3"]);
    refused(scaling(json!("linear")), &["`rope_scaling`", "object"]);
    refused(scaling(json!({"rope_type": "linear"})), &["`rope_scaling`", "linear", "`factor`"]);
    refused(scaling(json!({"rope_type": "linear", "factor": 0.5})), &["`rope_scaling`", "`factor` is 0.5"]);
    refused(scaling(json!({"rope_type": "yarn", "factor": 4.0, "mscale": 1.0})), &["`mscale`"]);
    refused(
        scaling(json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.0, "beta_slow": 2.0})),
        &["`beta_fast` is 1"],
    );
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    refused(scaling(llama3), &["`high_freq_factor` is 4"]);
    let parameters = json!({"rope_theta": 1e6, "rope_type": "longrope", "factor": 2.0});
    refused(json!({"rope_parameters": parameters}), &["`rope_parameters`", "longrope"]);
    refused(json!({"rope_theta": 1e6, "partial_rotary_factor": 0.5}), &["`partial_rotary_factor` is 0.5"]);
    refused(json!({}), &["no `rope_theta`"]);
    refused(json!({"rope_theta": 0.5}), &["`rope_theta` is 0.5"]);
    refused(json!({"rope_theta": "1e6"}), &["`rope_theta` is \"1e6\""]);
}

#[test]
fn a_base_for_each_type_of_layer() {
    let config = json!({"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }});
    let (_dir, checkpoint) = checkpoint(&config);
    let fields = Fields::new(&checkpoint, json!({}));
    let of = |layer_type| fields.rope_of_type(layer_type).unwrap();
    assert_eq!(of("full_attention"), Some(Rope { theta: 1e6, scaling: RopeScaling::Linear { factor: 8.0 } }));
    assert_eq!(of("sliding_attention"), Some(Rope { theta: 1e4, scaling: RopeScaling::Default {} }));
    assert_eq!(of("chunked_attention"), None);
    // Not to be taken for the base of all layers.
    assert!(fields.rope().is_err());
}

#[test]
fn the_real_configurations_are_understood() {
    let real = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/real"));
    if !real.exists() {
        eprintln!("skipped: {} is absent", real.display());
        return;
    }
    let mut found = 0;
    for entry in std::fs::read_dir(real).unwrap() {
        let text = std::fs::read(entry.unwrap().path().join("config.json")).unwrap();
        let (_dir, checkpoint) = checkpoint(&serde_json::from_slice(&text).unwrap());
        assert_eq!(Fields::new(&checkpoint, json!({})).rope().unwrap().theta, 1e6);
        // All is well as far as the tensors, of which there are none.
        let error = crate::Model::from_checkpoint(&checkpoint, &crate::Device::Cpu).unwrap_err();
        assert!(matches!(error, Error::MissingTensor { .. }), "{error}");
        found += 1;
    }
    assert!(found > 0);
}
