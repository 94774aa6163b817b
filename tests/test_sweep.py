"""The sweep: a grid that fits the machine, cells that are run once, and one report a machine."""

import contextlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from records import WRITES, notebook, record

from lstm_utils import machines as machines_module
from lstm_utils import sweep as module
from lstm_utils.machines import Cell, Run, describe
from lstm_utils.measure import hardware
from lstm_utils.report import load_reports
from lstm_utils.sweep import grid, main

pytestmark = pytest.mark.long("starts workers, each of which imports torch")

CORES = hardware().cores

# The grid ------------------------------------------------------------------------------------------------------------


def cpu(*sizes):
    return [("cpu", threads, hidden) for threads, hidden in sizes]


@pytest.mark.parametrize(
    ("devices", "threads", "sizes", "expected"),
    [
        (["cpu"], [1, 0], [64, 256], cpu((1, 64), (1, 256), (8, 64), (8, 256))),
        (["cpu"], [0, 8, 0], [64, 64], cpu((8, 64))),
        (["cuda"], [1, 0], [64], [("cuda", 1, 64)]),
        (["mps"], [0, 4], [64, 256], [("mps", 1, 64), ("mps", 1, 256)]),
        (["cuda:1", "cpu"], [4, 0], [64], [("cuda:1", 1, 64), ("cpu", 4, 64), ("cpu", 8, 64)]),
    ],
)
def test_a_grid_has_every_cell_once(devices, threads, sizes, expected):
    cells = grid({device: {"cores": 8} for device in devices}, threads, sizes)
    assert [(cell.device, cell.threads, cell.hidden_size) for cell in cells] == expected


def test_more_threads_than_cores_are_refused_on_a_cpu_alone():
    with pytest.raises(ValueError, match="--threads 9 is more than the 8 cores of this machine"):
        grid({"cuda": {"cores": 8}, "cpu": {"cores": 8}}, [1, 9], [64])
    assert grid({"cuda": {"cores": 8}}, [9], [64]) == [Cell("cuda", 1, 64, quick=False)]


def test_on_one_core_all_threads_are_one():
    assert grid({"cpu": {"cores": 1}}, [1, 0], [64], quick=True) == [Cell("cpu", 1, 64, quick=True)]


# Cells in this process -----------------------------------------------------------------------------------------------


class Benchmark:
    """Stands in for run_cell: remembers which cells ran, and what they return can be changed."""

    def __init__(self):
        self.ran = []
        self.change = {}

    def __call__(self, _, cell):
        self.ran.append(str(cell))
        found = record(cell.device, cell.threads, cell.hidden_size, cell.quick)
        changed = self.change.get(cell.hidden_size, lambda found: (found, ""))
        return Run(cell, "executed", *changed(found), seconds=1.0)


