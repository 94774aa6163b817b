"""How fast this machine could run an LSTM: its measured limits, and the work of a call that they bound.

The roofline model: a program that does ``intensity`` operations for each byte it moves is held up either by the
arithmetic or by the bytes, so it attains at most ``min(peak, intensity * bandwidth)`` operations a second.

Source: Williams, Waterman and Patterson (2009), "Roofline: An Insightful Visual Performance Model for Multicore
Architectures".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.benchmark import Timer

from lstm_utils.arguments import as_device, at_least, one_of, require
from lstm_utils.spec import LSTMSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
# Instructions that multiply bfloat16 numbers, as PyTorch names them; without one of them the arithmetic is emulated.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")

Binding = Literal["bandwidth", "compute"]


def has_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether the device multiplies bfloat16 numbers in hardware. Everything *accepts* them, some of it very slowly."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "mps":
        return False  # the documentation promises none for all of Apple's chips
    abilities = torch.cpu.get_capabilities()
    return any(abilities.get(name) for name in BFLOAT16_INSTRUCTIONS)


@dataclass(frozen=True)
class Work:
    """What a call must do at the least: operations, and bytes to and from memory (or a cache)."""

    flops: int
    nbytes: int

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.flops / self.nbytes

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.nbytes + other.nbytes)


def recurrent_work(spec: LSTMSpec, seq_len: int, batch_size: int = 1, precision: str = "float32") -> Work:
    """The part that cannot wait: at every step, all weights that read h are read again, for ``batch_size`` rows.

    So its intensity is ``2 * batch_size`` operations for each weight: N/2 FLOP a byte in float32, at any size.

    Args:
        spec: the LSTM.
        seq_len: T, time steps.
        batch_size: N.
        precision: of the weights: "float32", "bfloat16" or "int8".

    Raises:
        TypeError: ``spec`` is no :class:`~lstm_utils.spec.LSTMSpec`.
        ValueError: a size is no integer of at least 1, or the precision is another.
    """
    _check_call(spec, seq_len, batch_size)
    weights = _weights(spec, "weight_hh", "weight_hr")
    return Work(2 * weights * seq_len * batch_size, weights * seq_len * _dtype(precision).itemsize)


def input_work(spec: LSTMSpec, seq_len: int, batch_size: int = 1, precision: str = "float32") -> Work:
    """The part that is known beforehand: one product for all steps, so its weights are read once; arguments as above.

    The bytes of every layer's input and output, float32 in any precision, are counted here.

    Raises:
        TypeError, ValueError: as above.
    """
    _check_call(spec, seq_len, batch_size)
    weights = _weights(spec, "weight_ih")
    width = sum(spec.layer_input_size(layer) for layer in range(spec.num_layers))
    width += spec.num_layers * spec.num_directions * spec.hidden_width
    nbytes = weights * _dtype(precision).itemsize + width * seq_len * batch_size * torch.float32.itemsize
    return Work(2 * weights * seq_len * batch_size, nbytes)


def lstm_work(spec: LSTMSpec, seq_len: int, batch_size: int = 1, precision: str = "float32") -> Work:
    """The whole call; its ``flops`` are ``spec.flops(seq_len, batch_size)``. Arguments as above.

    Raises:
        TypeError, ValueError: as above.
    """
    recurrent = recurrent_work(spec, seq_len, batch_size, precision)
    return input_work(spec, seq_len, batch_size, precision) + recurrent


def _check_call(spec: LSTMSpec, seq_len: int, batch_size: int) -> None:
    require("spec", spec, LSTMSpec, "an LSTMSpec")
    at_least("seq_len", seq_len, 1)
    at_least("batch_size", batch_size, 1)


def _weights(spec: LSTMSpec, *kinds: str) -> int:
    shapes = spec.parameter_shapes().items()
    return sum(rows * columns for name, (rows, *rest) in shapes for columns in rest if name.startswith(kinds))


def _dtype(precision: str) -> torch.dtype:
    return DTYPES[one_of("precision", precision, DTYPES)]


@dataclass(frozen=True)
class Roofline:
    """The measured limits of a machine, for one device and number of threads.

    Args:
        gemm_flops: precision → operations a second of the best matrix product; None where it was not measured.
        bandwidth: bytes a second between memory and processor.
        cache_bandwidth: bytes a second from ``cache_bytes`` that are used again and again, as the weights are.
        cache_bytes: how many.
    """

    gemm_flops: Mapping[str, float | None]
    bandwidth: float
    cache_bandwidth: float
    cache_bytes: int

    def attainable(self, intensity: float, precision: str = "float32") -> float:
        """Operations a second that ``intensity`` operations a byte allow; by bandwidth alone where no peak is known."""
        return min(self._peak(precision), intensity * self.cache_bandwidth)

    def ridge(self, precision: str = "float32") -> float:
        """The intensity at which the limit changes from the bandwidth to the arithmetic.

        Raises:
            ValueError: there is no peak of that precision.
        """
        if (peak := self.gemm_flops.get(precision)) is None:
            raise ValueError(f"no peak was measured in {precision}; there is one in {', '.join(self._peaks())}")
        return peak / self.cache_bandwidth

    def _peaks(self) -> list[str]:
        return [name for name, peak in self.gemm_flops.items() if peak is not None]

    def binds(self, work: Work, precision: str = "float32") -> Binding:
        """Which limit holds this work up."""
        return "bandwidth" if self.attainable(work.intensity, precision) < self._peak(precision) else "compute"

    def _peak(self, precision: str) -> float:
        peak = self.gemm_flops.get(precision)
        return math.inf if peak is None else peak

    def least_seconds(self, work: Work, precision: str = "float32") -> float:
        """The time that this work takes at the limit; a measured time is longer."""
        return work.flops / self.attainable(work.intensity, precision)


def measure_roofline(
    device: torch.device | str = "cpu",
    num_threads: int = 1,
    cache_bytes: int = 2**20,
    memory_bytes: int = 2**28,
    rounds: int = 15,
) -> Roofline:
    """Measure the limits: each is the best of many short rounds, since other programs can only make it look lower.

    Args:
        device: "cpu", "cuda" or "mps". Work on a GPU is waited for.
        num_threads: threads that PyTorch may use.
        cache_bytes: size of the array for the bandwidth of the cache: that of the recurrent weights, which are read
            again at every step. Which cache it is depends on the size and the machine.
        memory_bytes: size of the arrays for the bandwidth of the memory; beyond every cache.
        rounds: how many rounds.

    Raises:
        TypeError: ``device`` is neither a device nor the name of one.
        ValueError: torch knows no such device, or a number is no integer of at least 1; arrays take 4 bytes or more.
    """
    device = as_device("device", device)
    at_least("num_threads", num_threads, 1)
    at_least("rounds", rounds, 1)
    cache_bytes = at_least("cache_bytes", cache_bytes, 4)
    memory_bytes = at_least("memory_bytes", memory_bytes, 4)
    # A product of 128 keeps few lanes of a GPU busy, and one of 4096 keeps a CPU busy for seconds.
    sizes = (256, 512, 1024) if device.type == "cpu" else (1024, 2048, 4096)
    flops: dict[str, float | None] = {"float32": max(_gemm(device, n, "float32", num_threads, rounds) for n in sizes)}
    flops["bfloat16"] = (
        max(_gemm(device, n, "bfloat16", num_threads, rounds) for n in sizes) if has_bfloat16(device) else None
    )
    bandwidth = _bandwidth(device, memory_bytes, num_threads, min(rounds, 5))
    return Roofline(flops, bandwidth, _bandwidth(device, cache_bytes, num_threads, rounds), cache_bytes)


def _gemm(device: torch.device, size: int, precision: str, num_threads: int, rounds: int) -> float:
    """Operations a second of a square matrix product, by the fastest library at hand."""
    a, b, c = (torch.randn(size, size, device=device).to(_dtype(precision)) for _ in range(3))
    seconds = _best("torch.mm(a, b, out=c)", {"a": a, "b": b, "c": c}, num_threads, rounds)
    # MKL's product, which is torch.mm's on most CPUs, was seen at half the speed of oneDNN's, by which an LSTM runs.
    onednn = device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if onednn and precision == "float32":
        names: dict[str, Any] = {"linear": torch.nn.functional.linear, "x": a.to_mkldnn(), "w": b.to_mkldnn()}
        seconds = min(seconds, _best("linear(x, w)", names, num_threads, rounds))
    return 2 * size**3 / seconds


def _bandwidth(device: torch.device, nbytes: int, num_threads: int, rounds: int) -> float:
    """Bytes a second of the best of three ways to go through ``nbytes``: read, copy (1:1), and triad (2:1)."""
    size = max(nbytes // 4, 6)  # float32 numbers
    whole = torch.zeros(size, device=device)
    passes = max(1, 2**22 // nbytes)  # in one call, so that a small array does not measure the price of a call
    a, b = whole[: size // 2], whole[size // 2 : size // 2 * 2]
    p, q, r = whole[: size // 3], whole[size // 3 : size // 3 * 2], whole[size // 3 * 2 : size // 3 * 3]
    ways = {
        "w.sum(1)": ({"w": whole.expand(passes, size)}, 4 * size * passes),
        "a.copy_(b)": ({"a": a, "b": b}, 8 * len(a)),
        "torch.add(p, q, alpha=2.0, out=r)": ({"p": p, "q": q, "r": r}, 12 * len(p)),
    }
    return max(moved / _best(way, names, num_threads, rounds) for way, (names, moved) in ways.items())


def _best(statement: str, names: Mapping[str, Any], num_threads: int, rounds: int) -> float:
    """Seconds of the fastest of the rounds, each of about two milliseconds."""
    timer = Timer(statement, globals=dict(names), num_threads=num_threads)
    number = max(1, round(0.002 / timer.timeit(1).mean))
    return min(float(timer.timeit(number).mean) for _ in range(rounds))
