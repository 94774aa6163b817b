import re

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


def test_a_step_is_drawn_around_its_label_and_its_band_as_wide():
    (axis,) = plot_traces({"": {"f": np.zeros(3)}}, list("abc"), [0, 1, 1], "").axes
    assert axis.lines[0].get_drawstyle() == "steps-mid"
    assert [(band.get_x(), band.get_width(), band.get_linewidth()) for band in axis.patches] == [
        (0.5, 1, 0),
        (1.5, 1, 0),
    ]
    assert len({*axis.patches[0].get_facecolor()[:3]}) == 1  # grey: a band is no gate
    assert [text.get_fontfamily() for text in axis.get_xticklabels()] == [["monospace"]] * 3


@pytest.mark.parametrize("grid", [True, False])
def test_bands_and_not_lines_set_steps_apart(grid):
    plt.rcParams["axes.grid"] = grid
    (axis,) = plot_traces({"": {"f": np.zeros(2)}}, list("ab"), [False, True], "").axes
    assert not any(line.get_visible() for line in axis.get_xgridlines())
    assert all(line.get_visible() == grid for line in axis.get_ygridlines())


@pytest.mark.parametrize(
    ("names", "labels", "full"),
    [
        ("ifo", ["input gate", "forget gate", "output gate"], True),
        ("o", ["output gate"], True),
        ("og", ["output gate", "candidate"], False),
        ("xyf", ["x", "y", "forget gate"], False),
    ],
)
def test_what_is_drawn_is_named_and_the_sigmoids_have_their_range(names, labels, full):
    (axis,) = plot_traces({"": {name: np.full(2, 0.5) for name in names}}, list("ab"), [False] * 2, "").axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == labels
    assert len({line.get_color() for line in axis.lines}) == len(names)
    assert (axis.get_ylim() == (-0.03, 1.03)) == full


def test_every_panel_has_its_height_and_the_same_steps():
    figures = [
        plot_traces({str(n): {"f": np.ones(2)} for n in range(count)}, "ab", [False] * 2, "") for count in (1, 2, 3)
    ]
    sizes = np.array([figure.get_size_inches() for figure in figures])
    assert np.diff(sizes, axis=0) == pytest.approx(np.array([[0, 1.35]] * 2))
    first, *others = figures[2].axes
    assert all(first.get_shared_x_axes().joined(first, other) for other in others)


def test_a_legend_stands_beside_its_panel():
    figure = plot_traces({"": {"f": np.ones(2)}}, "ab", [False] * 2, "")
    figure.canvas.draw()
    panel, legend = (one.get_window_extent() for one in (figure.axes[0], figure.axes[0].get_legend()))
    assert 0 <= legend.x0 - panel.x1 < 0.1 * panel.width
    assert legend.y0 + legend.y1 == pytest.approx(panel.y0 + panel.y1, abs=2)


@pytest.mark.parametrize(
    ("values", "shaded", "name"), [(np.zeros(4), [False] * 3, "f"), (np.zeros(3), [True], "shaded")]
)
def test_traces_need_a_value_for_each_label(values, shaded, name):
    with pytest.raises(
        ValueError, match=rf"^{name} has the shape .* there are 3 labels: (\[T|array).* for \['a', 'b', 'c'\]$"
    ):
        plot_traces({"": {"f": values}}, list("abc"), shaded, "")


@pytest.mark.parametrize(
    ("panels", "labels", "message"),
    [
        ({}, ["a"], r"^there must be a panel and a step, got {} and \['a'\]$"),
        ({"gates": {"f": np.ones(0)}}, [], r"^there must be a panel and a step, got {'gates': .*} and \[\]$"),
        (
            {"memory": dict.fromkeys("xfyz", np.ones(1))},
            ["a"],
            r"^the panel 'memory' has room for two quantities that are no gate, got \['x', 'y', 'z'\]$",
        ),
    ],
)
def test_what_has_no_room_is_refused(panels, labels, message):
    with pytest.raises(ValueError, match=message):
        plot_traces(panels, labels, [False] * len(labels), "")


def test_traces_are_numbers_of_mappings():
    with pytest.raises(TypeError, match=r"^f must hold real numbers, got <U1: array\(\['1', '2'\]"):
        plot_traces({"": {"f": np.array(["1", "2"])}}, "ab", [False] * 2, "")
    with pytest.raises(
        TypeError, match=r"^panels\['gates'\] must be a mapping of names to values, got \[1, 2\] of type"
    ):
        plot_traces({"gates": [1, 2]}, "ab", [False] * 2, "")


def test_seeds_are_dots_and_their_median_a_line():
    _, axis = plt.subplots()
    plot_seeds(axis, [1, 2], np.array([[1.0, 4.0], [3.0, 6.0], [2.0, 8.0]]), "runs")
    median, *dots = axis.lines
    assert list(median.get_ydata()) == [2.0, 6.0]
    assert median.get_label() == "runs"
    assert sorted(tuple(line.get_ydata()) for line in dots) == [(1.0, 4.0), (2.0, 8.0), (3.0, 6.0)]
    assert {line.get_color() for line in dots} == {median.get_color()}
    assert {(line.get_marker(), line.get_linestyle()) for line in dots} == {("o", "None")}
    assert all(line.get_alpha() < 1 for line in dots)  # dots upon each other are darker
    assert all(line.get_markersize() < plt.rcParams["lines.markersize"] for line in dots)
    assert {tuple(line.get_xdata()) for line in axis.lines} == {(1, 2)}


def test_the_median_has_the_style_that_was_asked_and_the_dots_its_color():
    _, axis = plt.subplots()
    plot_seeds(axis, [1, 2], np.ones((3, 2)), "runs", color="red", linestyle="--")
    median, *dots = axis.lines
    assert (median.get_color(), median.get_linestyle()) == ("red", "--")
    assert {(line.get_color(), line.get_linestyle()) for line in dots} == {("red", "None")}


@pytest.mark.parametrize(
    ("x", "shape"), [([1, 2], (2,)), ([1, 2], (3, 1)), ([1, 2], (3, 2, 1)), ([1, 2], (0, 2)), ([[1, 2]], (3, 1, 2))]
)
def test_seeds_must_match_the_positions(x, shape):
    _, axis = plt.subplots()
    with pytest.raises(ValueError, match="^" + re.escape(f"runs must be (seeds, 2), got {shape} for x {np.shape(x)}")):
        plot_seeds(axis, x, np.zeros(shape), "")


@pytest.mark.parametrize(
    ("x", "runs", "name"), [(["1", "2"], np.ones((3, 2)), "x"), ([1, 2], np.array([["1", "2"]]), "runs")]
)
def test_seeds_are_numbers(x, runs, name):
    _, axis = plt.subplots()
    with pytest.raises(TypeError, match=rf"^{name} must hold real numbers, got <U1: array\(\[.*'1', "):
        plot_seeds(axis, x, runs, "")
