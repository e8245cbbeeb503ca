"""Makes a checkpoint of a true shape with random weights for mlx-lm, and measures it.

    mlx_peer.py make CONFIG BITS DIRECTORY
    mlx_peer.py run DIRECTORY PROMPT GENERATE DEPTH TIMES

`run` prints one JSON object: prefill and decode, tokens per second, medians of TIMES; decode after DEPTH tokens. Run by `benches/peers/run` with a
Python that has mlx-lm.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

# As mlx-lm quantises by default.
GROUP = 64


def make(config, bits, directory):
    config = json.loads(Path(config).read_text(encoding="utf-8"))
    model = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, group_size=GROUP, bits=bits)
    parameters = dict(tree_flatten(model.parameters()))
    # One after the other: unquantised, all of them are several times as large.
    for parameter in parameters.values():
        mx.eval(parameter)
    directory.mkdir(parents=True)
    config["quantization"] = {"group_size": GROUP, "bits": bits}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mx.save_safetensors(str(directory / "model.safetensors"), parameters, metadata={"format": "mlx"})


def tokens(count):
    return mx.array([[(7 * i) % 1000 + 1 for i in range(count)]])


def read(model, count):
    """The cache after a prompt, whose logits nobody asks for."""
    cache = make_prompt_cache(model)
    if count > 0:
        model(tokens(count), cache=cache)
        mx.eval([layer.state for layer in cache])
    return cache


def run(directory, prompt, generate, depth, times):
    model, _ = load_model(directory)
    mx.eval(model.parameters())
    prefill, decode = [], []
    for _ in range(times):
        if prompt > 0:
            start = time.perf_counter()
            read(model, prompt)
            prefill.append(prompt / (time.perf_counter() - start))
        cache, token = read(model, depth), tokens(1)
        start = time.perf_counter()
        for _ in range(generate):
            token = mx.argmax(model(token, cache=cache)[:, -1, :], axis=-1)[None]
            mx.eval(token)
        if generate > 0:
            decode.append(generate / (time.perf_counter() - start))
    return {"prefill": statistics.median(prefill or [0]), "decode": statistics.median(decode or [0])}


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "make":
        make(rest[0], int(rest[1]), Path(rest[2]))
    else:
        print(json.dumps(run(Path(rest[0]), *map(int, rest[1:]))))
