"""Where a sweep can run, and what one run of the notebook returns."""

import json
import locale
import os
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from records import WRITES, notebook, record

from lstm_utils import machines as module
from lstm_utils.machines import Cell, describe, machines, run_cell

CELL = Cell("cpu", threads=1, hidden_size=64, quick=True)


@pytest.mark.parametrize(
    ("cell", "printed"),
    [
        (CELL, "cpu, 1 thread, hidden size 64, quick"),
        (Cell("cpu", 2, 128, quick=False), "cpu, 2 threads, hidden size 128"),
        (Cell("cuda:1", 1, 32, quick=False), "cuda:1, hidden size 32"),  # its threads are not what it waits for
    ],
)
def test_a_cell_is_printed_by_what_sets_it_apart(cell, printed):
    assert str(cell) == printed


@pytest.fixture
def present(monkeypatch):
    """Pretend that this machine has the devices named, beside its CPU."""

    def pretend(*devices):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in devices)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if "cuda" in devices else 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index or 0}")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in devices)

    return pretend


# This machine --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "asked", "found"),
    [
        ((), ["auto"], {"cpu": "CPU"}),
        ((), ["auto", "cpu"], {"cpu": "CPU"}),
        (("cuda",), ["auto"], {"cuda": "GPU 0"}),
        (("cuda",), ["cuda:1", "cpu", "auto"], {"cuda:1": "GPU 1", "cpu": "CPU", "cuda": "GPU 0"}),
        (("mps",), ["auto", "cpu"], {"mps": "MPS", "cpu": "CPU"}),
        (("cuda", "mps"), ["auto", "mps"], {"cuda": "GPU 0", "mps": "MPS"}),
    ],
)
def test_a_machine_describes_each_device_once(present, devices, asked, found):
    present(*devices)
    with machines(asked) as [here]:
        assert {name: one["device"] for name, one in here.description["hardware"].items()} == found
    assert (here.joblib, here.jobs) == ({"backend": "loky"}, 1)


@pytest.mark.parametrize("absent", ["cuda", "mps", "tpu"])
def test_an_absent_device_is_refused(present, absent):
    present()
    with pytest.raises(ValueError, match=f"device '{absent}' is not available here"), machines(["cpu", absent]):
        pass


def test_a_description_changes_with_a_helper_and_with_a_version(monkeypatch, tmp_path):
    (tmp_path / "machines.py").write_text("one")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "machines.py"))
    first = describe(["cpu"])
    assert first == describe(["cpu"])
    (tmp_path / "machines.py").write_text("another")
    assert describe(["cpu"])["helpers"] != first["helpers"]
    monkeypatch.setattr(module, "version", lambda _: "9")
    assert describe(["cpu"])["versions"] == dict.fromkeys(("torch", "onnxruntime", "openvino", "papermill"), "9")


def test_a_description_does_not_depend_on_the_threads_of_the_process():
    before, threads = describe(["cpu"]), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert describe(["cpu"]) == before
    finally:
        torch.set_num_threads(threads)


def test_without_papermill_the_extra_is_named(monkeypatch):
    def version(name):
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", version)
    with pytest.raises(ModuleNotFoundError, match=r'^running .* papermill: pip install "lstm-utils\[notebooks\]"$'):
        describe(["cpu"])


# One run -------------------------------------------------------------------------------------------------------------


def test_a_run_returns_texts():
    run = run_cell(notebook(WRITES), CELL)
    assert (run.cell, run.error) == (CELL, "")
    assert run.record == record(quick=True)
    assert "kernel of" in run.notebook
    assert 0 < run.seconds < 60


