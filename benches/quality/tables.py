"""The Markdown tables of docs/quality.md."""

from results import LLAMA, SQUISH, at_size

HEAD = ["", "bits", "linears", "nats", "lost", "KL", "KL p99", "top-1"]

AGAINST = """\
At the same size: llama.cpp's loss at the bits of each row is read off the lines of the picture, which join the types than
which no smaller one loses less. Above the last of them, its loss counts; rows smaller than all of them are left out."""


def markdown(head, rows):
    """A table: the first column left, the others right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)] + rows
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured(row):
    """The cells of one measured row."""
    lost = f"{row['nats_lost']:.4f}"
    if "nats_lost_se" in row:
        lost += f" ± {row['nats_lost_se']:.4f}"
    return [
        row["format"],
        f"{row['bits_per_parameter']:.2f}",
        f"{row['linear_bits']:.2f}",
        f"{row['nll']:.4f}",
        lost,
        f"{row['kl']:.4f}",
        f"{row['kl_p99']:.3f}",
        f"{100 * row['top1']:.1f} %",
    ]


def peers(by_engine):
    """llama.cpp's types: also the whole file's bits, and the loss with activations rounded to 8 bits."""
    rows = []
    for row in by_engine[LLAMA]:
        cells, as_run = measured(row), row["as_run"]
        cells.insert(2, f"{row['file_bits_per_parameter']:.2f}")
        rows.append(cells + [f"{as_run['nats_lost']:.4f}", f"{as_run['kl']:.4f}"])
    return markdown(["llama.cpp", "bits", "with header"] + HEAD[2:] + ["lost as run", "KL as run"], rows)


def ours(by_engine):
    """Squish's recipes; nothing where none was measured."""
    rows = [measured(row) for row in by_engine[SQUISH]]
    return markdown(["Squish"] + HEAD[1:], rows) if rows else ""


def against(by_engine):
    """Squish's loss over llama.cpp's at the same size; nothing where no sizes meet."""
    rows = []
    for row in by_engine[SQUISH]:
        bits = row["bits_per_parameter"]
        other = {m: at_size(by_engine[LLAMA], m, bits) for m in ("nats_lost", "kl")}
        if None in other.values():
            continue
        cells = [row["format"], f"{bits:.2f}"]
        for measure, loss in other.items():
            cells += [f"{row[measure]:.4f}", f"{loss:.4f}", f"{row[measure] / loss:.2f}"]
        rows.append(cells)
    head = ["Squish", "bits", "lost", "llama.cpp", "ratio", "KL", "llama.cpp", "ratio"]
    return f"{AGAINST}\n\n{markdown(head, rows)}" if rows else ""


def replace(document, name, text):
    """The document with what stands between the two comments of a name replaced."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"docs/quality.md: no pair of comments named {name}")
    return before + begin + (text + "\n" if text else "") + end + after
