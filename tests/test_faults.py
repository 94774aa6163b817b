"""Faults: a kill at any moment, a full disk, damaged files. Each ends in a clear message, whole files, a correct rerun.

Tested elsewhere: a sweep killed in a cell, and its damaged records (test_sweep.py); a training killed in an epoch, and
checkpoints cut short (test_training.py); the cache of the speech (test_speech.py); damaged reports (test_report.py,
test_hardware_reports.py, test_bench.py).
"""

import errno
import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
import pdf
import pytest
import torch
from checks import ROOT
from records import WRITES, notebook, record
from test_training import Training, assert_equal_bit_for_bit
from torch import nn

from lstm_utils import bench, datasets, speech, sweep
from lstm_utils.datasets import DamagedDataError, load_weather, load_words
from lstm_utils.machines import Run
from lstm_utils.measure import hardware
from lstm_utils.onnx_export import export_onnx, quantize_onnx
from lstm_utils.results import save_results
from lstm_utils.training import CheckpointError, load_checkpoint

# Processes of this kind are forked from one that has imported all of this, and run nothing.
APART = multiprocessing.get_context("forkserver")
APART.set_forkserver_preload([__name__, "torch._dynamo", "onnxruntime.quantization", "matplotlib.backends.backend_agg"])


@pytest.fixture(scope="module", autouse=True)
def apart():
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # or it would not find this file
        forkserver.ensure_running()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What writes ---------------------------------------------------------------------------------------------------------
# Each writes its files into a folder, and others for another version; what it reports on stderr comes as SystemExit.


def train(folder, version):
    Training().fit(version, checkpoint=folder / "a.pt")


def export(folder, version):
    torch.manual_seed(version)
    export_onnx(nn.LSTM(8, 16).eval(), torch.randn(3, 2, 8), folder / "model.onnx")


def quantize(folder, version):
    source = folder.parent / f"source {version}"
    source.mkdir(exist_ok=True)
    export(source, version)
    quantize_onnx(source / "model.onnx", folder / "quantized.onnx")


def keep_results(folder, version):
    figure, axis = plt.subplots()
    axis.plot([version, 2])
    save_results("one", {"losses": [version] * 2000}, figure, folder=folder)
    plt.close(figure)


def run_sweep(folder, version):
    def run_cell(_, cell):
        return Run(cell, f"executed {version}\n" * 500, record(hidden_size=cell.hidden_size, speed=version), "", 1.0)

    source = folder.parent / f"{version}.ipynb"
    source.write_text(notebook(f"{WRITES}\n{version}"), encoding="utf-8")
    options = ["--notebook", source, "--folder", folder, "--results", folder, "--hidden-sizes", 8, "--threads", 1]
    with patch.object(sweep, "run_cell", run_cell):
        _main(sweep.main, options)


def run_bench(folder, version):
    row = bench.Comparison("a", "b", "c", "d" * 5000, "time", *[0.1 * version] * 3, "faster", agree=True)
    with patch.object(bench, "run", lambda *_: bench.Report(hardware(), {}, (row,))):
        _main(bench.main, ["--output", folder / "bench.json"])


def _main(main, options):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        status = main([str(option) for option in options])
    if status:
        raise SystemExit(f"status {status}: {said.getvalue()}")


WRITERS = [train, export, quantize, keep_results, run_sweep, run_bench]


def whole_files(folder):
    """What is in the folder, by name; of a checkpoint all but how long its epochs took. Hidden files are left out."""
    found = {}
    for path in sorted(folder.rglob("[!.]*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
        if path.suffix == ".pt":
            state = load_checkpoint(path)
            state["history"]["seconds"] = None
            torch.save(state, buffer := io.BytesIO())
            found[path.name] = buffer.getvalue()
    return found


def hidden_files(folder):
    return [path for path in folder.rglob(".*") if path.is_file()]


@pytest.fixture(scope="module", params=WRITERS, ids=lambda write: write.__name__)
def written(request, tmp_path_factory):
    """A writer, a folder with its first version, and one with the second, which no fault has disturbed."""
    write, folders = request.param, tmp_path_factory.mktemp("written")
    torch.set_num_threads(1)
    for version in (1, 2):
        shutil.copytree(folders / "1", folders / "2") if version == 2 else (folders / "1").mkdir()
        write(folders / str(version), version)
    before, after = (whole_files(folders / str(version)) for version in (1, 2))
    assert before.keys() <= after.keys()
    assert all(before[name] != after[name] for name in before)
    return write, folders / "1", after


# Killed --------------------------------------------------------------------------------------------------------------


MOMENTS = {"half written": ("open", signal.SIGXFSZ), "written, not yet named": ("os.rename", signal.SIGKILL)}
HALF = 700  # bytes, fewer than any of the files has


def killed_at(moment, number, write, folder, version):
    """Run in a process of its own, which is killed at the hidden file of that number: nothing of it runs any more."""
    os.setsid()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; by default it kills as SIGKILL does
    seen = set()

    def watch(event, arguments):
        if event != MOMENTS[moment][0] or not is_hidden(arguments[0], folder):
            return
        seen.add(arguments[0])
        if len(seen) == number and event == "open":
            resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, HALF))  # the kernel kills who writes more
        elif len(seen) == number:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)
    write(folder, version)


def is_hidden(path, folder):
    return isinstance(path, str | Path) and Path(path).is_relative_to(folder) and Path(path).name.startswith(".")


@pytest.mark.parametrize("moment", MOMENTS)
def test_who_is_killed_while_writing_leaves_whole_files_and_is_repeated(written, moment, tmp_path):
    write, earlier, after = written
    before, kills = whole_files(earlier), 0
    while True:  # at the first file that it writes, at the second, until there are no more
        folder = tmp_path / str(kills) / "there"
        shutil.copytree(earlier, folder)
        process = APART.Process(target=killed_at, args=(moment, kills + 1, write, folder, 2))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
        assert process.exitcode == -MOMENTS[moment][1]
        assert HALF in (sizes := [path.stat().st_size for path in hidden_files(folder)]) or moment != "half written"
        assert sizes
        for name, content in whole_files(folder).items():
            assert content in (before.get(name), after[name]), name
        write(folder, 2)
        assert whole_files(folder) == after
        assert hidden_files(folder) == []
    assert kills >= 1
    assert whole_files(folder) == after
