"""Chapter 8 and the record of the pitfalls say the same."""

import ast

import nbformat
import pytest
from checks import ROOT

from lstm_utils.pitfalls import pitfalls

CELLS = [
    cell
    for cell in nbformat.read(ROOT / "notebooks" / "08_error_gallery.ipynb", as_version=4).cells
    if cell.cell_type == "code"
]


def shown():
    """(pitfall, method) of every pitfall("Pnn").method(...) in the gallery."""
    for cell in CELLS:
        for node in ast.walk(ast.parse(cell.source)):
            called = node.value if isinstance(node, ast.Attribute) else None
            if isinstance(called, ast.Call) and ast.unparse(called.func) == "pitfall":
                yield ast.literal_eval(called.args[0]), node.attr


def displayed():
    """What the cells display, as plain text."""
    return "\n".join(output.data.get("text/plain", "") for cell in CELLS for output in cell.outputs if "data" in output)


def test_every_pitfall_is_executed_or_marked():
    executed = {name for name, method in shown() if method in ("expect", "happens")}
    marked = {name for name, method in shown() if method == "show"}
    unexecuted = {entry.id for entry in pitfalls().values() if entry.unexecuted}
    assert marked == unexecuted == {"P06", "P27"}  # the two that need a GPU
    assert executed == set(pitfalls()) - unexecuted


def test_what_diagnose_finds_is_found_there_too():
    found = {entry.id for entry in pitfalls().values() if not (entry.undetected or entry.unexecuted)}
    sources = [cell.source for cell in CELLS]
    without = {name for name in found if not any(f'"{name}"' in s and "diagnose" in s for s in sources)}
    # An error that torch raises by itself needs no detector: diagnose only recognizes its message.
    assert all(pitfalls()[name].messages and not pitfalls()[name].silent for name in without), without


@pytest.mark.parametrize("name", pitfalls())
def test_a_recorded_message_is_what_the_cell_shows(name):
    text = displayed()
    for message in pitfalls()[name].messages:
        assert message in text


def test_the_gallery_has_a_heading_for_each():
    notebook = nbformat.read(ROOT / "notebooks" / "08_error_gallery.ipynb", as_version=4)
    headings = [
        line.split()[1]
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("### P")
    ]
    assert sorted(headings) == list(pitfalls())
