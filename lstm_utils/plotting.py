"""The book's look, and the plumbing of figures that more than one chapter draws. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

GATES = ("i", "f", "g", "o")
GATE_NAMES = {"i": "input gate", "f": "forget gate", "g": "candidate", "o": "output gate"}
# One colour a gate, the same in every chapter (Okabe and Ito, distinguishable by colour-blind readers).
GATE_COLORS = {"i": "#0072B2", "f": "#D55E00", "g": "#009E73", "o": "#CC79A7"}


def use_style() -> None:
    """Switch matplotlib to the book's style sheet."""
    plt.style.use(str(files("lstm_utils").joinpath("measured.mplstyle")))


def plot_gates(rows: Mapping[str, np.ndarray], labels: Sequence[str], title: str) -> Figure:
    """One heat map a quantity over a sequence: units downwards, steps to the right.

    Args:
        rows: "i", "f", "o" (from 0 to 1, in the gate's colour) or any other name (symmetric about 0) → values
            (units, steps).
        labels: what the sequence shows at each step, a tick label each.
        title: what the figure says.

    Raises:
        ValueError: a quantity does not have one column per label.
    """
    for name, values in rows.items():
        if values.shape[-1] != len(labels):
            raise ValueError(f"{name} has {values.shape[-1]} steps, and there are {len(labels)} labels")
    figure, axes = plt.subplots(len(rows), 1, sharex=True, squeeze=False, figsize=(7.6, 0.6 + 1.15 * len(rows)))
    for axis, (name, values) in zip(axes[:, 0], rows.items(), strict=True):
        if name in ("i", "f", "o"):
            colors: Colormap | str = LinearSegmentedColormap.from_list(name, ["white", GATE_COLORS[name]])
            low, high = 0.0, 1.0
        else:
            colors, high = "RdBu_r", float(np.abs(values).max())
            low = -high
        image = axis.imshow(values, aspect="auto", interpolation="none", cmap=colors, vmin=low, vmax=high)
        axis.set(ylabel=GATE_NAMES.get(name, name), yticks=[])
        axis.grid(visible=False)
        figure.colorbar(image, ax=axis, pad=0.01, ticks=[low, high], format="%.0f")
    axes[-1, 0].set_xticks(range(len(labels)), labels, family="monospace")
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
