//! A bad checkpoint is refused with one clear line and an exit code, and nothing is written.
//!
//! Every test runs the binary in a directory of its own; [`Sandbox::refuses`] states what a refusal is.

mod support;

use safetensors::Dtype;
use serde_json::{Value, json};
use std::fs;
use support::*;

const COMPRESS: &[&str] = &["compress", "source", "--out", "out"];
const UP: &str = "model.layers.1.mlp.up_proj.weight";

/// The tiny checkpoint with its weights file edited.
fn weights(edit: impl FnOnce(&mut Vec<u8>)) -> Sandbox {
    let sandbox = Sandbox::new(&Source::tiny());
    sandbox.edit_weights(edit);
    sandbox
}

/// The tiny checkpoint with its tensors or configuration edited.
fn source(edit: impl FnOnce(&mut Source)) -> Sandbox {
    let mut source = Source::tiny();
    edit(&mut source);
    Sandbox::new(&source)
}

/// The tiny checkpoint with one value in its configuration replaced.
fn config(key: &str, value: Value) -> Sandbox {
    source(|s| s.config[key] = value)
}

/// The tiny checkpoint in `f32` with one weight replaced.
fn weight(index: usize, value: f32) -> Sandbox {
    let mut source = Source::new(&Spec { dtype: Dtype::F32, ..Spec::default() });
    source.tensor(UP).set(index, value);
    Sandbox::new(&source)
}

/// A squished checkpoint in `out` with its manifest edited.
fn manifest(edit: impl FnOnce(&mut Value)) -> Sandbox {
    let sandbox = Sandbox::new(&Source::tiny());
    sandbox.succeeds(COMPRESS);
    let path = sandbox.path("out/model.safetensors");
    let mut file = fs::read(&path).unwrap();
    edit_manifest(&mut file, edit);
    fs::write(&path, file).unwrap();
    fs::write(sandbox.path("text"), words(100)).unwrap();
    sandbox
}

// Files that are no safetensors files.

#[test]
fn a_truncated_file() {
    let expected = ["source/model.safetensors", "not a valid safetensors file", "is the file complete?"];
    weights(|f| f.truncate(f.len() - 1)).refuses_source(&expected);
    weights(|f| f.truncate(f.len() / 2)).refuses_source(&expected);
    weights(|f| f.truncate(100)).refuses_source(&expected);
    weights(|f| f.truncate(3)).refuses_source(&expected);
}

#[test]
fn a_file_with_bytes_after_its_end() {
    weights(|f| f.push(0)).refuses_source(&["source/model.safetensors", "not a valid safetensors file"]);
}

#[test]
fn an_empty_file() {
    weights(Vec::clear).refuses_source(&["source/model.safetensors"]);
}

#[test]
fn garbage() {
    let expected = ["source/model.safetensors", "not a valid safetensors file"];
    weights(|f| *f = b"<html>404 Not Found</html>".repeat(99)).refuses_source(&expected);
    // A sensible header length before bytes that are no text, and before text that is no JSON.
    weights(|f| f[8..].fill(0xff)).refuses_source(&expected);
    weights(|f| f[8..].fill(b'{')).refuses_source(&expected);
}

#[test]
fn a_header_longer_than_the_file() {
    let longer = |f: &mut Vec<u8>| f[..8].copy_from_slice(&(1_000_000u64).to_le_bytes());
    weights(longer).refuses_source(&["source/model.safetensors", "not a valid safetensors file"]);
}

#[test]
fn a_header_of_absurd_length() {
    for length in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 40] {
        weights(|f| f[..8].copy_from_slice(&length.to_le_bytes()))
            .refuses_source(&["source/model.safetensors", "not a valid safetensors file"]);
    }
}

#[test]
fn offsets_out_of_range() {
    for offsets in [json!([0, 1u64 << 40]), json!([u64::MAX - 1, u64::MAX]), json!([9, 3]), json!([-1, 3])] {
        weights(|f| edit_header(f, |header| header[UP]["data_offsets"] = offsets))
            .refuses_source(&["source/model.safetensors", "not a valid safetensors file"]);
    }
}

