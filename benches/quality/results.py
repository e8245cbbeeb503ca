"""The result files, and what the plot and the tables both need of them."""

import json
import math

import testset

LLAMA, SQUISH = "llama.cpp", "squish"


def load():
    """Rows of both result files by engine, by falling size, and the head of peers.json; a missing ours.json is no rows."""
    peers = json.loads((testset.HERE / "peers.json").read_text(encoding="utf-8"))
    path = testset.HERE / "ours.json"
    ours = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    for key in testset.SHARED_FIELDS:
        if key in ours and ours[key] != peers[key]:
            raise SystemExit(f"ours.json and peers.json disagree on {key}: {ours[key]} and {peers[key]}")
    by_size = {
        LLAMA: sorted(peers["rows"], key=lambda row: -row["bits_per_parameter"]),
        SQUISH: sorted(ours["rows"], key=lambda row: -row["bits_per_parameter"]),
    }
    return by_size, {key: value for key, value in peers.items() if key != "rows"}


def frontier(rows, measure):
    """(bits, loss) of the rows than which no smaller or equal row loses less, by rising bits."""
    best = []
    for row in sorted(rows, key=lambda row: (row["bits_per_parameter"], row[measure])):
        if row[measure] > 0 and (not best or row[measure] < best[-1][1]):
            best.append((row["bits_per_parameter"], row[measure]))
    return best


def at_size(rows, measure, bits):
    """The loss of the frontier at a size: between its rows, on a straight line in the logarithm; above them, that of
    the last; below them, None.
    """
    best = frontier(rows, measure)
    for (x0, y0), (x1, y1) in zip(best, best[1:]):
        if x0 <= bits <= x1:
            return math.exp(math.log(y0) + (bits - x0) / (x1 - x0) * math.log(y1 / y0))
    return best[-1][1] if bits > best[-1][0] else None


def versions(by_engine, head):
    """One line that says which programs made the rows."""
    names = sorted({row["version"] for rows in by_engine.values() for row in rows})
    return f"Made by: {'; '.join(names)} ({head['machine']})."
