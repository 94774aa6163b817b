"""Dynamic quantization of an LSTM that refuses to do nothing, its size on disk, and the error that it makes."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lstm_utils.arguments import require, require_flag, require_module
from lstm_utils.trees import call_with, map_tensors, tensors

# What else torch quantizes dynamically to int8, by its own default.
OTHERS = (nn.Linear, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


class NothingQuantizedError(ValueError):
    """No LSTM was quantized, or one was left out: what came back would be the float model, or part of it."""


def quantize_lstm(
    model: nn.Module,
    dtype: torch.dtype = torch.qint8,
    *,
    also: Collection[type[nn.Module]] = (),
    per_channel: bool = False,
) -> nn.Module:
    """A copy of ``model``, in eval mode, in which every ``nn.LSTM`` is a dynamically quantized one; or an error.

    ``torch.ao.quantization.quantize_dynamic`` passes in silence over a bare ``nn.LSTM``, over a subclass, and over the
    second name of a module that a parent holds twice. Here the first and the last are quantized (a shared module stays
    shared), and what cannot be is refused before anything is converted.

    The operators behind it are deprecated, and torch 2.13 has no other for an LSTM; no warning repeats that here.

    The result runs on a CPU, has no gradients, and takes (T, N, I), (N, T, I) with ``batch_first`` or a
    PackedSequence, but no unbatched input. Its activations are quantized with one scale for all rows of a batch.

    Args:
        model: an ``nn.LSTM``, or a module that holds at least one; it is not changed.
        dtype: ``torch.qint8``; or ``torch.float16``, which computes with rounded weights and saves nothing on disk.
        also: other types to quantize on the way, such as ``(nn.Linear,)``.
        per_channel: a scale for each row of a weight matrix instead of one for the whole: a smaller error for 16 bytes
            a row on disk. For ``torch.qint8`` alone.

    Raises:
        TypeError: ``model`` is no module, ``also`` no tuple or list of types, or ``per_channel`` no bool.
        NothingQuantizedError: there is no ``nn.LSTM`` in the model, or torch left one as it was.
        ValueError: an LSTM has what the quantized one lacks (a projection, no biases, a subclass's own ways), or its
            parameters are not float32 on a CPU; a weight is nan, infinite or too large for float16; or ``dtype``,
            ``also`` and ``per_channel`` ask for what does not exist.
        RuntimeError: this build of torch has no engine for quantized operators.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.ao.nn.quantized.dynamic.LSTM.html
    """
    # Imported here: torch announces the removal of this package, and all the rest of lstm_utils does without it.
    from torch.ao import quantization as ao

    require_module("model", model)
    require_flag("per_channel", per_channel)
    require("also", also, Collection, "a tuple of types, such as (nn.Linear,)")
    _check_engine(dtype)
    mapping = ao.get_default_dynamic_quant_module_mappings()
    if unknown := [kind for kind in also if kind not in OTHERS]:
        known = ", ".join(kind.__name__ for kind in OTHERS)
        raise ValueError(f"also takes types of {known}; got {', '.join(map(repr, unknown))}")
    if per_channel and dtype != torch.qint8:
        raise ValueError(f"per_channel=True needs dtype=torch.qint8, whose weights have scales; got {dtype}")
    _check_lstms(model)
    _check_numbers(model, (nn.LSTM, *also), torch.finfo(dtype).max if dtype == torch.float16 else math.inf)
    config = ao.float16_dynamic_qconfig if dtype == torch.float16 else ao.default_dynamic_qconfig
    config = ao.per_channel_dynamic_qconfig if per_channel else config
    # Only what has a parent is replaced: so a bare LSTM gets one.
    holder = nn.Sequential(copy.deepcopy(model))
    swapped: dict[nn.Module, nn.Module] = {}
    for parent in list(holder.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would pass over a second name
            if type(child) is nn.LSTM or type(child) in also:
                assert child is not None
                if child not in swapped:
                    child.qconfig = config  # type: ignore[assignment]
                    with warnings.catch_warnings():  # see the docstring: said once by torch, to whoever comes first
                        warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor")
                        swapped[child] = ao.swap_module(child, mapping, {})  # type: ignore[no-untyped-call]
                setattr(parent, name, swapped[child])
    if left := [name for name, module in holder[0].named_modules() if isinstance(module, nn.LSTM)]:
        raise NothingQuantizedError(f"torch {torch.__version__} left {_names(left)} as it was, without an error")
    return holder[0].eval()


def _check_engine(dtype: torch.dtype) -> None:
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.qint8, torch.float16):
        cure = {torch.int8: "torch.qint8", torch.bfloat16: "model.bfloat16()"}
        hint = f"; {cure[dtype]} is what you may have meant" if isinstance(dtype, torch.dtype) and dtype in cure else ""
        raise ValueError(f"dtype must be torch.qint8 or torch.float16, got {dtype}{hint}")
    engine, supported = torch.backends.quantized.engine, torch.backends.quantized.supported_engines
    if engine == "none":
        choice = ", ".join(map(repr, supported)) or "none, so another build is needed"
        raise RuntimeError(f"torch.backends.quantized.engine is 'none'; this build of torch has {choice}")
    if dtype == torch.float16 and engine not in ("x86", "fbgemm"):
        raise ValueError(
            f"dtype=torch.float16 needs the engine 'x86' or 'fbgemm', got {engine!r} of {supported}; use torch.qint8"
        )


def _check_lstms(model: nn.Module) -> None:
    """Refuse a model without an ``nn.LSTM``, or with one that would fail later, or not at all and be wrong."""
    lstms = {name: module for name, module in model.named_modules() if isinstance(module, nn.LSTM)}
    if not lstms:
        held = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
        done = [name for name, module in model.named_modules() if "DynamicQuantizedLSTM" in module._get_name()]
        cure = f"{_names(done)} is quantized already" if done else "quantize the model that holds the nn.LSTM"
        raise NothingQuantizedError(f"there is no nn.LSTM in {type(model).__name__}, only {', '.join(held)}; {cure}")
    for name, lstm in lstms.items():
        which, kind = _names([name]), type(lstm).__name__
        if type(lstm) is not nn.LSTM:
            cure = "copy its weights into one with load_state_dict (after removing parametrizations)"
            raise ValueError(f"{which} is of type {kind}, and only nn.LSTM itself is quantized; {cure}")
        if lstm.proj_size:
            cure = "lstm_utils.projection.FoldedProjection(lstm) computes the same without one"
            raise ValueError(f"{which} has proj_size={lstm.proj_size}, which quantized LSTMs do not know; {cure}")
        if not lstm.bias:
            cure = "build it with bias=True, load these weights with strict=False and set its biases to 0"
            raise ValueError(f"{which} has bias=False, and a quantized LSTM needs biases; {cure}")
        for parameter in lstm.parameters():
            if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
                got = f"{str(parameter.dtype).removeprefix('torch.')} on {parameter.device}"
                raise ValueError(f"{which} has parameters of {got}, and needs float32 on cpu: model.cpu().float()")


def _check_numbers(model: nn.Module, kinds: tuple[type[nn.Module], ...], most: float) -> None:
    """Refuse numbers that have no quantized counterpart; torch takes nan for some number, in silence."""
    for name, module in model.named_modules():
        for parameter, values in module.named_parameters(recurse=False) if isinstance(module, kinds) else ():
            if not bool((fits := values.isfinite() & (values.abs() <= most)).all()):
                limit = "finite" if math.isinf(most) else f"finite, and at most {most:g} in size for torch.float16"
                raise ValueError(f"{parameter} of {_names([name])} must be {limit}, got {values[~fits][0].item():g}")


def _names(names: list[str]) -> str:
    return ", ".join(repr(name) if name else "the model itself" for name in names)


def saved_size(model: nn.Module) -> int:
    """Bytes of the model's state dict as ``torch.save`` writes it: the parameters, and some hundred bytes for each.

    Raises:
        TypeError: ``model`` is no module.
    """
    require_module("model", model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes


@dataclass(frozen=True)
class ErrorReport:
    """How far the results of a quantized model are from those of the float one.

    Args:
        max_abs: the largest difference of one number.
        mean_abs: the mean of the absolute differences.
        relative: the root of the mean squared difference, over the standard deviation of the float results; 0 where
            there is no difference.
    """

    max_abs: float
    mean_abs: float
    relative: float


@torch.no_grad()
def error_report(model: nn.Module, quantized: nn.Module, inputs: Any) -> ErrorReport:
    """Compare two models on the same inputs; for a nan or an infinity in either, the report has it too.

    Args:
        model: the float one.
        quantized: its quantized copy, or one in another dtype (``.half()``, ``.bfloat16()``).
        inputs: a tensor, a PackedSequence, or a tuple or mapping of arguments. Floats are cast to the dtype of each
            model's parameters; an int8 LSTM has none, and takes float32.

    Returns:
        the differences over all numbers that come back: for an LSTM ``output``, ``h_n`` and ``c_n`` together.

    Raises:
        TypeError: one of them is no module.
        ValueError: a model is in training mode, or they return no numbers, or tensors of different shapes.
    """
    for name, module in (("model", model), ("quantized", quantized)):
        require_module(name, module)
    if model.training or quantized.training:
        raise ValueError("dropout would be taken for an error: call .eval() on both models")
    expected, found = (tensors(call_with(m, _cast(inputs, m))) for m in (model, quantized))
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (expected, found)]
    if not sum(map(Tensor.numel, expected)):
        raise ValueError(f"there is nothing to compare: the float model returns tensors of {shapes[0]}")
    if shapes[0] != shapes[1]:
        raise ValueError(f"the float model returns tensors of {shapes[0]}, the quantized one of {shapes[1]}")
    truth, guess = (torch.cat([tensor.double().flatten() for tensor in side]) for side in (expected, found))
    off = (guess - truth).abs()
    spread = truth.std(correction=0)
    relative = (off.square().mean().sqrt() / spread).item() if bool(off.any()) else 0.0  # not 0/0 for a constant
    return ErrorReport(off.max().item(), off.mean().item(), relative)


def _cast(inputs: Any, model: nn.Module) -> Any:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return map_tensors(inputs, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