#[test]
fn overlapping_offsets() {
    weights(|f| {
        edit_header(f, |header| {
            header[UP]["data_offsets"] = header["model.layers.0.mlp.up_proj.weight"]["data_offsets"].clone();
        });
    })
    .refuses_source(&["source/model.safetensors", "not a valid safetensors file"]);
}

#[test]
fn a_shape_that_overflows() {
    weights(|f| edit_header(f, |header| header[UP]["shape"] = json!([1u64 << 40, 1u64 << 40])))
        .refuses_source(&["source/model.safetensors", "not a valid safetensors file"]);
}

#[test]
fn no_weights_and_no_directory() {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::remove_file(sandbox.path("source/model.safetensors")).unwrap();
    sandbox.refuses_source(&["source", "no model.safetensors"]);
    fs::create_dir(sandbox.path("source/model.safetensors")).unwrap();
    sandbox.refuses_source(&["source/model.safetensors"]);
    sandbox.refuses(&["inspect", "nonesuch"], &["nonesuch", "no model"]);
}

// Tensors that are not what the configuration says.

#[test]
fn a_missing_tensor() {
    for name in [UP, "model.norm.weight", "model.layers.2.self_attn.k_proj.bias"] {
        source(|s| drop(s.tensors.remove(name))).refuses_source(&["source", name, "missing"]);
    }
    let untied = config("tie_word_embeddings", json!(false));
    untied.refuses_source(&["source", "lm_head.weight", "missing"]);
}

#[test]
fn a_misshapen_tensor() {
    for (name, shape) in [
        (UP, vec![64, 128]),
        (UP, vec![128 * 64]),
        ("model.norm.weight", vec![8, 8]),
        ("model.layers.0.self_attn.q_proj.bias", vec![1, 64]),
    ] {
        source(|s| s.tensor(name).shape = shape).refuses_source(&[
            "source/model.safetensors",
            name,
            "expected",
        ]);
    }
}

#[test]
fn an_empty_tensor() {
    let empty = |s: &mut Source| {
        let raw = s.tensor(UP);
        (raw.shape, raw.bytes) = (vec![0, 64], vec![]);
    };
    source(empty).refuses_source(&["source/model.safetensors", UP, "expected [128, 64]"]);
    let extra = |s: &mut Source| {
        s.tensors.insert("extra".into(), Raw { dtype: Dtype::F32, shape: vec![0], bytes: vec![] });
    };
    source(extra).refuses(COMPRESS, &["`extra`", "zero"]);
}

#[test]
fn integer_weights() {
    for name in [UP, "model.norm.weight"] {
        source(|s| {
            let raw = s.tensor(name);
            raw.dtype = Dtype::I32;
            raw.bytes.extend(raw.bytes.clone());
        })
        .refuses_source(&["source/model.safetensors", name, "I32", "BF16, F16 or F32"]);
    }
    // A tensor that the model does not use cannot be packed either.
    let extra = Raw { dtype: Dtype::I64, shape: vec![2], bytes: vec![0; 16] };
    source(|s| drop(s.tensors.insert("extra".into(), extra))).refuses(COMPRESS, &["`extra`", "I64"]);
}

#[test]
fn weights_that_are_not_finite() {
    for (value, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let expected = ["source/model.safetensors", UP, text, "row 2, column 1", "finite"];
        weight(129, value).refuses(COMPRESS, &expected);
    }
    // In a tensor that is kept as it is, and in the other element types.
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let mut source = Source::new(&Spec { dtype, ..Spec::default() });
        source.tensor("model.norm.weight").set(5, f32::NAN);
        Sandbox::new(&source).refuses(COMPRESS, &["`model.norm.weight`", "NaN", "column 5"]);
    }
}

#[test]
fn a_weight_too_large_for_f16_scales() {
    let expected = ["source/model.safetensors", UP, "-1000000", "row 0, column 3", "largest"];
    weight(3, -1e6).refuses(COMPRESS, &expected);
}

#[test]
fn weights_that_a_rotation_gathers_beyond_f16() {
    let cols = 1024;
    let mut source = Source::new(&Spec { dtype: Dtype::F32, intermediate: cols, ..Spec::default() });
    let name = "model.layers.1.mlp.down_proj.weight";
    // The row whose rotation is one large value and zeros.
    let mut row = vec![0.0; cols];
    row[5] = 16000.0 * (cols as f32).sqrt();
    squish_kernels::Rotation::new(cols, cols, 1).unwrap().invert(&mut row);
    assert!(row.iter().all(|v| v.abs() < 16001.0));
    row.iter().enumerate().for_each(|(col, v)| source.tensor(name).set(3 * cols + col, *v));
    Sandbox::new(&source).refuses(COMPRESS, &["source/model.safetensors", name, "row 3", "largest"]);
}

