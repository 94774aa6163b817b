"""The table of `make bench`: what does not agree is not compared, and what is not sound is not shown."""

import io
import json
import math
import re
import runpy
import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from checks import ROOT
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import docutils_namespace, patch_docutils
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lstm_utils import alternatives, bench, reference, truncated_bptt
from lstm_utils.alternatives import CASES, Case, close, close_to_int8, error_between, peak_of
from lstm_utils.bench import HEAD, Comparison, DisagreementError, Report, compare, load_report, main, run, word_of
from lstm_utils.measure import Ratio, compare_times, hardware
from lstm_utils.spec import LSTMSpec

# Agreement -------------------------------------------------------------------------------------------------------


def disagreeing(make):
    """Numbers of the comparisons whose two sides give different results."""
    torch.manual_seed(0)
    return [at for at, case in enumerate(make(True)) if not case.agree(*(call() for call in case.calls))]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_both_sides_of_every_comparison_agree(make):
    assert disagreeing(make) == []


class Forgetful(alternatives.LengthBucketSampler):
    def __iter__(self):
        yield from list(super().__iter__())[1:]


class Repeating(alternatives.LengthBucketSampler):
    def __iter__(self):
        first, *others = super().__iter__()
        yield from [first, first, *others[1:]]


lstm_cell, run_packed, export_onnx = reference.lstm_cell, alternatives.run_packed, alternatives.export_onnx


def swapped_gates(x_gates, h, c, weight_hh, weight_hr):
    i, f, g, o = x_gates.chunk(4, dim=1)
    u, v, w, x = weight_hh.chunk(4)
    return lstm_cell(torch.cat([f, i, g, o], dim=1), h, c, torch.cat([v, u, w, x]), weight_hr)


def whole_mask(lengths, **_):
    return torch.ones(len(lengths), int(lengths.max()), dtype=torch.bool)


def truncated(lstm, x, readout):
    return readout(torch.cat([chunk.output for chunk in truncated_bptt(lstm, x, 16)])), None


def other_weights(lstm, x, path):
    return export_onnx(nn.LSTM(lstm.input_size, lstm.hidden_size, batch_first=True).eval(), x, path)


def rounded(lstm):
    coarse = nn.LSTM(lstm.input_size, lstm.hidden_size, batch_first=True).eval()
    coarse.load_state_dict({name: (10 * weight).round() / 10 for name, weight in lstm.state_dict().items()})
    return coarse


@pytest.mark.parametrize(
    ("make", "owner", "name", "broken", "noticed"),
    [
        ("count_parameters", LSTMSpec, "num_parameters", lambda _: 75_777, [0, 1, 2, 3]),
        ("count_parameters", LSTMSpec, "num_parameters", lambda _: 75_776, [1, 2, 3]),
        ("write_out_the_cell", reference, "lstm_cell", swapped_gates, [0, 1]),
        ("write_out_the_cell", alternatives, "loop_of_gates", lambda lstm, x: 1.01 * lstm(x)[0], [1]),
        ("order_an_epoch", alternatives, "LengthBucketSampler", Forgetful, [0, 1]),
        ("order_an_epoch", alternatives, "LengthBucketSampler", Repeating, [0, 1]),
        ("order_an_epoch", alternatives, "valid_mask", whole_mask, [0, 1]),
        ("order_an_epoch", alternatives, "run_packed", lambda lstm, x, n: run_packed(lstm, x, n - 1), [1]),
        ("save_memory", alternatives, "checkpointed_lstm", truncated, [0, 1]),
        ("run_elsewhere", alternatives, "export_onnx", other_weights, [0, 1]),
        ("run_elsewhere", alternatives, "quantize_onnx", shutil.copy, [1]),
        ("run_elsewhere", alternatives, "quantize_lstm", lambda lstm: lstm, [2, 3]),
        ("run_elsewhere", alternatives, "quantize_lstm", rounded, [2, 3]),
    ],
    ids=[
        "a wrong count",
        "a count that does not grow",
        "gates in another order",
        "another loop",
        "a sampler that forgets",
        "a sampler that repeats",
        "a loss on the padding",
        "a packing that cuts",
        "a gradient that is cut",
        "a file of other weights",
        "a file left as it was",
        "a module left as it was",
        "weights rounded to tenths",
    ],
)
def test_a_side_that_does_something_else_is_noticed(monkeypatch, make, owner, name, broken, noticed):
    monkeypatch.setattr(owner, name, broken)
    assert disagreeing(getattr(alternatives, make)) == noticed


