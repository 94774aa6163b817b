"""The book's look, and the plumbing of figures that more than one chapter draws. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
        ValueError: a quantity, or ``shaded``, does not have one value for each label.
    """
    steps = np.arange(len(labels))
    for name, values in [("shaded", shaded), *(item for series in panels.values() for item in series.items())]:
        if (shape := np.asarray(values).shape) != steps.shape:
            raise ValueError(f"{name} has the shape {shape}, and there are {len(labels)} labels")
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
        ValueError: ``runs`` is not (seeds, points).
    """
    if runs.ndim != 2 or runs.shape[1] != len(x):
        raise ValueError(f"runs must be (seeds, {len(x)}), got {runs.shape}")
    (line,) = axis.plot(x, np.median(runs, axis=0), label=label, **style)  # type: ignore[arg-type]
    axis.plot(np.tile(x, (len(runs), 1)).T, runs.T, "o", color=line.get_color(), alpha=0.35, markersize=4)
