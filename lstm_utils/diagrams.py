"""A picture of every tensor that goes into and comes out of an LSTM, drawn from its specification. Needs matplotlib."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from lstm_utils.arguments import require
from lstm_utils.spec import LSTMSpec

# A direction's colour: pale, and full for its final state. Okabe and Ito's, and none that a gate has.
COLORS = {"forward": ("#E3F2FB", "#56B4E9"), "reverse": ("#FCF1D9", "#E69F00")}
# Steps, samples and features are drawn one by one, so there must be few enough of each to count.
MOST = {"seq_len": 9, "batch_size": 4, "num_layers": 3, "input_size": 8, "hidden_size": 8}
INK = "0.2"

# Blocks are measured in the width of a sheet: a feature's height, how far the next sample lies behind, room for arrows.
CELL, BACK, STEP = 0.34, 0.2, 0.75
# What is as large as text is measured in inches: the page, the margins, the space before each state and below a row.
PAGE, LEFT, RIGHT, BEFORE, UNDER, GAP = 7.6, 1.72, 1.15, 0.58, 0.16, 0.24
LARGEST = 0.3  # inches a sheet may be wide


def shape_letters(spec: LSTMSpec, batched: bool = True) -> dict[str, tuple[str, ...]]:
    """``LSTMSpec.shapes`` in letters: ``{"input": ("T", "N", "I"), "output": ("T", "N", "D·H"), …}``.

    Args:
        spec: the arguments. With one direction D is left out; with a projection the width of h is P.
        batched: whether there is a batch dimension.

    Returns:
        the names input, output, h_n and c_n, each with a letter (or a product) for each dimension.
    """
    directions, width = ("D·" if spec.bidirectional else ""), ("P" if spec.proj_size else "H")
    batch = ("N",) if batched else ()
    lead = (*batch, "T") if spec.batch_first else ("T", *batch)
    rows = (f"{directions}L", *batch)
    return {"input": (*lead, "I"), "output": (*lead, directions + width), "h_n": (*rows, width), "c_n": (*rows, "H")}


def draw_shapes(spec: LSTMSpec, seq_len: int, batch_size: int | None = None) -> Figure:
    """Draw input, layers, output, h_n and c_n as blocks. Time runs to the right, data flow upwards.

    A block is one step: a sheet a sample, a cell a feature, to scale. In a layer's row it is the hidden state after
    that step. The final one has the full colour, and so have its copies in output and h_n, and the cell state in c_n.

    Args:
        spec: the arguments of the LSTM.
        seq_len: T, time steps.
        batch_size: N, or None for the unbatched, two-dimensional input.

    Raises:
        TypeError: ``spec`` is no :class:`~lstm_utils.spec.LSTMSpec`.
        ValueError: a size is no integer, too large to be drawn one by one (see ``MOST``), or too small.

    Source: the shapes of https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
    """
    require("spec", spec, LSTMSpec, "an LSTMSpec")
    sizes = spec.as_dict() | {"seq_len": seq_len, "batch_size": 1 if batch_size is None else batch_size}
    for name, most in MOST.items():
        if not isinstance(size := sizes[name], int) or isinstance(size, bool) or not 1 <= size <= most:
            raise ValueError(f"{name} must be from 1 to {most} to be drawn one by one, got {size!r}")
    return _Drawing(spec, seq_len, batch_size).figure


class _Drawing:
    """One picture: the places of all things, then the things, then the strokes that they are made of."""

    def __init__(self, spec: LSTMSpec, seq_len: int, batch_size: int | None) -> None:
        self.spec, self.sheets = spec, batch_size or 1
        self.letters = shape_letters(spec, batched=batch_size is not None)
        self.shapes = spec.shapes(seq_len, batch_size)._asdict()
        self.ways = tuple(COLORS)[: spec.num_directions]
        self.depth = (self.sheets - 1) * BACK
        block, pitch = 1 + self.depth, 1 + self.depth + STEP
        blocks = seq_len * pitch - STEP + 2 * block
        self.inch = max(blocks / (PAGE - LEFT - 2 * BEFORE - RIGHT), 1 / LARGEST)  # in widths of a sheet
        self.steps = [step * pitch for step in range(seq_len)]
        self.h_n = self.steps[-1] + block + BEFORE * self.inch
        self.c_n = self.h_n + block + BEFORE * self.inch
        self.row_height = CELL * spec.hidden_size + self.depth + (UNDER + 0.1) * self.inch
        self.band_height = self.row_height * spec.num_directions
        first = CELL * spec.input_size + self.depth + GAP * self.inch
        self.bands = [first + layer * (self.band_height + GAP * self.inch) for layer in range(spec.num_layers)]
        self.output = self.bands[-1] + self.band_height + GAP * self.inch
        self.top = self.output + CELL * self.shapes["output"][-1] + self.depth
        self.figure, self.axis = self.page()
        self.draw()

    def page(self) -> tuple[Figure, Axes]:
        """An empty page as wide as the text, and as high as the drawing then becomes."""
        left, bottom, top = -LEFT * self.inch, -0.35 * self.inch, self.top + 0.2 * self.inch
        figure, axis = plt.subplots(figsize=(PAGE, (top - bottom) / self.inch + 0.3))
        axis.set(xlim=(left, left + PAGE * self.inch), ylim=(bottom, top), aspect="equal")
        axis.axis("off")
        return figure, axis

    def draw(self) -> None:
        spec = self.spec
        self.sequence("input", 0, [[(spec.input_size, "0.92")] for _ in self.steps])
        for layer, bottom in enumerate(self.bands):
            self.layer(layer, bottom)
        halves = [[(spec.hidden_width, self.color(way, step)) for way in self.ways] for step in range(len(self.steps))]
        self.sequence("output", self.output, halves)
        starts = [CELL * spec.input_size + self.depth, *(band + self.band_height for band in self.bands)]
        for start, stop in zip(starts, [*self.bands, self.output], strict=True):
            for x in self.steps:
                self.arrow([(self.middle(x), start + 0.1), (self.middle(x), stop - 0.1)], "0.6", 1.1)
        self.counts()

    def color(self, way: str, step: int) -> str:
        """Full where a direction has read the whole sequence, pale elsewhere."""
        return COLORS[way][step == (len(self.steps) - 1 if way == "forward" else 0)]

    def middle(self, x: float) -> float:
        """The horizontal middle of the block that begins at x."""
        return x + (1 + self.depth) / 2

    # --- things

    def sequence(self, tensor: str, bottom: float, blocks: list[list[tuple[int, str]]]) -> None:
        """The input or the output: a block a step, beside its name and its last dimension."""
        for x, parts in zip(self.steps, blocks, strict=True):
            self.block(x, bottom, parts)
        height = CELL * self.shapes[tensor][-1]
        self.title(tensor, -(LEFT - 0.02) * self.inch, bottom + height / 2, ha="left")
        self.bracket(-0.1 * self.inch, bottom, height, self.size(tensor, -1), side=-1)

    def layer(self, layer: int, bottom: float) -> None:
        """A band with a row for each direction, and beside it the rows of h_n and c_n that its final states become."""
        corner, width = (-0.19 * self.inch, bottom), self.steps[-1] + 1 + self.depth + 0.33 * self.inch
        shape = FancyBboxPatch(corner, width, self.band_height, boxstyle="round,pad=0,rounding_size=0.3")
        shape.set(facecolor="0.965", edgecolor="0.8", linewidth=0.8, zorder=0)
        self.axis.add_patch(shape)
        name = -(LEFT - 0.02) * self.inch, bottom + self.band_height / 2
        self.text(*name, f"layer {layer}", ha="left", fontweight="bold")
        for direction, way in enumerate(self.ways):
            y, index = bottom + direction * self.row_height + UNDER * self.inch, layer * len(self.ways) + direction
            self.row(way, y)
            for tensor, x in (("h_n", self.h_n), ("c_n", self.c_n)):
                self.block(x, y, [(self.shapes[tensor][-1], COLORS[way][1])])
                self.code(self.middle(x), y - 0.09 * self.inch, f"{tensor}[{index}]")

    def row(self, way: str, y: float) -> None:
        """One direction of a layer: its hidden states, the order of reading, and the way of the final one to h_n."""
        middle, below, full = y + (CELL * self.spec.hidden_width + self.depth) / 2, y - 0.09 * self.inch, COLORS[way][1]
        for step, x in enumerate(self.steps):
            self.block(x, y, [(self.spec.hidden_width, self.color(way, step))])
        for x in self.steps[1:]:
            ends = [(x - STEP + 0.05, middle), (x - 0.05, middle)]
            self.arrow(ends if way == "forward" else ends[::-1], full, 1.5)
        turn, home = self.h_n - 0.3 * self.inch, (self.h_n - 0.06, middle)
        self.text(-0.24 * self.inch, middle, "forward →" if way == "forward" else "← reverse", ha="right")
        if way == "forward":
            self.arrow([(self.steps[-1] + 1 + self.depth, middle), home], full, 2.2)
        else:
            left = -0.1 * self.inch
            self.arrow([(0, middle), (left, middle), (left, below), (turn, below), (turn, middle), home], full, 2.2)

    def counts(self) -> None:
        """How many steps, samples, rows and features there are, and how to address the first and the last step."""
        end, batched = self.steps[-1] + 1, "N" in self.letters["input"]
        low, high = -0.12 * self.inch, -0.06 * self.inch
        self.axis.plot([0, 0, end, end], [high, low, low, high], color=INK, lw=0.9)
        self.text(end / 2, -0.24 * self.inch, self.size("input", self.letters["input"].index("T")))
        if batched:
            x, y = end + 0.06 * self.inch, -0.04 * self.inch
            self.axis.plot([x, x + self.depth], [y, y + self.depth], color=INK, lw=0.9, marker=(2, 0, 45), ms=6)
            self.text(x + self.depth + 0.08 * self.inch, y, self.size("h_n", 1), ha="left")
        every = ":, " if self.letters["output"][0] == "N" else ""
        ends = {"0": self.steps[0], "-1": self.steps[-1]} if end > self.inch else {"-1": self.steps[-1]}
        for index, x in ends.items():
            self.code(self.middle(x), self.top + 0.1 * self.inch, f"output[{every}{index}]")
        first, last = self.bands[0] + UNDER * self.inch, self.bands[-1] + self.band_height - 0.1 * self.inch
        for tensor, x in (("h_n", self.h_n), ("c_n", self.c_n)):
            height = CELL * self.shapes[tensor][-1]
            bottom = last - self.depth - CELL * self.spec.hidden_size
            self.bracket(x + 1 + self.depth + 0.07 * self.inch, bottom, height, self.size(tensor, -1), side=1)
            self.title(tensor, self.middle(x), last + 0.3 * self.inch)
        x = self.c_n + 1 + self.depth + 0.6 * self.inch
        self.bracket(x, first, last - self.depth - first, self.size("h_n", 0), side=1)
        key = ["a cell: one feature", "full colour: final state"]
        for line, text in enumerate((["a sheet: one sample"] if batched else []) + key):
            self.text(
                self.h_n + 0.1 * self.inch, first - (0.3 + 0.17 * line) * self.inch, text, ha="left", color="0.35"
            )

    # --- strokes

    def size(self, tensor: str, dimension: int) -> str:
        """A dimension in letters and as a number: ``D·P = 8``."""
        return f"{self.letters[tensor][dimension]} = {self.shapes[tensor][dimension]}"

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        defaults: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8.5}
        self.axis.text(x, y, text, **(defaults | style))

    def code(self, x: float, y: float, text: str) -> None:
        self.text(x, y, text, family="monospace", fontsize=8)

    def title(self, tensor: str, x: float, y: float, **style: Any) -> None:
        """A tensor's name, above its shape in letters and in numbers."""
        self.text(x, y + 0.19 * self.inch, tensor, fontweight="bold", fontsize=10, **style)
        self.text(x, y, f"({', '.join(self.letters[tensor])})", **style)
        self.text(x, y - 0.165 * self.inch, str(self.shapes[tensor]), color="0.4", **style)

    def block(self, x: float, y: float, parts: list[tuple[int, str]]) -> None:
        """One step of all samples, the first in front. Parts are (features, colour), from the bottom up."""
        for sheet in reversed(range(self.sheets)):
            bottom = y + sheet * BACK
            for features, color in parts:
                shape = Rectangle(
                    (x + sheet * BACK, bottom), 1, features * CELL, facecolor=color, edgecolor=INK, lw=0.7
                )
                shape.set_zorder(3)
                self.axis.add_patch(shape)
                bottom += features * CELL
        for feature in range(1, sum(features for features, _ in parts)):
            self.axis.plot([x, x + 1], [y + feature * CELL] * 2, color=INK, lw=0.35, zorder=3)

    def arrow(self, points: list[tuple[float, float]], color: str, width: float) -> None:
        """A line through the points, with a head at its end."""
        (x, y), (x_end, y_end) = points[-2:]
        tail = x_end - 0.04 * (x_end - x), y_end - 0.04 * (y_end - y)  # the head hides the end of the line
        self.axis.plot(*zip(*points[:-1], tail, strict=True), color=color, lw=width, solid_joinstyle="round", zorder=2)
        head = {"arrowstyle": "-|>", "color": color, "lw": width, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
        self.axis.annotate("", xy=points[-1], xytext=tail, arrowprops=head, zorder=2)

    def bracket(self, x: float, y: float, height: float, label: str, side: int) -> None:
        """A dimension line along a height, its label to the left (-1) or to the right (1)."""
        tick = x - side * 0.05 * self.inch
        self.axis.plot([tick, x, x, tick], [y, y, y + height, y + height], color=INK, lw=0.9)
        self.text(x + side * 0.06 * self.inch, y + height / 2, label, ha="right" if side < 0 else "left")