def test_an_error_is_relative_to_the_largest_entry():
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([2.0, -4.0])
    assert error_between([one, two], [one, two]) == 0
    assert error_between([one, two + 1], [one, two]) == 0.25
    assert error_between([one], [one[None]]) == math.inf  # which would broadcast
    assert error_between([one], [one, two]) == math.inf
    assert error_between([one, two * math.nan], [one, two]) == math.inf
    assert error_between([two, one], [two, 0 * one]) == math.inf


@pytest.mark.parametrize(
    ("error", "is_close", "is_int8"), [(0, True, False), (5e-4, True, True), (0.09, False, True), (0.11, False, False)]
)
def test_int8_is_near_and_not_equal(error, is_close, is_int8):
    pair = [torch.tensor([1 + error])], [torch.tensor([1.0])]
    assert (close(*pair), close_to_int8(*pair)) == (is_close, is_int8)


# What is compared ------------------------------------------------------------------------------------------------


@contextmanager
def seen_by_lstms():
    """What every nn.LSTM is called with: T, N, I and H."""
    seen = []

    def note(module, arguments):
        if type(module) is nn.LSTM:
            x = arguments[0]
            steps, rows = x.shape[:2] if isinstance(x, torch.Tensor) else (len(x[1]), int(x[1][0]))
            if module.batch_first and isinstance(x, torch.Tensor):
                steps, rows = rows, steps
            seen.append({"T": steps, "N": rows, "I": module.input_size, "H": module.hidden_size})

    handle = register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "make", [alternatives.write_out_the_cell, alternatives.save_memory, alternatives.run_elsewhere]
)
def test_the_sizes_that_are_told_are_those_that_run(make):
    total = 0
    for one in make(True):
        told = {name: int(size.replace(",", "")) for name, size in re.findall(r"\b([TNIH]) = ([\d,]+)", one.sizes)}
        with seen_by_lstms() as seen:
            one.calls[1]()
        assert all(told.items() <= calls.items() for calls in seen), (one, seen)
        total += len(seen)
    assert total


def test_both_orders_of_an_epoch_have_batches_of_the_same_size():
    for one in alternatives.order_an_epoch(True):
        for call in one.calls:
            with seen_by_lstms() as seen:
                call()
            assert {(calls["N"], calls["I"], calls["H"]) for calls in seen} == {(32, 32, 128)}


def test_an_epoch_adds_up_the_real_steps_and_counts_all_of_them():
    lstm, sequences = nn.LSTM(2, 3, batch_first=True), [torch.randn(3, 2), torch.randn(1, 2), torch.randn(2, 2)]
    expected = sum(lstm(one)[0].square().sum() for one in sequences).detach()
    for packed in (False, True):
        epoch = alternatives.run_epoch(lstm, sequences, [[1, 0], [2]], packed)
        assert (epoch.seen, epoch.steps) == ([0, 1, 2], 2 * 3 + 2)
        torch.testing.assert_close(epoch.sums[0], expected)


def test_a_quick_run_is_a_small_one():
    torch.manual_seed(0)
    sizes = [one.sizes for make in CASES for one in make(True)]
    assert list(dict.fromkeys(size.partition(" sequences")[0] for size in sizes)) == [
        "75,776 parameters",
        "249,856 parameters",
        "1,000,004,000,000 parameters",
        "1,000,004,000,000 parameters against 75,776",
        "training step, T = 20, N = 16, I = 32, H = 128",
        "64",  # sequences, whose lengths and padding follow the seed
        "training step, T = 256, N = 8, I = 16, H = 128",
        "inference, T = 50, N = 1, I = H = 64",
        "saved weights, I = H = 64",
    ]


