"""The model, the text and the windows that every engine is measured on."""

import hashlib
import json
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "target" / "quality"
TESTBED = Path(os.environ.get("SQUISH_TESTBED", ROOT.parent / "shared" / "testbed"))
MODEL = TESTBED / "qwen2.5-tiny"
TEST_TEXT = TESTBED / "wiki.test.raw"
CALIBRATION_TEXT = TESTBED / "calibration.txt"

WINDOW = 1024
WINDOWS = 16

# What two result files must agree on to be compared.
SHARED_FIELDS = ("model_sha256", "text_sha256", "calibration_sha256", "window", "windows")


def sha256(path):
    """Hexadecimal digest of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def description():
    """What was measured on what, for the head of a result file."""
    return {
        "model": MODEL.name,
        "model_sha256": sha256(MODEL / "model.safetensors"),
        "text": TEST_TEXT.name,
        "text_sha256": sha256(TEST_TEXT),
        "calibration": CALIBRATION_TEXT.name,
        "calibration_sha256": sha256(CALIBRATION_TEXT),
        "window": WINDOW,
        "windows": WINDOWS,
        "predictions": WINDOWS * (WINDOW - 1),
    }


def rounded(value):
    """The value with its numbers at six significant digits: what lies beyond is noise."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def write_results(path, results):
    """Writes a result file, one row a line, by way of a temporary file."""
    rows = ",\n".join("    " + json.dumps(rounded(row)) for row in results["rows"])
    head = json.dumps({key: value for key, value in results.items() if key != "rows"}, indent=2)
    temporary = Path(f"{path}.tmp")
    temporary.write_text(f'{head[:-2]},\n  "rows": [\n{rows}\n  ]\n}}\n', encoding="utf-8")
    temporary.replace(path)
