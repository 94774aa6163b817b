"""How a model is called in a file: its inputs in a row, each with a name and with names for its free axes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lstm_utils.arguments import require, require_tensor
from lstm_utils.onnx_trials import LENGTHS, Axes
from lstm_utils.projection import FoldedProjection
from lstm_utils.sequences import run_packed
from lstm_utils.spec import LSTMSpec


def as_in_file(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    dynamic: Sequence[Axes] | None,
    states: bool,
    lengths: bool,
    output_names: Sequence[str],
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Axes], Sequence[str]]:
    """What to call, its inputs and their axes by name, and the names of its outputs; arguments as ``export_onnx``."""
    if isinstance(model, nn.LSTM | FoldedProjection):
        return *_flat(model, example, dynamic, states, lengths), output_names or ("output", "h_n", "c_n")
    if states or lengths:
        got = f"got states={states} and lengths={lengths}"
        raise ValueError(f"both are for an LSTM alone, and a model takes them as arguments of its forward; {got}")
    return model, *_named(model, example, dynamic), output_names


class _Flat(nn.Module):
    """An LSTM called as a file is: its lengths and states are inputs like any other."""

    def __init__(self, lstm: nn.LSTM | FoldedProjection, lengths: bool) -> None:
        super().__init__()
        self.lstm, self.lengths = lstm, lengths
        self.eval()  # as the LSTM is: the exporter puts every mode back as it finds it here

    def forward(self, input: Tensor, *more: Tensor) -> Any:
        hx = (more[-2], more[-1]) if len(more) > 1 else None
        return run_packed(cast("nn.LSTM", self.lstm), input, more[0], hx) if self.lengths else self.lstm(input, hx)


def _flat(
    lstm: nn.LSTM | FoldedProjection, example: Any, dynamic: Any, states: bool, lengths: bool
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Axes]]:
    """What to call for an LSTM, its inputs by name, and their axes."""
    if not isinstance(example, Tensor) or example.dim() != 3 or dynamic is not None:
        got = f"a {type(example).__name__} of shape {tuple(getattr(example, 'shape', ()))}, dynamic={dynamic!r}"
        wants = "an LSTM takes one padded 3-D batch as its example, and frees both batch and time"
        raise ValueError(f"{wants}; states=True and lengths=True add inputs. Got {got}")
    spec = LSTMSpec.from_module(cast("nn.LSTM", lstm))
    layout = ("N", "T") if lstm.batch_first else ("T", "N")
    sizes = dict(zip(layout, example.shape, strict=False))
    inputs: dict[str, Tensor] = {"input": example}
    axes: dict[str, Axes] = {"input": layout}
    if lengths:
        inputs[LENGTHS], axes[LENGTHS] = torch.full((sizes["N"],), sizes["T"]), LENGTHS
    if states:
        for name, shape in zip(("h_0", "c_0"), spec.shapes(sizes["T"], sizes["N"])[2:], strict=True):
            values = torch.linspace(-1, 1, math.prod(shape), dtype=example.dtype)
            inputs[name], axes[name] = values.view(shape), (None, "N")
    return _Flat(lstm, lengths), inputs, axes


def _named(model: nn.Module, example: Any, dynamic: Any) -> tuple[dict[str, Tensor], dict[str, Axes]]:
    """A model's inputs by name, and their axes."""
    require("example", example, Tensor | list | tuple, "a tensor, or a list of those that forward takes")
    tensors = [example] if isinstance(example, Tensor) else list(example)
    for number, tensor in enumerate(tensors):
        require_tensor(f"example[{number}]", tensor)
    layouts = {module.batch_first for module in model.modules() if isinstance(module, nn.LSTM)}
    if dynamic is None and len(tensors) == len(layouts) == 1:
        dynamic = [("N", "T") if layouts == {True} else ("T", "N")]
    require("dynamic", dynamic, list | tuple | None, "the axes of each input in a list")
    names = list(inspect.signature(model.forward).parameters)[: len(tensors)]
    if dynamic is None or not len(dynamic) == len(tensors) == len(names):
        wants = (
            'dynamic needs the free axes of every input, such as [("N", "T"), "lengths"], and forward a name for each'
        )
        raise ValueError(f"{wants}; got {dynamic!r} for {len(tensors)} inputs, of which forward names {names}")
    return dict(zip(names, tensors, strict=True)), dict(zip(names, dynamic, strict=True))
