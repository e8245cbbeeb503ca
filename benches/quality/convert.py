"""A Qwen2 checkpoint of Hugging Face's layout as a GGUF file in f32, the form that llama.cpp quantises from.

bf16 weights are f32 weights with 16 zero bits, so nothing is rounded.
"""

import json
import shutil
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gguf_qwen2 import add_hyperparameters

ARCHITECTURE = gguf.MODEL_ARCH.QWEN2


def read_safetensors(path):
    """Yields (name, array) for every tensor of a safetensors file, as f32 arrays."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        yield name, as_f32(entry["dtype"], data[begin:end], name).reshape(entry["shape"])


def as_f32(dtype, data, name):
    """The little-endian values of a tensor as f32."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype in ("F16", "F32"):
        return np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32)
    raise SystemExit(f"{name} is {dtype}, expected BF16, F16 or F32")


def add_tokenizer(writer, tokenizer, config):
    """Byte-level BPE with the pre-tokenizer of Qwen2 ("gpt2" and "qwen2" in GGUF's words)."""
    model = tokenizer["model"]
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens = {index: text for text, index in model["vocab"].items()} | special
    ids = range(config["vocab_size"])
    kind = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in ids])
    writer.add_token_types(
        [kind.CONTROL if i in special else kind.NORMAL if i in tokens else kind.UNUSED for i in ids]
    )
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def convert(model, out):
    """Writes the checkpoint in directory `model` to the GGUF file `out`."""
    model = Path(model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if config["architectures"] != ["Qwen2ForCausalLM"]:
        raise SystemExit(f"{model}: {config['architectures']}, expected Qwen2ForCausalLM")
    temporary = Path(f"{out}.tmp")
    writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[ARCHITECTURE])
    add_hyperparameters(writer, config, gguf.LlamaFileType.ALL_F32)
    add_tokenizer(writer, json.loads((model / "tokenizer.json").read_text(encoding="utf-8")), config)
    names = gguf.get_tensor_name_map(ARCHITECTURE, config["num_hidden_layers"])
    for name, values in read_safetensors(model / "model.safetensors"):
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise SystemExit(f"{model}: no GGUF name for tensor {name}")
        writer.add_tensor(gguf_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(out)


def dequantise(original, quantised, out):
    """Writes the f32 GGUF file `original` to `out` with the values that the tensors of `quantised` stand for."""
    stored = {t.name: t for t in gguf.GGUFReader(quantised).tensors}
    shutil.copy(original, out)
    for tensor in gguf.GGUFReader(out, "r+").tensors:
        other = stored[tensor.name]
        tensor.data[...] = gguf.quants.dequantize(other.data, other.tensor_type).reshape(tensor.data.shape)


def sizes(path):
    """Parameters and bytes of a GGUF file: all of it, its tensors' data, and that of the blocks' matrices."""
    tensors = gguf.GGUFReader(path).tensors
    linears = [t for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    return {
        "parameters": sum(int(t.n_elements) for t in tensors),
        "tensor_bytes": sum(int(t.n_bytes) for t in tensors),
        "file_bytes": Path(path).stat().st_size,
        "linear_bits": 8.0 * sum(int(t.n_bytes) for t in linears) / sum(int(t.n_elements) for t in linears),
        "types": sorted({t.tensor_type.name for t in tensors if len(t.shape) == 2}),
    }
