//! A small random checkpoint, ways to damage it, and the `squish-quant` binary to show it to.

// Each test binary uses a part of this.
#![allow(dead_code)]

use rand::{Rng, SeedableRng, rngs::StdRng};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// A recipe with every quantised scheme and both corrections; `v_proj` is kept as it is.
pub const EVERYTHING: &str = r#"
name = "everything"
seed = 3
[[rules]]
tensors = ["model.embed_tokens.weight"]
scheme = "int8"
[[rules]]
tensors = ["*.gate_proj.weight", "*.o_proj.weight"]
scheme = "nf2"
rank = 3
sparse = 0.02
[[rules]]
tensors = ["*.up_proj.weight", "*.k_proj.weight"]
scheme = "int3"
[[rules]]
tensors = ["*.down_proj.weight"]
scheme = "int4r"
[[rules]]
tensors = ["*.q_proj.weight"]
scheme = "int4"
"#;

/// Sizes and storage of a random Qwen2 checkpoint.
#[derive(Debug, Clone)]
pub struct Spec {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub vocab: usize,
    pub dtype: Dtype,
    pub tied: bool,
    pub shards: usize,
}

impl Default for Spec {
    fn default() -> Self {
        let (hidden, intermediate, layers, vocab) = (64, 128, 3, 96);
        Self { hidden, intermediate, layers, vocab, dtype: Dtype::BF16, tied: true, shards: 1 }
    }
}

/// A tensor as it will be stored.
#[derive(Debug, Clone)]
pub struct Raw {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A checkpoint in memory, valid until a test edits it.
#[derive(Debug, Clone)]
pub struct Source {
    pub config: Value,
    pub tensors: BTreeMap<String, Raw>,
    pub shards: usize,
}

impl Source {
    /// The default [`Spec`], always with the same weights.
    pub fn tiny() -> Self {
        Self::new(&Spec::default())
    }

    /// Random weights with four query heads, two key heads and biases on query, key and value.
    pub fn new(spec: &Spec) -> Self {
        let Spec { hidden, intermediate, layers, vocab, dtype, tied, shards } = *spec;
        let config = json!({
            "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "vocab_size": vocab,
            "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": tied,
        });
        let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![vocab, hidden])];
        shapes.push(("model.norm.weight".into(), vec![hidden]));
        if !tied {
            shapes.push(("lm_head.weight".into(), vec![vocab, hidden]));
        }
        for layer in 0..layers {
            for (name, shape) in [
                ("input_layernorm.weight", vec![hidden]),
                ("post_attention_layernorm.weight", vec![hidden]),
                ("self_attn.q_proj.weight", vec![hidden, hidden]),
                ("self_attn.k_proj.weight", vec![hidden / 2, hidden]),
                ("self_attn.v_proj.weight", vec![hidden / 2, hidden]),
                ("self_attn.o_proj.weight", vec![hidden, hidden]),
                ("self_attn.q_proj.bias", vec![hidden]),
                ("self_attn.k_proj.bias", vec![hidden / 2]),
                ("self_attn.v_proj.bias", vec![hidden / 2]),
                ("mlp.gate_proj.weight", vec![intermediate, hidden]),
                ("mlp.up_proj.weight", vec![intermediate, hidden]),
                ("mlp.down_proj.weight", vec![hidden, intermediate]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}"), shape));
            }
        }
        let mut rng = StdRng::seed_from_u64(7);
        let tensors = shapes.into_iter().map(|(name, shape)| {
            let mut value = || if name.contains("norm") { 1.0 } else { rng.random_range(-0.2..0.2f32) };
            let bytes = (0..shape.iter().product()).flat_map(|_| encode(dtype, value())).collect();
            (name, Raw { dtype, shape, bytes })
        });
        Self { config, tensors: tensors.collect(), shards }
    }

    /// A tensor to edit.
    pub fn tensor(&mut self, name: &str) -> &mut Raw {
        self.tensors.get_mut(name).expect("the checkpoint has this tensor")
    }

    /// Writes the directory `dir`: one weights file, or shards with an index.
    pub fn write(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        let views = |shard: usize| {
            let of_shard = self.tensors.iter().enumerate().filter(move |(i, _)| i % self.shards == shard);
            of_shard.map(|(_, (name, raw))| {
                (name, TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes).expect("a valid tensor"))
            })
        };
        let save = |shard, file: &str| {
            safetensors::serialize_to_file(views(shard), None, &dir.join(file)).unwrap();
        };
        if self.shards == 1 {
            return save(0, "model.safetensors");
        }
        let mut map = BTreeMap::new();
        for shard in 0..self.shards {
            let file = format!("model-{}.safetensors", shard + 1);
            save(shard, &file);
            map.extend(views(shard).map(|(name, _)| (name.clone(), file.clone())));
        }
        let index = json!({"metadata": {}, "weight_map": map});
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