#[test]
fn a_block_number_that_overflows() {
    let name = format!("model.layers.{}.mlp.up_proj.weight", usize::MAX);
    let sandbox = source(|s| drop(s.tensors.insert(name, s.tensors[UP].clone())));
    // Nothing the model needs is wrong: an unknown tensor is carried along.
    sandbox.succeeds(COMPRESS);
}

// Configurations.

#[test]
fn a_configuration_that_is_missing_or_garbage() {
    let sandbox = Sandbox::new(&Source::tiny());
    for text in ["", "{", "[]", "\"x\"", "{\"architectures\": 3}", "\u{feff}{}", &"[".repeat(100_000)] {
        fs::write(sandbox.path("source/config.json"), text).unwrap();
        sandbox.refuses_source(&["source/config.json"]);
        sandbox.refuses(&["inspect", "source"], &["source/config.json"]);
    }
    fs::write(sandbox.path("source/config.json"), [0xff; 9]).unwrap();
    sandbox.refuses_source(&["source/config.json", "not valid JSON"]);
    fs::remove_file(sandbox.path("source/config.json")).unwrap();
    sandbox.refuses_source(&["source/config.json", "No such file"]);
}

#[test]
fn an_unknown_architecture() {
    config("architectures", json!(["Llama9ForCausalLM"])).refuses_source(&[
        "source/config.json",
        "architecture `Llama9ForCausalLM` is not supported",
        "Qwen2ForCausalLM",
    ]);
}

#[test]
fn names_with_line_breaks_and_escape_sequences() {
    // A name from a file must not be able to paint over the terminal, or to look like a second line.
    config("architectures", json!(["A\n\u{1b}[2J"])).refuses_source(&["source/config.json"]);
}

#[test]
fn sizes_that_are_zero_or_absurd() {
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "head_dim",
    ] {
        for value in [json!(0), json!(1u64 << 40), json!(u64::MAX)] {
            config(key, value).refuses_source(&["source/config.json", key]);
        }
        for value in [json!(-1), json!("64"), json!(1.5)] {
            // serde names the value that it did not expect, not the field.
            config(key, value).refuses_source(&["source/config.json"]);
        }
    }
    config("rms_norm_eps", json!(0)).refuses_source(&["source/config.json", "rms_norm_eps"]);
    config("rope_theta", json!(-3)).refuses_source(&["source/config.json", "rope_theta"]);
}

#[test]
fn sizes_that_do_not_fit_together() {
    config("num_key_value_heads", json!(3)).refuses_source(&["source/config.json", "num_key_value_heads"]);
    config("num_attention_heads", json!(6)).refuses_source(&["source/model.safetensors", "q_proj"]);
    config("head_dim", json!(15)).refuses_source(&["source/config.json", "15", "even"]);
    config("hidden_size", json!(128)).refuses_source(&["source/model.safetensors", "expected [96, 128]"]);
}

#[test]
fn more_layers_than_there_are_end_at_the_first_missing_one() {
    config("num_hidden_layers", json!((1 << 24) - 1)).refuses_source(&["model.layers.3.", "missing"]);
}

#[test]
fn scaled_rotary_embeddings() {
    for key in ["rope_type", "type"] {
        config("rope_scaling", json!({key: "dynamic", "factor": 4.0})).refuses_source(&[
            "source/config.json",
            "`rope_scaling`",
            "dynamic",
        ]);
    }
    config("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0, "mscale": 1.0})).refuses_source(&[
        "source/config.json",
        "`rope_scaling`",
        "yarn",
        "mscale",
    ]);
    config("rope_parameters", json!({"rope_theta": 1e6, "rope_type": "linear"})).refuses_source(&[
        "source/config.json",
        "`rope_parameters`",
        "linear",
        "factor",
    ]);
}

