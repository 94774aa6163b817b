"""PyTorch's own ways to run one ``nn.LSTM``: what each writes, and how it loads that again.

A function ``load_…`` imports what it needs and nothing else, so that its source, run in a fresh Python process, is a
cold start. A function ``build_…`` raises when it cannot do its work; :mod:`lstm_utils.runtimes` reports the reason.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_utils.arguments import require_callable
from lstm_utils.roofline import has_bfloat16
from lstm_utils.spec import LSTMSpec

Call = Callable[[Any], Any]


class UnavailableError(RuntimeError):
    """Something that a runtime needs is missing here; the message says what."""


@dataclass(frozen=True)
class Order:
    """What is to be built: an LSTM, an input (T, N, I), where files may be written, and how many threads."""

    lstm: nn.LSTM
    x: Tensor
    folder: Path
    num_threads: int

    @property
    def device(self) -> torch.device:
        """Where the LSTM is."""
        return next(self.lstm.parameters()).device

    def refuse_gpu(self) -> None:
        """For runtimes that this book uses on the CPU alone."""
        if self.device.type != "cpu":
            raise UnavailableError(f"here it runs on the CPU alone, and the LSTM is on {self.device}")


@dataclass(frozen=True)
class Artefact:
    """What a builder leaves.

    Args:
        files: what would be shipped.
        load: a self-contained function.
        arguments: what it is called with; plain values.
        kernel: from what ``load`` returned to the name of what does the work.
        numpy: whether what ``load`` returned takes and gives NumPy arrays; otherwise tensors.
        shape: the only shape of the input that it takes; None where batch and time are free.
    """

    files: tuple[Path, ...]
    load: Callable[..., Call]
    arguments: Mapping[str, Any]
    kernel: Callable[[Call], str]
    numpy: bool = False
    shape: tuple[int, ...] | None = None


def operators(call: Callable[[], object]) -> str:
    """The operators of PyTorch that do the work of a call: "1 × mkldnn_rnn_layer", or "33 × addmm" for a loop.

    Fused layers and matrix products are named, element-wise work is not.

    Raises:
        TypeError: ``call`` cannot be called.
    """
    require_callable("call", call)
    with _Operators() as seen:
        call()
    return listed(seen.names)


class _Operators(TorchDispatchMode):
    """Notes every operator that runs inside a ``with`` block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def listed(names: Iterable[str]) -> str:
    """Those of the names that stand for a fused layer or a matrix product, with how often each occurs."""
    products = Counter(name for name in names if re.search(r"rnn|lstm|mm\b", name, re.IGNORECASE))
    return ", ".join(f"{count} × {name.lstrip('_')}" for name, count in products.items()) or "no known kernel"


def load_torch(path: str, device: str, inference: bool) -> Any:
    """A module, called as it is or in inference mode."""
    import torch

    saved = torch.load(path, weights_only=True, map_location=device)
    dtype = saved["state"]["weight_ih_l0"].dtype
    lstm = torch.nn.LSTM(**saved["arguments"], device=device, dtype=dtype).eval()
    lstm.load_state_dict(saved["state"])

    def infer(x: Any) -> Any:
        with torch.inference_mode():
            return lstm(x.to(dtype))[0].float()

    return infer if inference else lambda x: lstm(x)[0]


def _save(order: Order, dtype: torch.dtype = torch.float32) -> Path:
    """Arguments and weights of the LSTM as one file of plain values and tensors."""
    path = order.folder / "lstm.pt"
    state = {name: tensor.to(dtype) for name, tensor in order.lstm.state_dict().items()}
    torch.save({"arguments": LSTMSpec.from_module(order.lstm).as_dict(), "state": state}, path)
    return path


