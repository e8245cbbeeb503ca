"""A GGUF file of a true model's shape with random weights in f16: what llama.cpp quantises from.

    gguf_shape.py CONFIG OUT

CONFIG is a Qwen2 checkpoint's config.json. There is no vocabulary: llama-bench takes tokens by number.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gguf_qwen2 import add_hyperparameters

SIGMA = 0.02
# Weights that are drawn. Larger tensors repeat them: what a weight is does not change how long it takes.
DRAWN = 1 << 22


def shapes(config):
    """Yields (name, shape) of every tensor, in GGUF's names."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = hidden // heads
    of_keys = config["num_key_value_heads"] * head_dim
    yield "token_embd.weight", (config["vocab_size"], hidden)
    if not config["tie_word_embeddings"]:
        yield "output.weight", (config["vocab_size"], hidden)
    yield "output_norm.weight", (hidden,)
    for block in range(config["num_hidden_layers"]):
        yield f"blk.{block}.attn_norm.weight", (hidden,)
        yield f"blk.{block}.ffn_norm.weight", (hidden,)
        for name, rows in ("q", hidden), ("k", of_keys), ("v", of_keys):
            yield f"blk.{block}.attn_{name}.weight", (rows, hidden)
            yield f"blk.{block}.attn_{name}.bias", (rows,)
        yield f"blk.{block}.attn_output.weight", (hidden, hidden)
        yield f"blk.{block}.ffn_gate.weight", (inner, hidden)
        yield f"blk.{block}.ffn_up.weight", (inner, hidden)
        yield f"blk.{block}.ffn_down.weight", (hidden, inner)


def main():
    config_path, out = map(Path, sys.argv[1:])
    config = json.loads(config_path.read_text(encoding="utf-8"))
    if config["architectures"] != ["Qwen2ForCausalLM"]:
        raise SystemExit(f"{config_path}: {config['architectures']}, expected Qwen2ForCausalLM")
    temporary = Path(f"{out}.tmp")
    writer = gguf.GGUFWriter(temporary, "qwen2", use_temp_file=False)
    add_hyperparameters(writer, config, gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    drawn = (SIGMA * np.random.default_rng(0).standard_normal(DRAWN, np.float32)).astype(np.float16)
    tensors = list(shapes(config))
    for name, shape in tensors:
        dtype, size = (np.float32, 4) if len(shape) == 1 else (np.float16, 2)
        writer.add_tensor_info(name, shape, np.dtype(dtype), size * int(np.prod(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in tensors:
        if len(shape) == 1:
            data = np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
        else:
            data = np.resize(drawn, shape)
        writer.write_tensor_data(data)
    writer.close()
    temporary.replace(out)


if __name__ == "__main__":
    main()