@pytest.fixture
def ascii_locale():
    """A machine whose files are ASCII, unless one says otherwise."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.mark.usefixtures("ascii_locale")
def test_a_run_does_not_depend_on_where_it_starts_and_leaves_nothing_there(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    writes = "open(record, 'w', encoding='utf-8').write('\"CPU™\"'); open('beside', 'w').close()"
    text = json.dumps(json.loads(notebook("print('came → here')", writes)), ensure_ascii=False)
    run = run_cell(text.replace('"name": "python3"', '"name": "kernel-of-its-author"'), CELL)
    assert (run.error, run.record) == ("", "CPU™")
    assert '"came → here' in run.notebook
    assert list(tmp_path.iterdir()) == []
    assert "%" not in capfd.readouterr().err  # no bar of progress: the sweep has its own lines


def test_every_kernel_has_the_same_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in a Dask worker
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    before = dict(os.environ)
    run = run_cell(
        notebook(WRITES, "print([os.environ.get('OMP_' + n) for n in ('NUM_THREADS', 'WAIT_POLICY')])"), CELL
    )
    assert "[None, 'passive']" in run.notebook
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise ValueError('boom')", "ValueError: boom$"),
        ("pass", "it wrote no record where its parameter `record` says$"),
        ("open(record, 'w').write('{')", "JSONDecodeError: Expecting"),
        ("import os; os._exit(3)", "DeadKernelError: Kernel died"),
    ],
    ids=["an error", "no record", "half a record", "a dead kernel"],
)
def test_a_run_that_fails_returns_why_and_how_far_it_came(code, error):
    run = run_cell(notebook("print('came so far')", code), CELL)
    assert re.match(error, run.error)
    assert run.record is None
    assert '"came so far' in run.notebook


def test_a_run_that_never_starts_returns_the_notebook():
    text = notebook("pass").replace('"nbformat": 4', '"nbformat": 99')
    run = run_cell(text, CELL)
    assert run.error
    assert run.notebook == text


# A cluster -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "scheduler", "got"),
    [("dask", None, "--backend dask, no --scheduler"), ("loky", "tcp://a:1", "--backend loky, --scheduler tcp://a:1")],
)
def test_a_scheduler_goes_with_dask_alone(backend, scheduler, got):
    with pytest.raises(ValueError, match=f"got {got}$"), machines(["cpu"], backend, scheduler):
        pass


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    import distributed

    with (
        pytest.raises(ValueError, match="answers at 'carrier pigeon': "),
        machines(["cpu"], "dask", "carrier pigeon"),
    ):
        pass

    def client(*_, **__):
        raise OSError("Timed out")

    monkeypatch.setattr(distributed, "Client", client)
    with (
        pytest.raises(ValueError, match="answers at 'tcp://a:1': Timed out"),
        machines(["cpu"], "dask", "tcp://a:1"),
    ):
        pass


def test_without_distributed_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ModuleNotFoundError, match=r'pip install "lstm-utils\[cluster\]"'),
        machines(["cpu"], "dask", "tcp://a:1"),
    ):
        pass


def cluster(told, threads=2):
    """A client of workers that answer so, to the one question that there is."""

    def run(function, *arguments, **options):
        assert (function, arguments, options) == (describe, (["cpu"],), {"on_error": "return"})
        return told

    return SimpleNamespace(ncores=lambda: dict.fromkeys(told, threads), run=run)


def test_workers_are_grouped_by_kind_of_machine_and_no_host_is_crowded():
    small, large = describe(["cpu"]), describe(["cpu"]) | {"versions": {"torch": "another"}}
    told = {"tcp://a:1": small, "tcp://a:2": small, "tcp://a:3": small, "tcp://b:1": small, "tcp://c:1": large}
    assert list(module._kinds(cluster(told), ["cpu"], jobs=1)) == [
        (small, ["tcp://a:1", "tcp://b:1"]),
        (large, ["tcp://c:1"]),
    ]
    assert next(module._kinds(cluster(told), ("cpu",), jobs=2)) == (small, ["tcp://a:1", "tcp://a:2", "tcp://b:1"])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "^the workers need two threads between them: .*, or start more workers$"),
        ({"tcp://a:1": {"helpers": "other"}}, "^the worker tcp://a:1 has another version of lstm_utils; install this"),
        ({"tcp://a:1": ValueError("device 'cuda' is not")}, "^the worker tcp://a:1 cannot .*: device 'cuda' is not"),
        ({"tcp://a:1": ModuleNotFoundError("No module named 'lstm_utils'")}, "cannot take part: No module named"),
    ],
)
def test_workers_that_cannot_take_part_are_named(told, message):
    with pytest.raises(ValueError, match=message):
        list(module._kinds(cluster(told), ["cpu"], jobs=1))


def test_a_cluster_of_one_thread_is_refused_since_joblib_would_run_the_cells_here():
    with pytest.raises(ValueError, match="dask worker --nthreads 2"):
        list(module._kinds(cluster({"tcp://a:1": describe(["cpu"])}, threads=1), ["cpu"], jobs=1))
