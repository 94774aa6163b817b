"""The book's look, and the plumbing of figures that more than one chapter draws. Needs matplotlib."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lstm_utils.arguments import require

GATES = ("i", "f", "g", "o")
GATE_NAMES = {"i": "input gate", "f": "forget gate", "g": "candidate", "o": "output gate"}
# One colour a gate, the same in every chapter (Okabe and Ito, distinguishable by colour-blind readers).
GATE_COLORS = {"i": "#0072B2", "f": "#D55E00", "g": "#009E73", "o": "#CC79A7"}


def use_style() -> None:
    """Switch matplotlib to the book's style sheet."""
    plt.style.use(str(files("lstm_utils").joinpath("measured.mplstyle")))


def plot_traces(
    panels: Mapping[str, Mapping[str, np.ndarray]], labels: Sequence[str], shaded: Sequence[bool], title: str
) -> Figure:
    """Quantities over a sequence, one panel below the other, all on the same steps.

    Args:
        panels: label of the panel's axis → name → values (T,). The names i, f, g and o are drawn in the gate's color,
            and a panel of gates alone runs from 0 to 1; a panel holds at most two others.
        labels: what the sequence shows at each step, a tick label for each.
        shaded: steps to set off by a grey band.
        title: what the figure says.

    Raises:
        TypeError: ``panels``, or one of them, is no mapping, or another argument has another type.
        ValueError: there is no panel or no label; a quantity, or ``shaded``, does not have one value for each label; or
            a panel has more than two quantities that are no gate.
    """
    require("panels", panels, Mapping, "a mapping of panels")
    require("labels", labels, Sequence, "a text for each step")
    require("title", title, str, "a text")
    if not panels or not labels:
        raise ValueError(f"there must be a panel and a step, got {panels!r} and {labels!r}")
    for panel, series in panels.items():
        require(f"panels[{panel!r}]", series, Mapping, "a mapping of names to values")
        if len(others := [name for name in series if name not in GATES]) > 2:
            raise ValueError(f"the panel {panel!r} has room for two quantities that are no gate, got {others}")
    steps = np.arange(len(labels))
    for name, values in [("shaded", shaded), *(item for series in panels.values() for item in series.items())]:
        if (shape := np.asarray(values).shape) != steps.shape:
            got = f"{reprlib.repr(values)} for {reprlib.repr(labels)}"
            raise ValueError(f"{name} has the shape {shape}, and there are {len(labels)} labels: {got}")
        if np.asarray(values).dtype.kind not in "biuf":
            raise TypeError(f"{name} must hold real numbers, got {np.asarray(values).dtype}: {reprlib.repr(values)}")
    figure, axes = plt.subplots(len(panels), 1, sharex=True, squeeze=False, figsize=(7.6, 0.9 + 1.35 * len(panels)))
    for axis, (label, series) in zip(axes[:, 0], panels.items(), strict=True):
        for step in steps[np.asarray(shaded, dtype=bool)]:
            axis.axvspan(step - 0.5, step + 0.5, color="0.88", linewidth=0)
        neutral = iter(("0.65", "0.1"))  # what is no gate has no gate's color
        for name, values in series.items():
            color = GATE_COLORS.get(name) or next(neutral)
            axis.step(steps, values, where="mid", color=color, label=GATE_NAMES.get(name, name))
        if set(series) <= {"i", "f", "o"}:
            axis.set(ylim=(-0.03, 1.03))
        axis.set(ylabel=label)
        axis.grid(visible=False, axis="x")
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1, 0].set_xticks(steps, labels, family="monospace")
    axes[0, 0].set_title(title)
    return figure


def plot_seeds(axis: Axes, x: Sequence[float], runs: np.ndarray, label: str, **style: object) -> None:
    """Every seed as a dot and their median as a line.

    Args:
        axis: where to draw.
        x: positions, (points,).
        runs: one row a seed, (seeds, points).
        label: for the legend.
        style: passed on to ``Axes.plot`` for the median.

    Raises:
        TypeError: ``axis`` is none of matplotlib's, ``x`` or ``runs`` hold no real numbers, or ``label`` is no text.
        ValueError: ``runs`` is not (seeds, points) with at least one seed.
    """
    require("axis", axis, Axes, "the Axes to draw on")
    require("x", x, Sequence | np.ndarray | Tensor, "one number for each point")
    require("runs", runs, np.ndarray | Tensor, "an array, one row a seed")
    require("label", label, str, "a text")
    positions, values = np.asarray(x), np.asarray(runs)
    for name, array in (("x", positions), ("runs", values)):
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{name} must hold real numbers, got {array.dtype}: {reprlib.repr(array)}")
    if positions.ndim != 1 or values.shape[1:] != positions.shape or not len(values):
        raise ValueError(f"runs must be (seeds, {positions.size}), got {values.shape} for x {positions.shape}")
    (line,) = axis.plot(x, np.median(runs, axis=0), label=label, **style)  # type: ignore[arg-type]
    axis.plot(np.tile(x, (len(runs), 1)).T, runs.T, "o", color=line.get_color(), alpha=0.35, markersize=4)
