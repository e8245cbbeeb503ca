"""docs/quality.svg, drawn by hand: size against loss, one panel a measure."""

import math
from html import escape

from results import LLAMA, SQUISH, frontier

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP, BOTTOM = 920, 330, 84, 24, 84, 62, 56
MEASURES = [("nats_lost", "loss above bf16, nats per token"), ("kl", "KL(bf16 || quantised), nats per token")]
LABEL_HEIGHT = 13
# Losses below this are drawn on the axis, as triangles: they are within the noise of the text.
FLOOR = 0.002

STYLE = """
    text { font: 12px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #24292f }
    .title { font-size: 16px; font-weight: 600 } .tick, .note { fill: #57606a }
    .paper { fill: #ffffff } .grid { stroke: #d8dee4; stroke-width: 1 } .axis { stroke: #57606a; stroke-width: 1 }
    .squish { fill: #0969da } .llama { fill: #bc4c00 } .label { font-size: 11.5px }
    .line { fill: none; stroke-width: 1.5; stroke-opacity: 0.55 } .leader { stroke-width: 0.75 }
    .squish-line { stroke: #0969da } .llama-line { stroke: #bc4c00 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .tick, .note { fill: #9198a1 }
      .paper { fill: #0d1117 } .grid { stroke: #2a313c } .axis { stroke: #9198a1 }
      .squish { fill: #58a6ff } .llama { fill: #f0883e }
      .squish-line { stroke: #58a6ff } .llama-line { stroke: #f0883e }
    }
"""


class Scales:
    """From bits and loss to points of one panel."""

    def __init__(self, rows, measure, top):
        bits = [row["bits_per_parameter"] for row in rows]
        losses = [max(row[measure], FLOOR) for row in rows]
        self.x0, self.x1 = math.floor(min(bits) * 2 - 0.2) / 2, math.ceil(max(bits) * 2 + 0.2) / 2
        self.y0, self.y1 = math.log10(min(losses)) - 0.12, math.log10(max(losses)) + 0.15
        self.top, self.bottom = top, top + PANEL

    def x(self, bits):
        return LEFT + (bits - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, loss):
        share = (math.log10(max(loss, FLOOR)) - self.y0) / (self.y1 - self.y0)
        return self.bottom - share * PANEL

    def ticks_x(self):
        count = round((self.x1 - self.x0) * 2)
        return [self.x0 + i / 2 for i in range(count + 1)]

    def ticks_y(self):
        values = [m * 10.0**e for e in range(-4, 2) for m in (1, 2, 5)]
        return [v for v in values if self.y0 <= math.log10(v) <= self.y1]


def css(row):
    return "squish" if row["engine"] == SQUISH else "llama"


def marker(x, y, kind, clipped=False):
    """A square for Squish, a circle for llama.cpp, a triangle on the axis for what lies below it."""
    if clipped:
        return f'<path class="{kind}" d="M{x - 5:.1f},{y - 4:.1f} h10 l-5,8 z"/>'
    if kind == "squish":
        return f'<rect class="{kind}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.3"/>'


def text_width(text):
    """Of a label in pixels, roughly, and rather too much than too little."""
    return sum(9.8 if c == "M" else 3.6 if c in " .I" else 8.4 if c.isupper() else 6.6 for c in text)


