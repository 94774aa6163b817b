"""Where a benchmark runs: this machine, or those of a Dask cluster; and what each of them does for one run."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lstm_utils.measure import hardware, resolve_device


@dataclass(frozen=True)
class Cell:
    """One run of the notebook in a grid of them: its parameters, "auto" and "all" resolved."""

    device: str
    threads: int
    hidden_size: int
    quick: bool
    seed: int = 0

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'' if self.threads == 1 else 's'}" if self.device == "cpu" else ""
        return f"{self.device}{threads}, hidden size {self.hidden_size}{', quick' if self.quick else ''}"


@dataclass(frozen=True)
class Run:
    """What became of a cell. Texts alone: the machine that ran it may share no disk with the one that asked."""

    cell: Cell
    notebook: str  # as executed, as far as it came
    record: Any  # what the notebook wrote, unchecked; None after an error
    error: str  # empty without one
    seconds: float


@dataclass(frozen=True)
class Machine:
    """Processes, on machines that are alike, to which joblib brings cells."""

    description: Mapping[str, Any]  # what describe() returned there
    joblib: Mapping[str, Any]  # arguments of joblib.parallel_config
    jobs: int  # cells at once


def describe(devices: Sequence[str]) -> dict[str, Any]:
    """What decides the results of this process: helpers, versions, and the hardware by resolved device.

    Raises:
        ValueError: a device is unknown or absent.
        ModuleNotFoundError: papermill is not installed.
    """
    versions = {name: _version(name) for name in ("torch", "onnxruntime", "openvino", "papermill")}
    if versions["papermill"] is None:
        raise ModuleNotFoundError('running a notebook needs papermill: pip install "lstm-utils[notebooks]"')
    helpers = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        helpers.update(path.name.encode() + path.read_bytes())
    found = {device: asdict(hardware(device)) for device in (str(resolve_device(name)) for name in devices)}
    for described in found.values():
        del described["threads"]  # those of this process; a cell sets its own
    return {"helpers": helpers.hexdigest(), "versions": versions, "hardware": found}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def _plain_environment() -> Iterator[None]:
    """What a kernel inherits: threads that wait do not spin, and nobody else limits them. Dask's workers get one."""
    before = dict(os.environ)
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ.pop(f"{library}_NUM_THREADS", None)
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_cell(notebook: str, cell: Cell) -> Run:
    """Run the notebook, given as text, in a temporary folder. It does not raise: the other cells go on."""
    import papermill

    start, record, error = time.monotonic(), None, ""
    with tempfile.TemporaryDirectory() as folder, _plain_environment():
        source, executed, written = (Path(folder) / name for name in ("source.ipynb", "executed.ipynb", "record.json"))
        source.write_text(notebook, encoding="utf-8")
        parameters = asdict(cell) | {"record": str(written)}
        try:
            papermill.execute_notebook(
                source, executed, parameters, cwd=folder, kernel_name="python3", progress_bar=False
            )
            record = json.loads(written.read_text(encoding="utf-8"))
        except papermill.PapermillExecutionError as failed:
            error = f"{failed.ename}: {failed.evalue}"
        except FileNotFoundError:
            error = "it wrote no record where its parameter `record` says"
        except Exception as failed:  # such as a kernel that died
            error = f"{type(failed).__name__}: {failed}"
        text = executed.read_text(encoding="utf-8") if executed.exists() else notebook
    return Run(cell, text, record, error, time.monotonic() - start)


@contextmanager
def machines(
    devices: Sequence[str], backend: str = "loky", scheduler: str | None = None, jobs: int = 1
) -> Iterator[list[Machine]]:
    """The kinds of machines within reach, each with the devices asked for.

    Args:
        devices: "auto", "cpu", "cuda", "cuda:1" or "mps"; each machine resolves them by itself.
        backend: joblib's: "loky" for this machine, "dask" for the workers of a scheduler.
        scheduler: its address, such as "tcp://10.0.0.1:8786"; with "dask" only.
        jobs: cells at once on one machine. More than one disturb each other's timings.

    Raises:
        ValueError: the options do not fit together, a device is absent, or the cluster cannot be used.
    """
    if (backend == "dask") != (scheduler is not None):
        got = "no --scheduler" if scheduler is None else f"--scheduler {scheduler}"
        raise ValueError(f"--backend dask needs --scheduler ADDRESS, loky takes none; got --backend {backend}, {got}")
    if scheduler is None:
        yield [Machine(describe(devices), {"backend": backend}, jobs)]
        return
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('a Dask cluster needs distributed: pip install "lstm-utils[cluster]"') from error
    try:
        client = Client(scheduler, timeout=10, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler!r}: {error}") from error
    with client:
        yield [
            Machine(description, {"backend": "dask", "client": client, "workers": workers}, len(workers))
            for description, workers in _kinds(client, devices, jobs)
        ]


def _kinds(client: Any, devices: Sequence[str], jobs: int) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Each kind of machine among the workers, with the addresses of at most ``jobs`` workers a host."""
    if sum(client.ncores().values()) < 2:  # joblib would run the cells here, in the belief that it makes no difference
        raise ValueError("the workers need two threads between them: dask worker --nthreads 2, or start more workers")
    own = describe([])["helpers"]
    kinds: dict[str, tuple[dict[str, Any], dict[str, list[str]]]] = {}
    for address, description in client.run(describe, list(devices), on_error="return").items():
        if isinstance(description, Exception):
            raise ValueError(f"the worker {address} cannot take part: {description}")
        if description["helpers"] != own:
            raise ValueError(f"the worker {address} has another version of lstm_utils; install this one there")
        _, hosts = kinds.setdefault(json.dumps(description), (description, {}))
        hosts.setdefault(address.rpartition(":")[0], []).append(address)
    for description, hosts in kinds.values():
        yield description, [address for workers in hosts.values() for address in workers[:jobs]]
