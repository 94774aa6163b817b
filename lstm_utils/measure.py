"""Measurements that can be believed: which machine, time ratios from interleaved runs, and memory."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.benchmark import Timer


def resolve_device(device: str) -> torch.device:
    """The device that a name stands for; "auto" takes cuda, then mps, then the CPU.

    Raises:
        ValueError: the name is unknown, or the device is not present here.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, here in present.items() if here))
    kind = device.partition(":")[0]
    if not present.get(kind, False):
        here = ", ".join(name for name, is_here in present.items() if is_here)
        raise ValueError(f"device {device!r} is not available here; use 'auto' or one of: {here}")
    found = torch.device(device)
    if kind == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} is not available here; there are {torch.cuda.device_count()} CUDA devices")
    return found


@dataclass(frozen=True)
class Hardware:
    """What a measurement ran on. ``str()`` gives the one line that every chapter prints."""

    device: str
    processor: str
    cores: int
    threads: int
    instruction_set: str
    torch: str
    python: str
    system: str

    def __str__(self) -> str:
        return (
            f"{self.device} · {self.processor} · {_count(self.cores, 'core')}, {_count(self.threads, 'thread')} · "
            f"{self.instruction_set} · torch {self.torch} · Python {self.python} · {self.system}"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def hardware(device: torch.device | str = "cpu") -> Hardware:
    """Describe this machine, as far as it decides how fast an LSTM runs on ``device``."""
    device = torch.device(device)
    return Hardware(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        torch=torch.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
    )


def _processor() -> str:
    """The processor's model name; ``platform.processor()`` is empty on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Ratio:
    """How many times as long A took as B: the median over rounds, and the quartiles as its spread."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}× ({self.low:.2f}–{self.high:.2f})"

    @property
    def word(self) -> str:
        """The word "slower" or "faster" when the middle half of the rounds agrees, else "neither faster nor slower"."""
        if self.low > 1:
            return "slower"
        return "faster" if self.high < 1 else "neither faster nor slower"


@dataclass(frozen=True)
class Timings:
    """Seconds per call by name, one number a round; the n-th numbers of all names were taken one after the other."""

    seconds: Mapping[str, tuple[float, ...]]
    num_threads: int

    def median(self, name: str) -> float:
        """Median seconds per call."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> Ratio:
        """Time of ``name`` over that of ``base``, round by round, so that a drifting clock cancels."""
        ratios = [a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return Ratio(median, low, high)


def compare_times(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    min_seconds: float = 0.02,
    num_threads: int = 1,
) -> Timings:
    """Time callables against one another, interleaved: A B C, A B C, and so on.

    Args:
        candidates: name → callable without arguments. Work on a GPU is waited for.
        rounds: how many times each is timed, at least 3.
        min_seconds: a round repeats a call until it has lasted about this long.
        num_threads: threads that PyTorch may use meanwhile. One by default: on a busy machine more of them
            wait for each other.

    Raises:
        ValueError: no candidates, or fewer than 3 rounds.
    """
    if not candidates or rounds < 3:
        raise ValueError(f"needs at least one candidate and 3 rounds, got {list(candidates)} and {rounds}")
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=num_threads) for name, call in candidates.items()
    }
    numbers = {name: max(1, round(min_seconds / timer.timeit(1).mean)) for name, timer in timers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(numbers[name]).mean)
    return Timings({name: tuple(values) for name, values in seconds.items()}, num_threads)


class _Kept:
    """What autograd holds in place of a tensor that it saved; alive as long as autograd needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output that held its own graph would never be freed


def saved_bytes(call: Callable[[], object], without: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for its backward pass: exact, and the same in every run.

    Each storage counts once, however many tensors share it. Only what autograd saved is seen: not gradients, nor what
    a call allocates and frees, nor what ``backward()`` itself needs.

    Args:
        call: runs forward, and returns something that holds the graph: the loss, or outputs.
        without: tensors that exist anyway and do not count, such as the input and the parameters.
    """
    alive: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        alive.add(kept := _Kept(tensor))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = call()
    storages = [kept.tensor.untyped_storage() for kept in alive]
    del result  # the graph had to live until here
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(sizes.values()) - sum(sizes.pop(tensor.untyped_storage().data_ptr(), 0) for tensor in without)


def peak_memory(call: str, setup: str = "", device: torch.device | str = "cpu", num_threads: int = 1) -> int:
    """Bytes by which a statement raises the memory in use at its highest point, in a fresh Python process.

    Fresh, because a process keeps what it once took from the system, and later needs show up as nothing. On a CPU it
    is resident memory as the operating system counts it, so it varies by some MiB; on CUDA, what PyTorch allocated.

    Args:
        call: a Python statement, such as ``"step()"``.
        setup: statements that run before it and do not count: imports, functions (``inspect.getsource`` gives their
            source), a small first call that loads libraries. Both find ``torch`` and ``device`` defined.
        device: "cpu" or a CUDA device.
        num_threads: threads that PyTorch may use.

    Raises:
        ValueError: the device is of another kind.
        RuntimeError: the statements failed; the message ends with their error.
    """
    if torch.device(device).type not in ("cpu", "cuda"):
        raise ValueError(f"peak memory can be measured on 'cpu' and 'cuda', got {str(device)!r}")
    order = json.dumps({"call": call, "setup": setup, "device": str(device), "num_threads": num_threads})
    program = "import lstm_utils.measure as m; m._peak_of_order()"
    done = subprocess.run([sys.executable, "-c", program], input=order, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"the fresh process failed: {reason}")
    return int(done.stdout.splitlines()[-1])  # what the statements print comes before it


def _peak_of_order() -> None:
    """In the fresh process: read the order, run it, print the number of bytes."""
    order = json.loads(sys.stdin.read())
    device = torch.device(order["device"])
    torch.set_num_threads(order["num_threads"])
    names = {"__name__": "__main__", "torch": torch, "device": device}
    exec(order["setup"], names)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        exec(order["call"], names)
        print(torch.cuda.max_memory_allocated(device) - before)
        return
    with contextlib.suppress(OSError):  # Linux: the peak starts anew; elsewhere, or if refused, that of setup counts
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak_resident()
    exec(order["call"], names)
    print(_peak_resident() - before)


def _peak_resident() -> int:
    """The highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource  # not on Windows; and on Linux ru_maxrss is inherited from the parent process

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
