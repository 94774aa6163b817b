import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

from lstm_utils.plotting import GATE_COLORS, GATES, plot_gates, plot_seeds, use_style


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        use_style()
        yield
    plt.close("all")


def test_the_style_is_the_book_s():
    assert plt.rcParams["axes.titleweight"] == "bold"
    assert not plt.rcParams["axes.spines.top"]
    assert tuple(GATE_COLORS) == GATES


def test_gates_have_their_own_color_and_a_fixed_scale():
    rows = {"f": np.full((3, 4), 0.25), "cell state c": np.array([[-2.0, 1.0, 0.5, 0.0]] * 3)}
    figure = plot_gates(rows, list("abcd"), "a title")
    gate, cell = (axis.images[0] for axis in figure.axes[:2])
    assert gate.get_clim() == (0, 1)
    assert to_hex(gate.get_cmap()(1.0)).upper() == GATE_COLORS["f"]
    assert cell.get_clim() == (-2, 2)
    assert figure.axes[0].get_title(loc="left") == "a title"
    assert [figure.axes[0].get_ylabel(), figure.axes[1].get_ylabel()] == ["forget gate", "cell state c"]
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == list("abcd")


def test_gates_need_a_label_a_step():
    with pytest.raises(ValueError, match="f has 4 steps, and there are 3 labels"):
        plot_gates({"f": np.zeros((2, 4))}, list("abc"), "")


def test_seeds_are_dots_and_their_median_a_line():
    _, axis = plt.subplots()
    plot_seeds(axis, [1, 2], np.array([[1.0, 4.0], [3.0, 6.0], [2.0, 8.0]]), "runs")
    median, *dots = axis.lines
    assert list(median.get_ydata()) == [2.0, 6.0]
    assert median.get_label() == "runs"
    assert sorted(tuple(line.get_ydata()) for line in dots) == [(1.0, 4.0), (2.0, 8.0), (3.0, 6.0)]
    assert {line.get_color() for line in dots} == {median.get_color()}


@pytest.mark.parametrize("shape", [(2,), (3, 1)])
def test_seeds_must_match_the_positions(shape):
    _, axis = plt.subplots()
    with pytest.raises(ValueError, match=r"runs must be \(seeds, 2\)"):
        plot_seeds(axis, [1, 2], np.zeros(shape), "")