@pytest.fixture
def benchmark(monkeypatch):
    stand_in = Benchmark()
    monkeypatch.setattr(module, "run_cell", stand_in)
    return stand_in


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Run the command in a folder of its own, with a notebook of these cells."""
    monkeypatch.chdir(tmp_path)

    def sweep(*arguments, cells=(WRITES,)):
        Path("n.ipynb").write_text(notebook(*cells), encoding="utf-8")
        return main(["--notebook", "n.ipynb", "--hidden-sizes", "8", "16", "--threads", "1", *arguments])

    return sweep


def kept(suffix=".json"):
    return {path.name: path for path in Path("_build/sweep").glob(f"*/*{suffix}")}


FIRST, SECOND = "cpu, 1 thread, hidden size 8", "cpu, 1 thread, hidden size 16"
RECORDS = {"cpu-1-thread-hidden-size-8.json", "cpu-1-thread-hidden-size-16.json"}


def test_a_sweep_writes_one_report_of_all_cells(sweep, benchmark, capsys):
    assert sweep() == 0
    assert benchmark.ran == [FIRST, SECOND]
    [(name, found)] = load_reports("results/hardware").items()
    assert found["cells"] == [record(hidden_size=8), record(hidden_size=16)]
    assert kept().keys() == RECORDS
    assert {path.read_text() for path in kept(".ipynb").values()} == {"executed"}
    said = capsys.readouterr()
    assert f"{FIRST}: done in 1 s" in said.out
    assert f"The report: {Path('results/hardware') / name}" in said.out
    assert "side by side" not in said.out
    [machine] = {path.parent.name for path in kept().values()}
    assert said.out.splitlines()[0] == f"{machine}: 2 cells"
    sweep("--hidden-sizes", "8")
    assert capsys.readouterr().out.splitlines()[0] == f"{machine}: 1 cell"
    assert said.err == ""


@pytest.mark.usefixtures("benchmark")
def test_what_is_kept_and_the_report_may_go_elsewhere(sweep):
    assert sweep("--folder", "kept", "--results", "reports") == 0
    assert {path.name for path in Path("kept").glob("*/*.json")} == RECORDS
    assert load_reports("reports")
    assert not Path("results").exists()


def test_finished_cells_are_kept(sweep, benchmark, capsys):
    sweep()
    assert sweep("--threads", "1", "--hidden-sizes", "8", "16", "32") == 0
    assert benchmark.ran == [FIRST, SECOND, "cpu, 1 thread, hidden size 32"]
    assert f"{SECOND}: kept from an earlier run" in capsys.readouterr().out
    [found] = load_reports("results/hardware").values()
    assert [cell["settings"]["hidden_size"] for cell in found["cells"]] == [8, 16, 32]


def outdate_helpers(monkeypatch):
    monkeypatch.setattr(machines_module, "describe", lambda names: describe(names) | {"helpers": "changed"})


def outdate_versions(monkeypatch):
    monkeypatch.setattr(machines_module, "_version", lambda _: "9.9")


def outdate_hardware(monkeypatch):
    there = {"cpu": describe(["cpu"])["hardware"]["cpu"] | {"python": "9.9"}}
    monkeypatch.setattr(machines_module, "describe", lambda names: describe(names) | {"hardware": there})


@pytest.mark.parametrize("outdate", [outdate_helpers, outdate_versions])
def test_cells_of_another_package_run_again(sweep, benchmark, monkeypatch, outdate):
    sweep()
    outdate(monkeypatch)
    assert sweep() == 0
    assert benchmark.ran == [FIRST, SECOND] * 2


def test_cells_of_other_hardware_run_again(sweep, benchmark, monkeypatch, capsys):
    sweep()
    outdate_hardware(monkeypatch)
    assert sweep() == 1  # the stand-in's record has the true hardware
    assert benchmark.ran == [FIRST, SECOND] * 2
    assert "hardware.python" in capsys.readouterr().err


def test_cells_of_another_notebook_run_again_but_its_outputs_do_not_matter(sweep, benchmark):
    sweep()
    text = Path("n.ipynb").read_text(encoding="utf-8")
    content = json.loads(text)
    content["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    content["cells"][1]["source"] = "".join(content["cells"][1]["source"])  # a text is as good as a list of lines
    Path("n.ipynb").write_text(json.dumps(content), encoding="utf-8")
    again = ["--notebook", "n.ipynb", "--hidden-sizes", "8", "16", "--threads", "1"]
    assert main(again) == 0
    assert benchmark.ran == [FIRST, SECOND]
    assert sweep(cells=(WRITES, "pass")) == 0
    assert benchmark.ran == [FIRST, SECOND] * 2


def test_a_quick_run_leaves_the_long_one_alone(sweep, benchmark):
    sweep()
    assert sweep("--quick") == 0
    assert benchmark.ran[2:] == [f"{FIRST}, quick", f"{SECOND}, quick"]
    assert len(list(Path("results/hardware").iterdir())) == 1
    assert [cell["settings"]["quick"] for cell in load_reports("results/hardware").popitem()[1]["cells"]] == [0, 0]
    [trial] = load_reports("_build/sweep").values()
    assert trial["cells"][0]["settings"]["quick"] is True
    sweep()
    assert len(benchmark.ran) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[]",
        lambda text: text.replace('"median_s": 0.001', '"median_s": -1'),
        lambda text: text.replace('"key": "', '"key": "0'),
        lambda text: text.replace('"record"', '"records"'),
    ],
    ids=["half", "empty", "no record", "unsound", "another key", "no such field"],
)
def test_a_damaged_record_is_redone_and_the_other_kept(sweep, benchmark, damage):
    sweep()
    path = kept()["cpu-1-thread-hidden-size-8.json"]
    before = path.read_text(encoding="utf-8")
    path.write_text(damage(before), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != before
    assert sweep() == 0
    assert benchmark.ran == [FIRST, SECOND, FIRST]
    assert path.read_text(encoding="utf-8") == before


FAILURES = {
    "an error": (lambda _: (None, "ValueError: boom"), "ValueError: boom"),
    "no record": (lambda _: (None, ""), "its record: the record is null"),
    "an unsound record": (lambda found: (found | {"schema": 2}, ""), "its record: schema is 2"),
    "another size": (
        lambda found: (found | {"settings": found["settings"] | {"hidden_size": 9}}, ""),
        "its record has settings.hidden_size 9, and the cell was 8",
    ),
    "other threads": (
        lambda found: (found | {"hardware": found["hardware"] | {"threads": 7}}, ""),
        "its record has hardware.threads 7, and the cell was 1",
    ),
}


@pytest.mark.parametrize(("change", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_a_cell_that_fails_is_named_and_the_others_are_kept(sweep, benchmark, capsys, change, message):
    benchmark.change[8] = change
    assert sweep() == 1
    executed = kept(".ipynb")["cpu-1-thread-hidden-size-8.ipynb"]
    said = capsys.readouterr()
    assert f"{FIRST}: FAILED: {message}" in said.err
    assert f"see {executed}" in said.err
    last = "Cells failed: no report. Finished ones are kept; the same command runs the rest."
    assert said.err.splitlines()[-1] == last
    assert f"{SECOND}: done" in said.out
    assert kept().keys() == {"cpu-1-thread-hidden-size-16.json"}
    assert not Path("results").exists()
    benchmark.change.clear()
    assert sweep() == 0
    assert benchmark.ran == [FIRST, SECOND, FIRST]


def test_a_failure_leaves_the_earlier_report(sweep, benchmark):
    sweep()
    before = {path: path.read_bytes() for path in Path("results/hardware").iterdir()}
    benchmark.change[16] = lambda _: (None, "boom")
    assert sweep(cells=("changed",)) == 1
    assert {path: path.read_bytes() for path in Path("results/hardware").iterdir()} == before


def test_an_interrupt_ends_the_sweep_and_keeps_what_is_finished(sweep, benchmark, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    benchmark.change[16] = interrupt
    assert sweep() == 130
    assert capsys.readouterr().err == "Stopped. What is finished is kept; the same command runs the rest.\n"
    assert kept().keys() == {"cpu-1-thread-hidden-size-8.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "tpu"], "device 'tpu' is not available here"),
        (["--backend", "dask"], "--backend dask needs --scheduler ADDRESS"),
        (["--scheduler", "tcp://a:1"], "got --backend loky, --scheduler tcp://a:1"),
        (["--threads", "1", str(CORES + 1)], f"--threads {CORES + 1} is more than the {CORES} cores"),
        (["--notebook", "absent.ipynb"], "no notebook 'absent.ipynb'; run this at the root of the repository"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(sweep, benchmark, capsys, arguments, message):
    assert sweep(*arguments) == 2
    assert benchmark.ran == []
    assert message in capsys.readouterr().err
    assert not Path("_build").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "-1"], "0 or more, got '-1'"),
        (["--hidden-sizes", "0"], "1 or more, got '0'"),
        (["--hidden-sizes", "64.5"], "1 or more, got '64.5'"),
        (["--jobs", "0"], "1 or more, got '0'"),
        (["--backend", "ray"], "invalid choice: 'ray'"),
    ],
)
def test_an_option_that_is_no_such_number_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("present", "name"), [("cuda", "a GPU"), ("mps", "MPS")])
def test_on_a_gpu_the_report_has_its_name_and_one_cell_a_size(sweep, benchmark, monkeypatch, present, name):
    monkeypatch.setattr("torch.cuda.is_available", lambda: present == "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: int(present == "cuda"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: present == "mps")
    for size in (8, 16):
        benchmark.change[size] = lambda found: (found | {"hardware": found["hardware"] | {"device": name}}, "")
    assert sweep("--threads", "1", "0") == 0
    assert benchmark.ran == [f"{present}, hidden size 8", f"{present}, hidden size 16"]
    [(file, found)] = load_reports("results/hardware").items()
    assert file.endswith(f"-{name.lower().replace(' ', '-')}.json")
    assert found["hardware"]["devices"] == [name]


# Real runs -----------------------------------------------------------------------------------------------------------


def kernels():
    """Of each executed notebook, the process that started its kernel."""
    texts = [path.read_text(encoding="utf-8") for path in kept(".ipynb").values()]
    return [int(re.search(r"kernel of (\d+)\\n", text).group(1)) for text in texts]


def test_the_options_are_those_that_the_help_tells(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert vars(module._parser().parse_args([])) == {
        "device": ["auto"],
        "threads": [1, 0],
        "hidden_sizes": [64, 256, 1024],
        "quick": False,
        "backend": "loky",
        "scheduler": None,
        "jobs": 1,
        "folder": Path("_build/sweep"),
        "results": None,
        "notebook": Path("notebooks/14_deployment_benchmark.ipynb"),
    }
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    usage, _, options = said.partition("\n\n")
    assert usage.startswith(
        "usage: python -m lstm_utils.sweep [-h] [--device DEVICE [DEVICE ...]] [--threads N [N ...]]"
    )
    assert module.__doc__ in options
    helps = [
        "--device DEVICE [DEVICE ...] auto (CUDA, then MPS, then the CPU), cpu, cuda, mps; or several",
        "--threads N [N ...] 0 for all cores (default: 1 0)",
        "--hidden-sizes H [H ...] default: 64 256 1024",
        "--quick a short run, to try it out: its report stays in the folder",
        "--backend {loky,dask} loky: this machine (default); dask: a cluster",
        "--scheduler ADDRESS of the Dask scheduler, such as tcp://10.0.0.1:8786",
        "--jobs N cells at once on a machine (default: 1); side by side they disturb each other: the report stays in "
        "the folder",
        "--folder FOLDER keeps what is finished (default: _build/sweep)",
        "--results FOLDER for the report (default: results/hardware)",
        "--notebook NOTEBOOK what runs (default: notebooks/14_deployment_benchmark.ipynb)",
    ]
    *_, told = options.partition("show this help message and exit\n")
    last = "Exit status: 0 with a report, 1 where a cell failed, 2 where nothing could be run."
    assert " ".join(told.split()) == " ".join([*helps, last])


def test_the_module_ends_with_the_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep", "--device", "tpu", "--notebook", __file__])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(module.__file__, run_name="__main__")
    assert ended.value.code == 2
    assert "device 'tpu' is not available here" in capsys.readouterr().err


def test_the_file_of_a_cell_can_be_named_so_on_every_system():
    name = module._path(Path("here"), Cell("cuda:1", 1, 8, quick=True)).name
    assert name == "cuda-1-hidden-size-8-quick.json"


def test_how_a_cell_went_is_shown_at_once(sweep, benchmark, monkeypatch):
    def show(text, flush=False, **_):
        shown.append((text, flush))

    shown = []
    monkeypatch.setattr(module, "print", show, raising=False)
    benchmark.change[16] = lambda found: (found, "broken")
    sweep()
    sweep()
    for what in ("2 cells", "done in", "FAILED", "kept from"):
        flushed = [flush for text, flush in shown if what in text]
        assert flushed
        assert all(flushed)


@pytest.mark.usefixtures("benchmark")
def test_no_more_cells_are_handed_out_than_run_at_once(sweep, monkeypatch):
    import joblib

    asked, parallel = [], joblib.Parallel
    monkeypatch.setattr(joblib, "Parallel", lambda **options: asked.append(options) or parallel(**options))
    sweep()
    assert asked == [{"n_jobs": 1, "pre_dispatch": 1, "batch_size": 1, "return_as": "generator_unordered"}]


def test_cells_run_one_by_one_unless_it_is_said(benchmark, tmp_path):
    with machines_module.machines(["cpu"], "loky", None, 1) as (machine,):
        for disturbed in ({}, {"disturbed": False}, {"disturbed": True}):
            module.run_grid(machine, [Cell("cpu", 1, 8, quick=False)], notebook(WRITES), tmp_path, **disturbed)
    assert benchmark.ran == [FIRST, FIRST]


def test_cells_at_once_are_known_to_disturb_each_other(sweep, monkeypatch):
    def run_grid(_machine, cells, _notebook, _folder, disturbed):
        asked.append(disturbed)
        return [record(hidden_size=cell.hidden_size) for cell in cells]

    asked = []
    monkeypatch.setattr(module, "run_grid", run_grid)
    for jobs in "123":
        assert sweep("--jobs", jobs) == 0
    assert asked == [False, True, True]


def test_another_machine_goes_on_where_one_fails(sweep, monkeypatch):
    machine = machines_module.Machine(describe(["cpu"]), {}, 1)
    answers = iter([[], [record(hidden_size=8), record(hidden_size=16)]])
    monkeypatch.setattr(module, "machines", lambda *_: contextlib.nullcontext([machine, machine]))
    monkeypatch.setattr(module, "run_grid", lambda *_: next(answers))
    assert sweep() == 1
    assert load_reports("results/hardware")


def test_what_was_measured_side_by_side_is_not_kept_for_a_run_one_by_one():
    described, cell = describe(["cpu"]), Cell("cpu", 1, 8, quick=False)
    alone, beside = (module._key(described, cell, notebook(WRITES), disturbed) for disturbed in (False, True))
    assert alone != beside


def test_cells_side_by_side_run_in_processes_and_are_not_taken_for_measurements(sweep, capsys):
    assert sweep("--jobs", "2") == 0
    said = "Cells that run side by side disturb each other's timings: for trying out, not for results."
    assert said in capsys.readouterr().out.splitlines()
    assert os.getpid() not in kernels()
    assert not Path("results").exists()
    [found] = load_reports("_build/sweep").values()
    assert len(found["cells"]) == 2


# The second cell of the grid waits until it is killed, and is quick once a file says so.
SLOW = f"""import os, pathlib, time
if hidden_size == 16 and not pathlib.Path("../go on").exists():
    pathlib.Path("../started").write_text(str(os.getpid()))
    time.sleep(600)
{WRITES}"""


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(process):
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z" if status.parent.parent.exists() else False
    except OSError:
        return False


def test_a_killed_sweep_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # so each run works in a folder beside the two files above
    monkeypatch.setattr(tempfile, "tempdir", None)
    Path("slow.ipynb").write_text(notebook(SLOW), encoding="utf-8")
    arguments = ["--notebook", "slow.ipynb", "--hidden-sizes", "8", "16", "--threads", "1"]
    command = [sys.executable, "-m", "lstm_utils.sweep", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: Path("started").exists() and Path("started").read_text())
        process.kill()
    assert process.returncode == -signal.SIGKILL
    kernel = int(Path("started").read_text())
    wait_until(lambda: not is_running(kernel))  # it notices that nobody waits for it
    finished = kept()
    assert finished.keys() == {"cpu-1-thread-hidden-size-8.json"}
    assert not Path("results").exists()
    before = finished["cpu-1-thread-hidden-size-8.json"].stat().st_mtime_ns
    Path("go on").touch()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"{FIRST}: kept from an earlier run" in said
    assert f"{SECOND}: done" in said
    assert kept()["cpu-1-thread-hidden-size-8.json"].stat().st_mtime_ns == before
    [found] = load_reports("results/hardware").values()
    assert [cell["settings"]["hidden_size"] for cell in found["cells"]] == [8, 16]


def test_the_workers_of_a_cluster_share_the_cells(sweep, tmp_path, capsys):
    import distributed

    two = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with distributed.LocalCluster(**two, local_directory=str(tmp_path)) as cluster:
        options = ["--backend", "dask", "--scheduler", cluster.scheduler_address, "--jobs", "2", "--results", "reports"]
        assert sweep(*options) == 0
        assert sweep(*options) == 0
        workers = [worker.pid for worker in cluster.workers.values()]
    assert len(set(kernels())) == 2
    assert os.getpid() not in kernels()
    assert not any(map(is_running, [*workers, *kernels()]))
    assert capsys.readouterr().out.count("kept from an earlier run") == 2
    [found] = load_reports("reports").values()
    assert [cell["settings"]["hidden_size"] for cell in found["cells"]] == [8, 16]
