"""What a drawing of the shapes says, counts and colours; and every stroke of a few, as drawings.yml has them.

`python tests/test_diagrams.py` writes that file again: look at the drawings that changed, and read the diff.
"""

from functools import cache
from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from strategies import examples, specs

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from lstm_utils import LSTMSpec, diagrams
from lstm_utils.diagrams import CELL, COLORS, MOST, draw_shapes, shape_letters
from lstm_utils.plotting import use_style

PLAIN = LSTMSpec(5, 6)
BOTH = LSTMSpec(5, 6, num_layers=2, bidirectional=True, proj_size=4)
LARGEST = LSTMSpec(8, 8, num_layers=3, bidirectional=True, batch_first=True)
CALLS = [(PLAIN, 1, None), (PLAIN, 1, 1), (BOTH, 7, 3), (BOTH, 2, None), (LARGEST, 9, 4), (LSTMSpec(1, 2, 3), 4, 2)]


@cache  # a large drawing takes a second
def drawn(spec, seq_len, batch_size):
    with plt.rc_context():
        use_style()
        figure = draw_shapes(spec, seq_len, batch_size)
        figure.canvas.draw()
    plt.close(figure)
    return figure


def value(letters, sizes):
    """The number that ``D·L`` stands for."""
    product = 1
    for letter in letters.split("·"):
        product *= sizes[letter]
    return product


@examples["many"]
@given(spec=specs(), seq_len=st.integers(1, 9), batch_size=st.one_of(st.none(), st.integers(1, 9)))
def test_letters_stand_for_the_shapes(spec, seq_len, batch_size):
    sizes = {"T": seq_len, "N": batch_size, "I": spec.input_size, "H": spec.hidden_size, "P": spec.proj_size}
    sizes |= {"D": spec.num_directions, "L": spec.num_layers}
    numbers = {
        tensor: tuple(value(letter, sizes) for letter in letters)
        for tensor, letters in shape_letters(spec, batched=batch_size is not None).items()
    }
    assert numbers == spec.shapes(seq_len, batch_size)._asdict()


def test_letters_as_the_book_writes_them():
    assert shape_letters(PLAIN) == {
        "input": ("T", "N", "I"), "output": ("T", "N", "H"), "h_n": ("L", "N", "H"), "c_n": ("L", "N", "H")
    }  # fmt: skip
    assert shape_letters(BOTH, batched=False) == {
        "input": ("T", "I"), "output": ("T", "D·P"), "h_n": ("D·L", "P"), "c_n": ("D·L", "H")
    }  # fmt: skip
    assert shape_letters(LARGEST)["output"] == ("N", "T", "D·H")


def texts(figure):
    return [text for text in figure.axes[0].texts if text.get_text()]


def sheets(figure, colors=None):
    """The (features, colour) of every sheet, of the given colours if any."""
    found = [
        (round(patch.get_height() / CELL), to_hex(patch.get_facecolor()).upper())
        for patch in figure.axes[0].patches
        if type(patch) is Rectangle
    ]
    return [sheet for sheet in found if colors is None or sheet[1] in colors]


@pytest.mark.parametrize(("spec", "seq_len", "batch_size"), CALLS)
def test_every_tensor_is_named_with_its_shape(spec, seq_len, batch_size):
    written = [text.get_text() for text in texts(drawn(spec, seq_len, batch_size))]
    batched = batch_size is not None
    for tensor, shape in spec.shapes(seq_len, batch_size)._asdict().items():
        letters = shape_letters(spec, batched)[tensor]
        assert {tensor, f"({', '.join(letters)})", str(shape), f"{letters[-1]} = {shape[-1]}"} <= set(written)
    rows = spec.num_layers * spec.num_directions
    assert [text for text in written if text.startswith("h_n[")] == [f"h_n[{row}]" for row in range(rows)]
    assert f"T = {seq_len}" in written
    assert (f"N = {batch_size}" in written, "a sheet: one sample" in written) == (batched, batched)
    last = "output[:, -1]" if batched and spec.batch_first else "output[-1]"
    assert last in written


@pytest.mark.parametrize(("spec", "seq_len", "batch_size"), CALLS)
def test_every_number_of_a_tensor_is_drawn(spec, seq_len, batch_size):
    figure, samples, rows = drawn(spec, seq_len, batch_size), batch_size or 1, spec.num_layers * spec.num_directions
    input_sheets = sheets(figure, {to_hex("0.92").upper()})
    assert input_sheets == [(spec.input_size, input_sheets[0][1])] * seq_len * samples
    states = sheets(figure, {color for pair in COLORS.values() for color in pair})
    numbers = sum(features for features, _ in states)
    in_rows = rows * seq_len * spec.hidden_width  # the hidden states of every layer and direction
    shapes = spec.shapes(seq_len, samples)
    output, h_n, c_n = (shape[0] * shape[1] * shape[2] for shape in shapes[1:])
    assert numbers == samples * in_rows + output + h_n + c_n


@pytest.mark.parametrize(("spec", "seq_len", "batch_size"), CALLS)
def test_full_colour_marks_the_final_states_and_their_copies(spec, seq_len, batch_size):
    figure = drawn(spec, seq_len, batch_size)
    for way in tuple(COLORS)[: spec.num_directions]:
        # Once in its row, in h_n and in c_n for each layer, and once in the output for the last layer.
        assert len(sheets(figure, {COLORS[way][1]})) == (batch_size or 1) * (3 * spec.num_layers + 1)