@pytest.mark.parametrize(
    ("way", "used"), [("segments", ["checkpointed_lstm"]), ("whole call", ["checkpoint"]), ("plain", [])]
)
def test_every_way_to_save_memory_is_that_way(monkeypatch, way, used):
    calls = []
    for name in ("checkpointed_lstm", "checkpoint"):
        plain = getattr(alternatives, name)
        noted = lambda *given, name=name, plain=plain, **how: calls.append(name) or plain(*given, **how)  # noqa: E731
        monkeypatch.setattr(alternatives, name, noted)
    gradients = alternatives.long_step(way, *alternatives.long_sequence(4))
    assert calls == used
    assert gradients[0].shape == (4, 8, 1)


def test_what_is_weighed_is_what_is_named(monkeypatch):
    weighed = []
    monkeypatch.setattr(alternatives, "peak_of", lambda *how: weighed.append(how))
    for count in next(alternatives.save_memory(False)).nbytes:
        count()
    assert weighed == [("segments", 1024), ("whole call", 1024)]
    *_, store = alternatives.run_elsewhere(True)
    ours, instead = (count() for count in store.nbytes)
    assert 2 * ours < instead
    assert 4 * LSTMSpec(64, 64).num_parameters() < instead


def test_elsewhere_is_one_thread_of_the_cpu_and_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    opened, runtime = [], alternatives.need("onnxruntime")

    def open_session(path, options, providers):
        opened.append((options.intra_op_num_threads, providers))
        return runtime.InferenceSession(path, options, providers=providers)

    # Its own alone: those that export and quantize open sessions too.
    noting = SimpleNamespace(SessionOptions=runtime.SessionOptions, InferenceSession=open_session)
    monkeypatch.setattr(alternatives, "need", lambda _: noting)
    assert len(list(alternatives.run_elsewhere(True))) == 4
    assert opened == [(1, ["CPUExecutionProvider"])] * 2
    assert list(tmp_path.iterdir()) == []


def test_what_one_would_count_with_stays_silent(capsys):
    for one in alternatives.count_parameters(True):
        one.calls[1]()
    assert capsys.readouterr().out == ""


# One comparison --------------------------------------------------------------------------------------------------


def case(ours=lambda: 4, instead=lambda: 4, nbytes=None):
    return Case("add", "two and two", "one and three", "small", (ours, instead), int.__eq__, nbytes)


def test_what_disagrees_is_never_timed():
    calls = []
    with pytest.raises(DisagreementError, match=r"^add \(small\): the results of two and two and one and three differ"):
        compare(case(lambda: calls.append("ours") or 4, lambda: calls.append("instead") or 5))
    assert calls == ["ours", "instead"]


@pytest.mark.parametrize(("how", "rounds", "seconds"), [({}, 7, 0.02), ({"quick": True}, 3, 0.005)])
def test_it_is_timed_for_longer_unless_it_is_to_be_quick(monkeypatch, how, rounds, seconds):
    asked = []
    monkeypatch.setattr(bench, "compare_times", lambda calls, *how: asked.append(how) or compare_times(calls, 3, 0))
    compare(case(), **how)
    assert asked == [(rounds, seconds)]


def test_time_is_compared_in_both_directions():
    def slow():
        return sum(range(20_000)) and 4

    found = compare(case(slow), quick=True)
    assert (found.name, found.ours, found.instead, found.sizes) == ("add", "two and two", "one and three", "small")
    assert (found.measure, found.word, found.agree) == ("time", "slower", True)
    assert compare(case(instead=slow), quick=True).word == "faster"