#[test]
fn a_checkpoint_that_another_method_quantised() {
    for method in ["gptq", "awq"] {
        config("quantization_config", json!({"quant_method": method, "bits": 4})).refuses_source(&[
            "source/config.json",
            method,
            "not supported",
        ]);
    }
    config("quantization_config", json!({"quant_method": "squish"}))
        .refuses_source(&["source/config.json", "`squish`"]);
}

#[test]
fn an_index_that_points_elsewhere() {
    let sandbox = Sandbox::new(&Source::new(&Spec { shards: 2, ..Spec::default() }));
    let index = "source/model.safetensors.index.json";
    fs::copy(sandbox.path("source/model-1.safetensors"), sandbox.path("x")).unwrap();
    let absolute = sandbox.path("x").to_str().unwrap().to_string();
    for file in ["../x", "/etc/passwd", "..", ".", "", "a/../../x", &absolute] {
        fs::write(sandbox.path(index), json!({"weight_map": {"a": file}}).to_string()).unwrap();
        sandbox.refuses_source(&[index, "plain file name"]);
    }
    for (text, reason) in [
        (r#"{"weight_map": {"a": "model-9.safetensors"}}"#, "source/model-9.safetensors: No such file"),
        (r#"{"weight_map": {"a": "model-1.safetensors"}}"#, "missing"),
        (r#"{"weight_map": {"a": 3}}"#, "not a string"),
        (r#"{"weight_map": {}}"#, "empty"),
        ("{}", "no `weight_map`"),
        ("", "not valid JSON"),
    ] {
        fs::write(sandbox.path(index), text).unwrap();
        sandbox.refuses_source(&["source", reason]);
    }
}

// Squished checkpoints.

#[test]
fn an_unknown_version_of_the_format() {
    let sandbox = manifest(|m| m["format"] = json!(2));
    let expected = ["out/model.safetensors", "format 2", "reads format 1"];
    sandbox.refuses(&["inspect", "out"], &expected);
    sandbox.refuses(&["perplexity", "out", "--text", "text"], &expected);
}

#[test]
fn an_unknown_scheme_or_version_of_it() {
    for (key, value, reason) in
        [("scheme", json!("nf1"), "unknown scheme `nf1`"), ("version", json!(7), "version 7")]
    {
        let sandbox = manifest(|m| m["tensors"][UP][key] = value);
        sandbox.refuses(&["inspect", "out"], &[UP, reason]);
        sandbox.refuses(&["perplexity", "out", "--text", "text"], &["out/model.safetensors", UP, reason]);
    }
}

#[test]
fn a_record_that_is_not_what_is_stored() {
    for (key, value) in [("shape", json!([64, 128])), ("group", json!(128)), ("shape", json!([1 << 30, 64]))]
    {
        let sandbox = manifest(|m| m["tensors"][UP][key] = value);
        sandbox.refuses(&["perplexity", "out", "--text", "text"], &["out/model.safetensors", UP]);
        sandbox.refuses(&["inspect", "out"], &[UP]);
    }
}

#[test]
fn a_manifest_that_is_malformed() {
    for edit in [|m: &mut Value| m["tensors"] = json!(3), |m: &mut Value| *m = json!("x")] {
        manifest(edit).refuses(&["inspect", "out"], &["out/model.safetensors", "malformed"]);
    }
}

#[test]
fn a_source_that_is_squished_already() {
    manifest(|_| ()).refuses(&["compress", "out", "--out", "twice"], &["out: already squished"]);
}

#[test]
fn files_that_are_copied_are_within_bounds() {
    let sandbox = Sandbox::new(&Source::tiny());
    // Sparse: no byte of it is written.
    let file = std::fs::File::create(sandbox.path("source/merges.txt")).unwrap();
    file.set_len((256 << 20) + 1).unwrap();
    let output = sandbox.command(&["compress", "source", "--out", "out"]).output().unwrap();
    assert_refusal(&output, &["source/merges.txt", "more than"]);
    assert!(!sandbox.path("out").exists());
    #[cfg(unix)]
    {
        std::fs::remove_file(sandbox.path("source/merges.txt")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", sandbox.path("source/merges.txt")).unwrap();
        let output = sandbox.command(&["compress", "source", "--out", "out"]).output().unwrap();
        assert_refusal(&output, &["source/merges.txt", "regular"]);
    }
}
