import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from lstm_utils.plotting import GATE_COLORS, GATES, plot_seeds, plot_traces, use_style


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


def test_traces_share_their_steps_and_gates_have_their_own_color():
    panels = {"gates": {"f": np.full(4, 0.25), "i": np.ones(4)}, "memory": {"cell state": np.arange(4.0)}}
    figure = plot_traces(panels, list("abcd"), [False, True, False, True], "a title")
    gates, memory = figure.axes
    assert [line.get_color() for line in gates.lines] == [GATE_COLORS["f"], GATE_COLORS["i"]]
    assert [text.get_text() for text in gates.get_legend().get_texts()] == ["forget gate", "input gate"]
    assert gates.get_ylim() == (-0.03, 1.03)
    assert memory.get_ylim() != (-0.03, 1.03)
    assert list(memory.lines[0].get_ydata()) == [0, 1, 2, 3]
    assert [axis.get_ylabel() for axis in figure.axes] == ["gates", "memory"]
    assert [text.get_text() for text in memory.get_xticklabels()] == list("abcd")
    assert [len(axis.patches) for axis in figure.axes] == [2, 2]
    assert gates.patches[0].get_x() == 0.5
    assert gates.get_title(loc="left") == "a title"


@pytest.mark.parametrize(
    ("values", "shaded", "name"), [(np.zeros(4), [False] * 3, "f"), (np.zeros(3), [True], "shaded")]
)
def test_traces_need_a_value_for_each_label(values, shaded, name):
    with pytest.raises(ValueError, match=rf"{name} has the shape .* there are 3 labels"):
        plot_traces({"": {"f": values}}, list("abc"), shaded, "")


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