def test_memory_is_counted_in_turns():
    order = []

    def count(side, numbers):
        order.append(side)
        return next(numbers)

    sides = ("ours", iter([10, 30, 20])), ("instead", iter([40, 40, 40]))
    found = compare(case(nbytes=tuple(lambda side=side: count(*side) for side in sides)))
    assert order == ["ours", "instead"] * 3
    assert (found.measure, found.word) == ("memory", "less")
    assert (found.low, found.ratio, found.high) == (0.375, 0.5, 0.625)


@pytest.mark.long("measures memory in two processes, each of which imports torch")
def test_the_peak_of_segments_is_lower():
    assert 0 < 2 * peak_of("segments", 1024) < peak_of("whole call", 1024)


def test_peaks_are_part_of_the_full_version_alone():
    full, quick = ([row.nbytes is not None for row in alternatives.save_memory(short)] for short in (False, True))
    assert (full, quick) == ([True, False, False], [False, False])


@pytest.mark.parametrize(
    ("low", "high", "time", "memory"),
    [
        (0.5, 0.9, "faster", "less"),
        (1.1, 1.3, "slower", "more"),
        (0.9, 1.1, "inside the noise", "inside the noise"),
        (1.0, 1.1, "inside the noise", "inside the noise"),
    ],
)
def test_words_follow_the_quartiles(low, high, time, memory):
    ratio = Ratio((low + high) / 2, low, high)
    assert (word_of("time", ratio), word_of("memory", ratio)) == (time, memory)


# The report ------------------------------------------------------------------------------------------------------

ROW = {
    "name": "add",
    "ours": "`plus(2, 2)`",
    "instead": "`+`, as ever",
    "sizes": "N = 1,000",
    "measure": "time",
    "ratio": 0.5,
    "low": 0.25,
    "high": 0.75,
    "word": "faster",
    "agree": True,
}
MORE = ROW | {"name": "store", "measure": "memory", "ratio": 1234.5, "low": 1000, "high": 2000.25, "word": "more"}


def report(*rows):
    return Report(hardware(), {"torchinfo": "1.0"}, tuple(Comparison(**row) for row in rows or (ROW, MORE)))


def test_a_report_comes_back_as_it_was_saved(tmp_path):
    report().save(path := tmp_path / "bench.json")
    assert load_report(path) == report()
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "schema": 1,
        "hardware": asdict(hardware()),
        "versions": {"torchinfo": "1.0"},
        "comparisons": [ROW, MORE],
    }
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_report_can_be_read_by_people(tmp_path):
    report(ROW | {"name": "Größe"}).save(path := tmp_path / "bench.json")
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{\n "schema": 1,\n')
    assert text.endswith("\n}\n")
    assert '"name": "Größe"' in text


def test_a_disk_that_is_full_leaves_the_last_report(tmp_path, monkeypatch):
    report().save(path := tmp_path / "bench.json")
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        report(ROW).save(path)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2 instead of 1"),
        ({"comparisons": []}, "ValueError: it compares nothing$"),
        ({"comparisons": 3}, "TypeError"),
        ({"comparisons": [ROW | {"extra": 1}]}, "extra"),
        ({"comparisons": [{k: v for k, v in ROW.items() if k != "low"}]}, "low"),
        ({"comparisons": [ROW | {"name": ""}]}, "a name, two sides and sizes"),
        ({"comparisons": [ROW | {"sizes": 3}]}, "a name, two sides and sizes"),
        ({"comparisons": [ROW | {"ratio": 0.1}]}, r"add: expected 0 < low <= ratio <= high, got \(0.25, 0.1, 0.75\)"),
        ({"comparisons": [ROW | {"low": 0}]}, "expected 0 < low"),
        ({"comparisons": [ROW | {"high": math.nan}]}, "expected 0 < low"),
        ({"comparisons": [ROW | {"high": math.inf}]}, "expected 0 < low"),
        ({"comparisons": [ROW | {"high": "1"}]}, "expected 0 < low"),
        ({"comparisons": [ROW | {"measure": "beauty"}]}, r"one of \['time', 'memory'\], got 'beauty'"),
        ({"comparisons": [ROW | {"word": "slower"}]}, r"the word for \(0.25, 0.5, 0.75\) is 'faster', got 'slower'"),
        ({"comparisons": [ROW | {"agree": False}]}, "only what agrees can be compared, got agree=False"),
        ({"comparisons": [ROW | {"agree": 1}]}, "agree=1"),
        ({"hardware": {"device": "CPU"}}, "missing"),
        ({"versions": 3}, "TypeError"),
    ],
)
def test_a_report_that_is_not_sound_is_refused(tmp_path, change, message):
    report().save(path := tmp_path / "bench.json")
    content = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"bench.json is no report of `make bench`, which would write one; .*{message}"
    ):
        load_report(path)


