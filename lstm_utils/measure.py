"""Measurements that can be believed: which machine, time ratios from interleaved runs, and (from ``memory``) bytes."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from lstm_utils.arguments import as_device, at_least, positive, require, require_callable
from lstm_utils.memory import peak_memory, saved_bytes

__all__ = ["Hardware", "Ratio", "Timings", "compare_times", "hardware", "peak_memory", "resolve_device", "saved_bytes"]


def resolve_device(device: str) -> torch.device:
    """The device that a name stands for; "auto" takes cuda, then mps, then the CPU.

    Raises:
        TypeError: it is no name.
        ValueError: the name is unknown, or the device is not present here.
    """
    require("device", device, str, "the name of a device, such as 'cpu', or 'auto'")
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, here in present.items() if here))
    kind = device.partition(":")[0]
    if not present.get(kind):
        here = ", ".join(name for name, is_here in present.items() if is_here)
        raise ValueError(f"device {device!r} is not available here; use 'auto' or one of: {here}")
    found = as_device("device", device)
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
    """Describe this machine, as far as it decides how fast an LSTM runs on ``device``.

    Raises:
        TypeError: ``device`` is neither a device nor the name of one.
        ValueError: torch knows no such device, or it is a GPU that is not here.
    """
    device = as_device("device", device)
    try:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    except (AssertionError, RuntimeError) as error:  # in torch without CUDA, and on a machine without that GPU
        raise ValueError(f"device {str(device)!r} is not available here: {error}") from error
    return Hardware(
        device=name,
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
        TypeError: ``candidates`` is no mapping, or one of them cannot be called.
        ValueError: no candidates, fewer than 3 rounds, or another number that is none or out of range.
    """
    require("candidates", candidates, Mapping, "a mapping of names to functions without arguments")
    for name, call in candidates.items():
        require_callable(f"candidates[{name!r}]", call)
    if not candidates or at_least("rounds", rounds, 1) < 3:
        raise ValueError(f"needs at least one candidate and 3 rounds, got {list(candidates)} and {rounds}")
    at_least("num_threads", num_threads, 1)
    positive("min_seconds", min_seconds, zero=True)
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=num_threads) for name, call in candidates.items()
    }
    numbers = {name: max(1, round(min_seconds / timer.timeit(1).mean)) for name, timer in timers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(numbers[name]).mean)
    return Timings({name: tuple(values) for name, values in seconds.items()}, num_threads)
