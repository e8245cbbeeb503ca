"""Quantises the test model with llama.cpp and measures every type; `peers` sets the environment up and calls this."""

import argparse
import os
import platform
import subprocess
from pathlib import Path

import convert
import llama
import measure
import testset

# Type of llama-quantize, and whether it is given the importance matrix.
TYPES = [
    ("Q4_0", False),
    ("Q4_K_M", True),
    ("IQ4_XS", True),
    ("Q3_K_M", True),
    ("IQ3_XXS", True),
    ("Q2_K", True),
    ("IQ2_M", True),
    ("IQ2_XS", True),
    ("IQ2_XXS", True),
]

# transformers in f32 on the same windows gives 3.76436 nats a token.
REFERENCE_NLL, TOLERANCE = 3.7644, 0.0005


def tool(tools, name, log, *arguments):
    """Runs one of llama.cpp's programs; its output goes to a log file."""
    command = [str(Path(tools) / name), *map(str, arguments)]
    with open(log, "w", encoding="utf-8") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    if code != 0:
        raise SystemExit(f"{name} failed with code {code}: see {log}")


def convert_model(directory):
    """The unquantised model as GGUF; kept if it is there already, as every file here."""
    original = directory / "original.gguf"
    if not original.exists():
        convert.convert(testset.MODEL, original)
    return original


def quantise(tools, directory, original, threads):
    """Computes the importance matrix, and one file a type."""
    imatrix = directory / "imatrix.gguf"
    if not imatrix.exists():
        print("importance matrix", flush=True)
        temporary = directory / "partial.imatrix.gguf"
        # The calibration text separates its articles by a special token's name.
        options = ["--parse-special", "--no-ppl", "-c", 512, "-t", threads]
        text = testset.CALIBRATION_TEXT
        tool(tools, "llama-imatrix", directory / "imatrix.log", "-m", original, "-f", text, "-o", temporary, *options)
        temporary.replace(imatrix)
    for name, weighted in TYPES:
        out = directory / f"{name}.gguf"
        if not out.exists():
            print("quantise", name, flush=True)
            temporary = directory / f"partial.{name}.gguf"
            options = ["--imatrix", imatrix] if weighted else []
            log = directory / f"{name}.log"
            tool(tools, "llama-quantize", log, *options, original, temporary, name, threads)
            temporary.replace(out)


def row(name, weighted, path, version):
    """The part of a result row that the file alone decides."""
    sizes = convert.sizes(path)
    return {
        "engine": "llama.cpp",
        "version": version,
        "format": name,
        "imatrix": weighted,
        "bits_per_parameter": 8.0 * sizes["tensor_bytes"] / sizes["parameters"],
        "file_bits_per_parameter": 8.0 * sizes["file_bytes"] / sizes["parameters"],
        **sizes,
    }


def check_tokenizer(model, path, ids):
    """llama.cpp's tokenizer must agree with Hugging Face's on a text."""
    own = model.tokenize(path.read_text(encoding="utf-8"))
    if own != ids:
        first = next((i for i, (a, b) in enumerate(zip(own, ids)) if a != b), min(len(own), len(ids)))
        raise SystemExit(f"{path}: {len(own)} ids, expected {len(ids)}; the first difference is at {first}")


def log_probabilities(path, windows, threads, check=lambda model: None):
    """Of one GGUF file, over all windows."""
    model = llama.Model(path, testset.WINDOW, threads)
    check(model)
    log_p = measure.log_probabilities(model, windows)
    model.close()
    return log_p


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=testset.HERE / "peers.json")
    args = parser.parse_args()

    args.directory.mkdir(parents=True, exist_ok=True)
    original = convert_model(args.directory)
    windows, test_ids = measure.test_windows()
    calibration_ids = measure.token_ids(testset.CALIBRATION_TEXT)

    def check(model):
        check_tokenizer(model, testset.TEST_TEXT, test_ids)
        check_tokenizer(model, testset.CALIBRATION_TEXT, calibration_ids)

    log_p = log_probabilities(original, windows, args.threads, check)
    nll = float(measure.losses(log_p, windows).mean())
    print(f"original {nll:.5f} nats a token", flush=True)
    if abs(nll - REFERENCE_NLL) > TOLERANCE:
        raise SystemExit(f"the unquantised model gives {nll:.5f}, expected {REFERENCE_NLL} +- {TOLERANCE}")

    quantise(args.tools, args.directory, original, args.threads)
    rows = []
    for name, weighted in TYPES:
        path = args.directory / f"{name}.gguf"
        dequantised = args.directory / "dequantised.gguf"
        convert.dequantise(original, path, dequantised)
        weights_alone = measure.compare(log_p, log_probabilities(dequantised, windows, args.threads), windows)
        dequantised.unlink()
        as_run = measure.compare(log_p, log_probabilities(path, windows, args.threads), windows)
        rows.append(row(name, weighted, path, args.version) | weights_alone | {"as_run": as_run})
        shown = {key: round(rows[-1][key], 4) for key in ("bits_per_parameter", "nats_lost", "kl", "top1")}
        print(name, shown, flush=True)
    head = testset.description() | {"machine": platform.machine(), "original_nll": round(nll, 6)}
    testset.write_results(args.out, head | {"rows": rows})


if __name__ == "__main__":
    main()