@pytest.mark.parametrize(
    ("text", "message"), [(None, "FileNotFoundError"), ("{", "JSONDecodeError"), ("[]", "TypeError")]
)
def test_a_file_that_is_no_report_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "bench.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"is no report of `make bench`, which would write one; {message}"):
        load_report(tmp_path / "bench.json")


def test_the_table_has_columns_and_digits_that_fit():
    assert str(report()).splitlines() == [
        "What   With lstm_utils  Instead       Sizes      Ours ÷ instead               So ours is",
        "add    `plus(2, 2)`     `+`, as ever  N = 1,000  time 0.5× (0.25–0.75)        faster",
        "store  `plus(2, 2)`     `+`, as ever  N = 1,000  memory 1,234× (1,000–2,000)  more",
    ]
    small = Comparison(**ROW | {"ratio": 0.00123456, "low": 0.00120001, "high": 45.678, "word": "inside the noise"})
    assert small.cells()[4] == "time 0.00123× (0.0012–45.7)"


def test_the_report_of_the_book_is_sound_and_that_of_these_comparisons():
    found = load_report(ROOT / "results" / "bench.json")
    expected = []
    for make in CASES:
        torch.manual_seed(0)
        expected += [(*case[:4], "memory" if case.nbytes else "time") for case in make(False)]
    assert [(row.name, row.ours, row.instead, row.sizes, row.measure) for row in found.comparisons] == expected
    assert found.hardware.threads == 1


# The command -----------------------------------------------------------------------------------------------------


def test_a_run_has_one_thread_and_its_seed_and_leaves_no_trace(monkeypatch):
    before = torch.get_num_threads()
    seen = []

    def make(quick):
        seen.append((quick, torch.initial_seed(), torch.get_num_threads()))
        yield case()

    monkeypatch.setattr(bench, "CASES", (make, make))
    try:
        torch.set_num_threads(2)
        found = run(quick=True, seed=7)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [(True, 7, 1)] * 2
    assert found.hardware.threads == 1
    assert set(found.versions) == {"numpy", "torchinfo", "onnx", "onnxruntime"}
    assert [row.name for row in found.comparisons] == ["add", "add"]


@pytest.fixture
def given(monkeypatch):
    """Comparisons instead of the real ones."""

    def give(*cases):
        monkeypatch.setattr(bench, "CASES", (lambda _: iter(cases),))

    give(case())
    return give