def overlap(a, b):
    """Area that two boxes (x0, y0, x1, y1) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def places(x, y, width):
    """Boxes that a label of the point may take, the best first."""
    h = LABEL_HEIGHT
    for distance in (8, 16, 26, 38, 52):
        d = distance * 0.75
        near = [(x + distance, y - h / 2), (x - distance - width, y - h / 2)]
        near += [(x - width / 2, y - d - h), (x - width / 2, y + d)]
        corners = [(x + d, y - d - h), (x + d, y + d), (x - d - width, y - d - h), (x - d - width, y + d)]
        for left, top in near + corners:
            yield distance, (left, top, left + width, top + h)


def place_labels(points, lines, frame):
    """One box a point: the first place that is free of markers, lines and other labels, or the least bad one."""
    obstacles = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]
    for (xa, ya), (xb, yb) in lines:
        steps = max(1, round(math.hypot(xb - xa, yb - ya) / 4))
        for i in range(steps + 1):
            x, y = xa + (xb - xa) * i / steps, ya + (yb - ya) * i / steps
            obstacles.append((x - 1.5, y - 1.5, x + 1.5, y + 1.5))
    boxes = []
    for x, y, text in points:
        def cost(choice):
            distance, box = choice
            outside = (box[2] - box[0]) * LABEL_HEIGHT - overlap(box, frame)
            return 20 * outside + 3 * distance + sum(10 * overlap(box, other) for other in obstacles)

        _, box = min(places(x, y, text_width(text)), key=cost)
        boxes.append(box)
        obstacles.append(box)
    return boxes


def label(x, y, box, text, kind):
    """The text in its box, with a thin line to the point where it lies far away."""
    nearest = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
    far = math.hypot(nearest[0] - x, nearest[1] - y) > 13
    leader = f'<path class="{kind}-line line leader" d="M{x:.1f},{y:.1f} L{nearest[0]:.1f},{nearest[1]:.1f}"/>' if far else ""
    x, y = (box[0] + box[2]) / 2, box[3] - 3
    return leader + f'<text class="{kind} label" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def panel(rows, measure, title, top):
    """One panel: grid, axes, the frontier of each engine, markers and labels."""
    scales, out = Scales(rows, measure, top), []
    for value in scales.ticks_y():
        y = scales.y(value)
        out.append(f'<path class="grid" d="M{LEFT},{y:.1f} H{WIDTH - RIGHT}"/>')
        out.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in scales.ticks_x():
        x = scales.x(value)
        out.append(f'<path class="grid" d="M{x:.1f},{top} V{scales.bottom}"/>')
        out.append(f'<text class="tick" x="{x:.1f}" y="{scales.bottom + 18}" text-anchor="middle">{value:g}</text>')
    out.append(f'<path class="axis" fill="none" d="M{LEFT},{top} V{scales.bottom} H{WIDTH - RIGHT}"/>')
    middle = top + PANEL / 2
    turned = f'transform="rotate(-90 22 {middle})"'
    out.append(f'<text x="22" y="{middle}" text-anchor="middle" {turned}>{escape(title)}</text>')

    lines = []
    for engine, kind in ((LLAMA, "llama"), (SQUISH, "squish")):
        best = frontier([row for row in rows if row["engine"] == engine], measure)
        path = [(scales.x(bits), scales.y(loss)) for bits, loss in best]
        lines += zip(path, path[1:])
        if len(path) > 1:
            d = " L".join(f"{x:.1f},{y:.1f}" for x, y in path)
            out.append(f'<path class="{kind}-line line" d="M{d}"/>')
    points = [(scales.x(r["bits_per_parameter"]), scales.y(r[measure]), r["format"]) for r in rows]
    frame = (LEFT + 2, top + 2, WIDTH - RIGHT - 2, scales.bottom - 2)
    for row, (x, y, text), box in zip(rows, points, place_labels(points, lines, frame)):
        out.append(marker(x, y, css(row), row[measure] < FLOOR))
        out.append(label(x, y, box, text, css(row)))
    return out


def legend(rows):
    """A marker and a name for each engine that has rows."""
    out, x = [], LEFT
    names = {LLAMA: "llama.cpp (importance matrix, Q4_0 without)", SQUISH: "Squish"}
    for engine in (SQUISH, LLAMA):
        if any(row["engine"] == engine for row in rows):
            kind = "squish" if engine == SQUISH else "llama"
            out.append(marker(x + 5, 60, kind))
            out.append(f'<text x="{x + 16}" y="64">{escape(names[engine])}</text>')
            x += 40 + text_width(names[engine])
    note = "lines: the best of each engine"
    if any(row[measure] < FLOOR for row in rows for measure, _ in MEASURES):
        note += f"; triangles: below {FLOOR}"
    out.append(f'<text class="note" x="{WIDTH - RIGHT}" y="64" text-anchor="end">{note}</text>')
    return out


def draw(by_engine, head):
    """The whole picture as SVG text."""
    rows = by_engine[SQUISH] + by_engine[LLAMA]
    height = TOP + len(MEASURES) * PANEL + (len(MEASURES) - 1) * GAP + BOTTOM
    parameters = by_engine[LLAMA][0]["parameters"] / 1e6
    title = f"Size against loss: {head['model']}, {parameters:.1f} M parameters"
    where = f"wikitext-2 test, {head['windows']} windows of {head['window']:,} tokens; log scale; lower left is better"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
        f'<text class="title" x="{LEFT}" y="26">{escape(title)}</text>',
        f'<text class="note" x="{LEFT}" y="44">{escape(where)}</text>',
        *legend(rows),
    ]
    for i, (measure, name) in enumerate(MEASURES):
        out += panel(rows, measure, name, TOP + i * (PANEL + GAP))
    unit = "bits per parameter, all weights of the model counted"
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 14}" text-anchor="middle">{unit}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"
