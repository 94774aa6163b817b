"""Results of long runs: complete, reproducible, and never half written."""

import json
import math

import matplotlib.pyplot as plt
import pytest

from lstm_utils import hardware
from lstm_utils.results import save_results


@pytest.fixture
def figure():
    drawn, axis = plt.subplots(figsize=(1, 1))
    axis.plot([1, 2])
    yield drawn
    plt.close(drawn)


def test_numbers_and_figure_are_written_with_the_hardware(tmp_path, figure):
    numbers = {"seeds": [0, 1], "loss": {"SGD": [0.5, 0.25]}, "note": "Größe × 2"}
    written = save_results("10_topic", numbers, figure, folder=tmp_path)
    assert written == (tmp_path / "10_topic.json", tmp_path / "10_topic.png")
    assert sorted(tmp_path.iterdir()) == sorted(written)  # no temporary file is left
    assert json.loads(written[0].read_text(encoding="utf-8")) == {"hardware": vars(hardware()), **numbers}
    assert "Größe × 2" in written[0].read_text(encoding="utf-8")
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_the_numbers_are_laid_out_for_a_reader(tmp_path, figure):
    numbers, _ = save_results("one", {"loss": [0.5], "note": "×"}, figure, folder=tmp_path)
    text = numbers.read_bytes().decode("utf-8")
    assert text.startswith('{\n "hardware": {\n  "')
    assert text.endswith('\n },\n "loss": [\n  0.5\n ],\n "note": "×"\n}\n')


def test_the_picture_is_a_png_that_does_not_depend_on_a_version_or_a_setting(tmp_path, figure):
    with plt.rc_context({"savefig.format": "svg"}):
        _, picture = save_results("one", {}, figure, folder=tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert b"Software" not in picture.read_bytes()  # where matplotlib writes its version


def test_a_notebook_s_results_go_to_the_folder_beside_it(tmp_path, figure, monkeypatch):
    for name in ("notebooks", "results"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    save_results("one", {}, figure)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["one.json", "one.png"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": ""}, ValueError, "name must be that of a file, without a folder, got ''"),
        ({"name": "a/one"}, ValueError, "name must be that of a file, without a folder, got 'a/one'"),
        (
            {"numbers": {"hardware": 7}},
            ValueError,
            "'hardware' is the name of the description, and numbers has it: 7",
        ),
        ({"numbers": [1]}, TypeError, r"numbers must be a mapping of names to numbers, got \[1\] of type list"),
        ({"folder": 3}, TypeError, "folder must be a path, got 3 of type int"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, figure, arguments, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        save_results(**{"name": "one", "numbers": {}, "figure": figure, "folder": tmp_path} | arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_same_results_are_the_same_bytes(tmp_path, figure):
    first = [path.read_bytes() for path in save_results("one", {"a": 1}, figure, folder=tmp_path)]
    assert [path.read_bytes() for path in save_results("one", {"a": 1}, figure, folder=str(tmp_path))] == first


@pytest.mark.parametrize(
    ("numbers", "error"), [({"a": math.nan}, ValueError), ({"a": [math.inf]}, ValueError), ({"a": {1, 2}}, TypeError)]
)
def test_numbers_that_json_cannot_hold_change_nothing(tmp_path, figure, numbers, error):
    before = save_results("one", {"a": 1}, figure, folder=tmp_path)[0].read_bytes()
    with pytest.raises(error):
        save_results("one", numbers, figure, folder=tmp_path)
    assert (tmp_path / "one.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path, figure, monkeypatch):
    before = save_results("one", {"a": 1}, figure, folder=tmp_path)[0].read_bytes()

    def fail(_, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        save_results("one", {"a": 2}, figure, folder=tmp_path)
    assert (tmp_path / "one.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_is_not_there_is_refused(tmp_path, figure):
    with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist; run from notebooks/, or pass folder="):
        save_results("one", {}, figure, folder=tmp_path / "nowhere")