impl Raw {
    /// Replaces one element.
    pub fn set(&mut self, index: usize, value: f32) {
        let bytes = encode(self.dtype, value);
        self.bytes[index * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
    }
}

fn encode(dtype: Dtype, value: f32) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F32 => value.to_le_bytes().to_vec(),
        other => panic!("no encoding for {other:?}"),
    }
}

/// A tokenizer of the words `w1 w2 ..`, with the ids 1, 2, .. below `vocab`.
pub fn tokenizer_json(vocab: usize) -> String {
    let words: BTreeMap<String, usize> = (1..vocab).map(|id| (format!("w{id}"), id)).collect();
    let mut model = json!({"type": "WordLevel", "vocab": words, "unk_token": "w0"});
    model["vocab"]["w0"] = 0.into();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null, "model": model,
    })
    .to_string()
}

/// `count` words that [`tokenizer_json`] knows.
pub fn words(count: usize) -> String {
    (0..count).map(|i| format!("w{} ", 1 + i * 7 % 90)).collect()
}

/// A temporary directory with a checkpoint in `source`, in which commands run: `out` is where output goes.
pub struct Sandbox(TempDir);

impl Sandbox {
    pub fn new(source: &Source) -> Self {
        let sandbox = Self(tempfile::tempdir().unwrap());
        source.write(&sandbox.path("source"));
        sandbox
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Edits the bytes of the source's weights file.
    pub fn edit_weights(&self, edit: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path("source/model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        edit(&mut bytes);
        fs::write(&path, bytes).unwrap();
    }

    /// The tool, to run in the sandbox.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_squish-quant"));
        command.args(args).current_dir(self.0.path()).env_remove("RAYON_NUM_THREADS");
        // What is tested of every recipe alike is tested of one that needs no calibration.
        if args.first() == Some(&"compress") && !args.contains(&"--recipe") {
            command.args(["--recipe", "sqint2-plan"]);
        }
        command
    }

    /// Runs the tool, which must succeed, and returns its standard output.
    pub fn succeeds(&self, args: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(status.success(), "{args:?}: {status}, {stderr}");
        assert_eq!(stderr, "", "{args:?} warns");
        String::from_utf8(stdout).unwrap()
    }

    /// Runs the tool, which must refuse with one line that holds every one of `expected`, and change no file.
    pub fn refuses(&self, args: &[&str], expected: &[&str]) {
        let before = files(self.0.path());
        let output = self.command(args).output().unwrap();
        assert_refusal(&output, expected);
        assert!(files(self.0.path()) == before, "{args:?} changed files");
    }

    /// Every command that reads the checkpoint must refuse it with one line that holds every one of `expected`.
    pub fn refuses_source(&self, expected: &[&str]) {
        fs::write(self.path("text"), words(100)).unwrap();
        self.refuses(&["compress", "source", "--out", "out"], expected);
        self.refuses(&["compress", "source", "--out", "out", "--json"], expected);
        self.refuses(&["perplexity", "source", "--text", "text", "--window", "8"], expected);
    }
}

/// A refusal: exit code 1, nothing on standard output, one line on standard error that begins with `error: `.
pub fn assert_refusal(output: &Output, expected: &[&str]) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}: {stderr}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert!(stderr.starts_with("error: ") && stderr.ends_with('\n'), "{stderr}");
    assert!(
        stderr.lines().count() == 1 && !stderr.contains(['\u{1b}', '\r']),
        "not one plain line: {stderr:?}"
    );
    for part in expected {
        assert!(stderr.contains(part), "no `{part}` in: {stderr}");
    }
}

/// Everything below a directory: paths, and the contents of files.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
            found.insert(path, None);
        } else {
            // A link to nowhere has no contents.
            let contents = fs::read(&path).unwrap_or_default();
            found.insert(path, Some(contents));
        }
    }
    found
}

/// The JSON header of a safetensors file, and its data.
pub fn split(file: &[u8]) -> (Value, &[u8]) {
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (serde_json::from_slice(header).unwrap(), data)
}

/// A safetensors file of a JSON header and data.
pub fn join(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

/// Edits the header of a safetensors file.
pub fn edit_header(file: &mut Vec<u8>, edit: impl FnOnce(&mut Value)) {
    let (mut header, data) = split(file);
    edit(&mut header);
    *file = join(&header, data);
}

/// Edits the manifest in the header of a squished weights file.
pub fn edit_manifest(file: &mut Vec<u8>, edit: impl FnOnce(&mut Value)) {
    edit_header(file, |header| {
        let text = &mut header["__metadata__"]["squish"];
        let mut manifest = serde_json::from_str(text.as_str().unwrap()).unwrap();
        edit(&mut manifest);
        *text = manifest.to_string().into();
    });
}
