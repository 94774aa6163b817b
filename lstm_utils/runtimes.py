"""One ``nn.LSTM`` in every runtime that can run it here, each ready to be timed; and the reason where one cannot.

A runtime is prepared as it would be deployed: an artefact is written, and loaded again.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lstm_utils import other_runtimes, torch_runtimes
from lstm_utils.arguments import at_least, require, require_tensor
from lstm_utils.torch_runtimes import Artefact, Order, UnavailableError, operators

__all__ = ["RUNTIMES", "NotRun", "Runtime", "cold_start", "operators", "prepare"]

# Name → precision of the weights, and what builds it.
RUNTIMES: Mapping[str, tuple[str, Callable[..., Artefact]]] = {
    "eager fp32": ("float32", partial(torch_runtimes.build_torch, inference=False)),
    "inference_mode fp32": ("float32", torch_runtimes.build_torch),
    "eager bf16": ("bfloat16", partial(torch_runtimes.build_torch, dtype=torch.bfloat16)),
    "torch int8": ("int8", torch_runtimes.build_int8),
    "torch.compile fp32": ("float32", torch_runtimes.build_compiled),
    "AOTInductor fp32": ("float32", torch_runtimes.build_package),
    "ONNX Runtime fp32": ("float32", other_runtimes.build_onnx),
    "ONNX Runtime int8": ("int8", partial(other_runtimes.build_onnx, int8=True)),
    "OpenVINO fp32": ("float32", other_runtimes.build_openvino),
    "OpenVINO bf16": ("bfloat16", partial(other_runtimes.build_openvino, precision="bf16")),
}


@dataclass(frozen=True)
class Runtime:
    """A prepared runtime.

    Args:
        name: a key of ``RUNTIMES``.
        precision: of the weights: "float32", "bfloat16" or "int8". Input and output are float32 in all of them.
        kernel: what does the work, as the runtime itself names it.
        nbytes: of the artefact, on disk.
        build_seconds: export, conversion or compilation, and a first call; no part of a cold start.
        call: x (T, N, I) → output (T, N, D·H_out).
        shape: the only shape of x that ``call`` takes; None where batch and time are free.
        program: source for a fresh process, which loads the artefact, calls it once and prints "ready".
    """

    name: str
    precision: str
    kernel: str
    nbytes: int
    build_seconds: float
    call: Callable[[Tensor], Tensor]
    shape: tuple[int, ...] | None
    program: str


@dataclass(frozen=True)
class NotRun:
    """A runtime that cannot run the LSTM here, and why."""

    name: str
    reason: str


def prepare(name: str, lstm: nn.LSTM, example: Tensor, folder: Path | str, num_threads: int = 1) -> Runtime | NotRun:
    """Bring an LSTM into a runtime, and run it once.

    Args:
        name: a key of ``RUNTIMES``.
        lstm: time first, float32 and in evaluation mode; stays as it is.
        example: (T, N, I), on the LSTM's device.
        folder: an existing one, where the artefact stays as long as the runtime is used; one for each runtime.
        num_threads: for the runtimes that have threads of their own. Those of PyTorch are set where it is called.

    Returns:
        the runtime; or, as :class:`NotRun`, what is missing here or why the runtime refuses this LSTM.

    Raises:
        KeyError: there is no such runtime.
        TypeError: the example is no tensor, or ``folder`` neither a text nor a path.
        ValueError: the LSTM or the example is another than described, or ``num_threads`` no integer of at least 1.
        FileNotFoundError: there is no such folder.
    """
    require_tensor("example", example)
    require("folder", folder, str | Path, "a path")
    at_least("num_threads", num_threads, 1)
    if name not in tuple(RUNTIMES):
        raise KeyError(f"no runtime {name!r}; the known ones are {', '.join(RUNTIMES)}")
    if not isinstance(lstm, nn.LSTM) or lstm.batch_first or lstm.training or lstm.weight_ih_l0.dtype != torch.float32:
        raise ValueError(f"expected a float32 nn.LSTM, time first and in eval mode, got {lstm}")
    if example.dim() != 3 or example.shape[2] != lstm.input_size or not example.numel():
        raise ValueError(f"expected an example of shape (T, N, {lstm.input_size}), got {tuple(example.shape)}")
    if example.dtype != torch.float32:
        raise ValueError(f"expected an example of float32, as the LSTM is, got {example.dtype}")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"the folder {str(folder)!r} does not exist; create it, or name another")
    precision, build = RUNTIMES[name]
    start = time.perf_counter()
    try:
        with _silence():
            made = build(Order(copy.deepcopy(lstm), example, Path(folder), num_threads))
            loaded = made.load(**made.arguments)
            call = partial(_called, loaded, made)
            call(example)
            seconds = time.perf_counter() - start
            kernel = made.kernel(loaded)
    except Exception as error:  # whatever stops a runtime is the reason that is reported
        return NotRun(name, _one_line(error, Path(folder)))
    nbytes = sum(path.stat().st_size for path in made.files)
    program = _program(made, tuple(example.shape), num_threads)
    return Runtime(name, precision, kernel, nbytes, seconds, call, made.shape, program)


def cold_start(runtime: Runtime, rounds: int = 3) -> float:
    """Seconds from starting a fresh Python process to the first result: imports, loading, a call. Median of rounds.

    Raises:
        TypeError: it is no runtime that :func:`prepare` made.
        ValueError: ``rounds`` is no integer of at least 1.
        RuntimeError: the process failed; the message ends with its error.
    """
    require("runtime", runtime, Runtime, "a Runtime, as prepare returns it where it runs")
    at_least("rounds", rounds, 1)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        command = [sys.executable, "-c", runtime.program]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            ready = process.stdout.readline() == "ready\n"
            seconds.append(time.perf_counter() - start)  # without the time that the process takes to end
            errors = process.stderr.read()
        if not ready:
            reason = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
            raise RuntimeError(f"the fresh process of {runtime.name!r} failed: {reason}")
    return statistics.median(seconds)


def _called(loaded: Callable[[Any], Any], made: Artefact, x: Tensor) -> Tensor:
    """Call with a tensor whatever was loaded; a shape that it would be silently wrong at is refused."""
    if made.shape is not None and tuple(x.shape) != made.shape:
        raise ValueError(f"this artefact takes inputs of shape {made.shape} alone, got {tuple(x.shape)}")
    return torch.from_numpy(loaded(x.numpy())) if made.numpy else loaded(x)


def _program(made: Artefact, shape: tuple[int, ...], num_threads: int) -> str:
    """The loader's own source, and one call."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in made.arguments.items())
    device = made.arguments.get("device", "cpu")
    if made.numpy:
        example = f"import numpy\nx = numpy.zeros({shape}, numpy.float32)"
    else:
        example = f"import torch\ntorch.set_num_threads({num_threads})\nx = torch.zeros({shape}, device={device!r})"
    lines = [
        "from __future__ import annotations",
        "import warnings",
        "warnings.simplefilter('ignore')",
        inspect.getsource(made.load),
        *example.split("\n"),
        f"{made.load.__name__}({arguments})(x)[0, 0, 0].item()",  # which waits for a GPU
        "print('ready', flush=True)",
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No warnings and no log lines: exporters and compilers have many, and none of them is a reason to stop."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _one_line(error: Exception, folder: Path) -> str:
    """An error as a reason that can be stored: its first line, without the paths of this machine."""
    text = str(error).strip().partition("\n")[0].replace(str(folder), "…")
    text = re.sub(r"(?:[A-Za-z]:)?(?:[/\\][\w.+-]+){2,}", "…", text)
    kind = "" if isinstance(error, UnavailableError) else f"{type(error).__name__}: "
    if "CppCompileError" in text and " " in torch.__file__:
        text += "; torch hands the compiler its own folder without quotes, and there is a space in that"
    return f"{kind}{text}"[:300]