def test_the_reverse_direction_ends_at_the_first_step():
    figure = drawn(LSTMSpec(2, 3, bidirectional=True), 5, None)
    full = [patch for patch in figure.axes[0].patches if to_hex(patch.get_facecolor()).upper() == COLORS["reverse"][1]]
    in_sequences = sorted(patch.get_x() for patch in full)[:2]  # in its row and in the output
    assert in_sequences == [0, 0]


@pytest.mark.parametrize(("spec", "seq_len", "batch_size"), CALLS)
def test_no_label_touches_another_or_leaves_the_page(spec, seq_len, batch_size):
    figure = drawn(spec, seq_len, batch_size)
    boxes = {text: text.get_window_extent() for text in texts(figure)}
    for (one, box), (other, second) in combinations(boxes.items(), 2):
        assert not box.overlaps(second), (one, other)
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes.values())
    assert figure.get_figwidth() == 7.6


@pytest.mark.parametrize(("call", "fills"), [((LARGEST, 9, 4), True), ((BOTH, 9, 1), True), ((PLAIN, 2, 2), False)])
def test_a_wide_drawing_fills_the_page_to_its_margins_and_a_small_one_has_large_sheets(call, fills):
    (axis,) = drawn.__wrapped__(*call).axes  # mutmut asks the test that draws, and not those that look it up
    left, right = axis.get_xlim()
    inch = (right - left) / diagrams.PAGE
    last = max(patch.get_x() + patch.get_width() for patch in axis.patches if type(patch) is Rectangle)
    assert -left / inch == pytest.approx(diagrams.LEFT)
    if fills:
        assert (right - last) / inch == pytest.approx(diagrams.RIGHT)
        assert 1 / inch < diagrams.LARGEST
    else:
        assert (right - last) / inch > diagrams.RIGHT
        assert 1 / inch == pytest.approx(diagrams.LARGEST)


@pytest.mark.parametrize(
    ("name", "value"), [*((name, most + 1) for name, most in MOST.items()), ("seq_len", 0), ("batch_size", 0)]
)
def test_what_cannot_be_drawn_is_refused(name, value):
    sizes = {"input_size": 2, "hidden_size": 2, "num_layers": 1, "seq_len": 2, "batch_size": 2} | {name: value}
    seq_len, batch_size = sizes.pop("seq_len"), sizes.pop("batch_size")
    message = f"{name} must be from 1 to {MOST[name]} to be drawn one by one, got {value}"
    with pytest.raises(ValueError, match=message):
        draw_shapes(LSTMSpec(**sizes), seq_len, batch_size)


# Every stroke --------------------------------------------------------------------------------------------------------

DRAWINGS = Path(__file__).with_name("drawings.yml")
STORED = {
    "two directions, two layers, a projection": (LSTMSpec(3, 4, num_layers=2, bidirectional=True, proj_size=2), 3, 2),
    "batch first": (LSTMSpec(1, 2, batch_first=True), 2, 3),
    "one step, unbatched": (LSTMSpec(2, 1, bidirectional=True), 1, None),
}


def rounded(*numbers):
    return " ".join(f"{number:.3f}" for number in numbers)


def strokes(figure):
    """A line for each thing on the page: what it is, where it lies, and how it looks."""
    (axis,) = figure.axes
    page = rounded(*figure.get_size_inches(), *axis.get_xlim(), *axis.get_ylim(), axis.get_aspect())
    yield f"page {page} {'with axes' if axis.axison else 'without axes'}"
    for text in axis.texts:
        look = rounded(*text.get_position(), text.get_fontsize())
        font = f"{text.get_ha()} {text.get_va()} {text.get_fontweight()} {text.get_family()[0]}"
        yield f"text {text.get_text()!r} {look} {font} {text.get_color()}"
        if arrow := getattr(text, "arrow_patch", None):
            where = rounded(*text.xy, arrow.get_linewidth(), arrow.get_mutation_scale(), arrow.shrinkA, arrow.shrinkB)
            head = f"{type(arrow.get_arrowstyle()).__name__} {to_hex(arrow.get_edgecolor())}"
            yield f"arrow to {where} {head} {text.zorder}"
    for patch in axis.patches:
        box = rounded(patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height(), patch.get_linewidth())
        colors = f"{to_hex(patch.get_facecolor())} {to_hex(patch.get_edgecolor())} {patch.zorder}"
        round_style = getattr(patch, "get_boxstyle", lambda: None)()
        corners = rounded(round_style.pad, round_style.rounding_size) if round_style else ""
        yield f"{type(patch).__name__} {box} {colors} {corners}".rstrip()
    for line in axis.lines:
        points = rounded(*line.get_xydata().flatten(), line.get_linewidth(), line.get_markersize())
        yield f"line {points} {to_hex(line.get_color())} {line.zorder} {line.get_marker()} {line.get_solid_joinstyle()}"


@pytest.mark.parametrize("name", STORED)
def test_every_stroke_is_where_it_was(name):
    assert list(strokes(drawn(*STORED[name]))) == yaml.safe_load(DRAWINGS.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    every = {name: list(strokes(drawn(*call))) for name, call in STORED.items()}
    DRAWINGS.write_text(yaml.safe_dump(every, allow_unicode=True, sort_keys=False, width=200), encoding="utf-8")