@pytest.mark.usefixtures("given")
def test_the_command_prints_the_table_and_writes_the_report(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert main(["--quick", "--output", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == f"{load_report(path).hardware}\n\n{load_report(path)}\n\nwritten to {path}\n"


def test_by_default_nothing_is_quick_and_the_seed_is_zero(monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "CASES", (lambda quick: seen.append((quick, torch.initial_seed())) or [case()],))
    monkeypatch.setattr(bench, "compare", lambda one, quick: seen.append(quick) or compare(one, True))
    for how in ([], ["--seed", "7"], ["--quick"]):
        assert main(how) == 0
    run()
    assert seen == [(False, 0), False, (False, 7), False, (True, 0), True, (False, 0), False]


@pytest.mark.usefixtures("given")
def test_what_cannot_be_written_is_printed_all_the_same(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(bench, "write_whole", fail)
    assert main(["--quick", "--output", str(tmp_path / "bench.json")]) == 2
    printed = capsys.readouterr()
    assert HEAD[0] in printed.out
    assert printed.err == "error: the disk is full\n"


@pytest.mark.usefixtures("given")
def test_without_a_path_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--quick"]) == 0
    assert HEAD[0] in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_disagreement_ends_with_status_1_and_writes_nothing(given, tmp_path, capsys):
    given(case(), case(instead=lambda: 5))
    assert main(["--quick", "--output", str(tmp_path / "bench.json")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: add (small): the results of two and two and one and three differ")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_before_anything_runs(given, monkeypatch, capsys):
    given(case(lambda: pytest.fail("it ran")))
    monkeypatch.setitem(sys.modules, "torchinfo", None)
    assert main(["--quick"]) == 2
    assert capsys.readouterr().err == 'error: torchinfo is not installed: pip install "lstm-utils[test]"\n'


def test_a_folder_that_is_not_there_is_named_before_anything_runs(given, tmp_path, capsys):
    given(case(lambda: pytest.fail("it ran")))
    assert main(["--output", str(tmp_path / "nowhere" / "bench.json")]) == 2
    assert "nowhere/bench.json" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--seed", "x"], ["--rounds", "3"], ["now"]])
def test_a_malformed_command_line_ends_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: python -m lstm_utils.bench" in capsys.readouterr().err


def test_the_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert (
        capsys.readouterr().out.split()
        == (
            f"usage: python -m lstm_utils.bench [-h] [--quick] [--seed SEED] [--output PATH] {bench.__doc__} options: "
            "-h, --help show this help message and exit --quick smaller, with fewer rounds; not for conclusions "
            "--seed SEED of weights, data and the order of samples (default: 0) "
            "--output PATH where to write the report as JSON"
        ).split()
    )


def test_the_module_ends_with_the_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--output", "nowhere/bench.json"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(bench.__file__, run_name="__main__")
    assert caught.value.code == 2
    assert "nowhere" in capsys.readouterr().err


# The page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path):
    """Build a page that shows a report; returns its document tree."""
    source = tmp_path / "source"
    (source / "book").mkdir(parents=True)
    (source / "results").mkdir()
    (source / "index.rst").write_text("Page\n====\n\n.. bench-table:: results/bench.json\n", encoding="utf-8")

    def build():
        out = tmp_path / "out"
        extension = {"extensions": ["bench_table"]}
        with (
            patch_docutils(),
            docutils_namespace(),
        ):  # as the command does, so that one build leaves nothing to the next
            app = Sphinx(source, None, out, out, "dummy", extension, status=None, warning=io.StringIO())
            app.build()
        return app.env.get_doctree("index").deepcopy()

    return source / "results" / "bench.json", build


def test_the_page_shows_every_comparison_and_the_hardware(build):
    path, run_build = build
    report().save(path)
    tree = run_build()
    rows = [[entry.astext().split("\n\n") for entry in row.findall(nodes.entry)] for row in tree.findall(nodes.row)]
    both = ["plus(2, 2)", "against +, as ever"]
    assert rows[1:] == [
        [["add", "N\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}1,000"], both, ["time 0.5× (0.25–0.75)"], ["faster"]],
        [["store", "N\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}1,000"], both, ["memory 1,234× (1,000–2,000)"], ["more"]],
    ]
    assert [node.astext() for node in tree.findall(nodes.literal)] == ["plus(2, 2)", "+"] * 2
    text = tree.astext()
    assert "2 comparisons · time, faster: 1 · memory, more: 1" in text
    assert f"Measured on {hardware()} · torchinfo 1.0." in text


def test_a_new_report_changes_the_page(build):
    path, run_build = build
    report().save(path)
    run_build()
    report(ROW).save(path)
    assert "1 comparisons · time, faster: 1" in run_build().astext()


@pytest.mark.parametrize("text", [None, "{}"])
def test_a_page_without_a_sound_report_fails_the_build(build, text):
    path, run_build = build
    if text:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ExtensionError, match=r"^index: .*bench.json is no report of `make bench`"):
        run_build()