def build_torch(order: Order, inference: bool = True, dtype: torch.dtype = torch.float32) -> Artefact:
    """PyTorch as it is."""
    if dtype == torch.bfloat16 and not has_bfloat16(order.device):
        raise UnavailableError(f"this {order.device.type} has no bfloat16 arithmetic; PyTorch would emulate it")
    path = _save(order, dtype)
    arguments = {"path": str(path), "device": str(order.device), "inference": inference}

    def kernel(_: Call) -> str:
        # In inference mode a dispatch mode sees the whole LSTM as one operator; without gradients, what is in it.
        lstm = load_torch(str(path), str(order.device), inference=False)
        with torch.set_grad_enabled(not inference):
            return operators(lambda: lstm(order.x.to(dtype)))

    return Artefact((path,), load_torch, arguments, kernel)


def load_int8(path: str) -> Any:
    """A quantized module. Its state is more than tensors, so this is a pickle: load your own files alone."""
    import torch

    lstm = torch.load(path, weights_only=False)

    def infer(x: Any) -> Any:
        with torch.inference_mode():
            return lstm(x)[0]

    return infer


def build_int8(order: Order) -> Artefact:
    """PyTorch's dynamic quantization, as in chapter 12."""
    from lstm_utils.quantization import quantize_lstm

    order.refuse_gpu()
    path = order.folder / "int8.pt"
    torch.save(quantize_lstm(order.lstm), path)
    return Artefact((path,), load_int8, {"path": str(path)}, lambda call: operators(lambda: call(order.x)))


def load_compiled(path: str, cache: str) -> Any:
    """A module behind torch.compile, which keeps what it compiled in the folder ``cache``."""
    import os
    from unittest.mock import patch

    import torch
    import torch._dynamo
    import torch._inductor.config

    saved = torch.load(path, weights_only=True)
    lstm = torch.nn.LSTM(**saved["arguments"]).eval()
    lstm.load_state_dict(saved["state"])
    compiled = torch.compile(lstm, fullgraph=True, dynamic=True)

    def infer(x: Any) -> Any:
        with torch.inference_mode():
            try:
                return compiled(x)[0]
            except torch._dynamo.exc.Unsupported:  # nothing is compiled for this kind of shape yet
                here = patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache)
                alone = torch._inductor.config.patch(compile_threads=1)  # no pool of processes that outlives the call
                with here, alone, torch._dynamo.config.patch(allow_rnn=True):
                    return compiled(x)[0]

    return infer


def build_compiled(order: Order) -> Artefact:
    """torch.compile, with the switch that lets it look into an nn.LSTM."""
    order.refuse_gpu()
    path, cache = _save(order), order.folder / "inductor"

    def kernel(_: Call) -> str:
        texts = [file.read_text(encoding="utf-8") for file in sorted(cache.rglob("*.py"))]
        return listed(re.findall(r"(?:torch\.ops\.\w+|extern_kernels)\.(\w+)(?:\.default)?\(", "\n".join(texts)))

    return Artefact((path,), load_compiled, {"path": str(path), "cache": str(cache)}, kernel)


def load_package(path: str) -> Any:
    """Machine code that AOTInductor compiled."""
    import torch

    package = torch._inductor.aoti_load_package(path)

    def infer(x: Any) -> Any:
        with torch.inference_mode():
            return package(x)[0]

    return infer


def build_package(order: Order) -> Artefact:
    """torch.export and AOTInductor, for one shape: the machine code checks none, and is wrong at others."""
    import os
    from unittest.mock import patch

    order.refuse_gpu()
    path = order.folder / "lstm.pt2"
    with torch.no_grad(), patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(order.folder / "inductor")):
        exported = torch.export.export(order.lstm, (order.x,))
        torch._inductor.aoti_compile_and_package(exported, package_path=str(path))

    def kernel(_: Call) -> str:
        with zipfile.ZipFile(path) as package:
            sources = [package.read(name).decode() for name in package.namelist() if name.endswith("wrapper.cpp")]
        return listed(re.findall(r"aoti_torch_cpu_(\w+?)(?:_out)?\(", "\n".join(sources)))

    return Artefact((path,), load_package, {"path": str(path)}, kernel, shape=tuple(order.x.shape))
