//! Weights files and chat templates.

use crate::scratch::DIR;
use squish_engine::{ChatRequest, ChatTemplate, Error, Message};
use squish_hub::scan::scan_bytes;
use squish_models::{Checkpoint, Device, Model};

/// A configuration that names what the weights are checked against.
const CONFIG: &str = r#"{"architectures": ["Qwen2ForCausalLM"], "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": true}"#;

/// A weights file: header, manifest, and every packed tensor over the mapped bytes. A first byte of 1 stands for the length of
/// the header up to the last brace, which no mutation would guess.
pub fn weights(data: &[u8]) {
    let dir = DIR.path();
    let file = match data.split_first() {
        Some((1, rest)) => {
            let header = rest.iter().rposition(|b| *b == b'}').map_or(0, |end| end + 1);
            [&(header as u64).to_le_bytes()[..], rest].concat()
        }
        _ => data.to_vec(),
    };
    std::fs::write(dir.join("config.json"), CONFIG).expect("room for a file");
    std::fs::write(dir.join("model.safetensors"), &file).expect("room for a file");
    let Ok(checkpoint) = Checkpoint::open(dir) else { return };
    for shard in checkpoint.shards() {
        for entry in shard.entries().values() {
            assert!(entry.range.start <= entry.range.end && entry.range.end <= file.len());
            assert_eq!(shard.bytes(entry).len(), entry.range.len());
        }
    }
    let tensors = checkpoint.tensors("");
    for (name, record) in checkpoint.manifest().iter().flat_map(|m| &m.tensors) {
        let [rows, cols] = record.shape;
        if let Ok(weight) = tensors.weight(name, rows, cols) {
            assert_eq!((weight.rows(), weight.cols()), (rows, cols));
        }
    }
    // What loads has passed the scanner's reader of headers, unless an archive or a program lies within its bytes.
    assert!(
        !scan_bytes("model.safetensors", &file)
            .findings
            .iter()
            .any(|f| f.detail.starts_with("not safetensors"))
    );
    let _ = Model::from_checkpoint(&checkpoint, &Device::Cpu);
}

/// A chat template.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let Ok(template) = ChatTemplate::new(source) else { return };
    let messages =
        [Message::system("Be brief."), Message::user("What is the sea?"), Message::assistant("Water.")];
    let tools = [serde_json::json!({ "name": "clock", "parameters": { "zone": ["UTC", "CET"] } })];
    match template.render(&ChatRequest::new(&messages).tools(tools)) {
        Ok(text) => assert!(text.len() <= 80 << 20),
        Err(Error::Template { .. } | Error::TemplateLimit) => {}
        Err(error) => panic!("{error}"),
    }
}
