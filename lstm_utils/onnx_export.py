"""LSTMs as ONNX files that take any batch and any length: exported, then checked before they are put in place.

Underneath works the older of PyTorch's two exporters, ``torch.onnx.export(dynamo=False)``. It is deprecated; it is also
the one that was right at every size wherever it wrote a file (chapter 13 has the table), while the newer one fixes the
steps. What guards a file is not that choice but the check: the same inputs, at several sizes, in PyTorch and in ONNX
Runtime.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lstm_utils.arguments import positive, require, require_flag, require_module
from lstm_utils.files import write_whole
from lstm_utils.onnx_calls import as_in_file
from lstm_utils.onnx_files import QuantizationReport, load, quantize_onnx, session
from lstm_utils.onnx_trials import Axes, Shape, Trial, compare, free_shape, quiet, run_trials

__all__ = ["ExportReport", "QuantizationReport", "export_onnx", "quantize_onnx"]


@dataclass(frozen=True)
class ExportReport:
    """A file that passed.

    Args:
        path: of the file.
        inputs: shape by name; a free axis has a name in place of a size.
        outputs: the same.
        nodes: how many of each operator.
        checked: the sizes at which ONNX Runtime gave what PyTorch gives.
        max_error: the largest difference there, relative to 1 + |value|.
        nbytes: of the file.
    """

    path: Path
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    nodes: Mapping[str, int]
    checked: tuple[str, ...]
    max_error: float
    nbytes: int


def export_onnx(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: Path | str,
    *,
    dynamic: Sequence[Axes] | None = None,
    states: bool = False,
    lengths: bool = False,
    output_names: Sequence[str] = (),
    tolerance: float = 1e-4,
) -> ExportReport:
    """Write one ONNX file, once it gives what PyTorch gives: at the example's sizes and at several others.

    Args:
        model: an ``nn.LSTM`` (or a ``FoldedProjection``), or a model that contains some; on the CPU, in eval mode.
        example: for an LSTM its padded 3-D batch. For a model the tensors that ``forward`` takes; inputs of other
            sizes are drawn from their values, so that tokens stay in the vocabulary.
        path: of the file. What stands there stays until the new file has passed.
        dynamic: for a model, the free axes of each input: ``("N", "T")`` for tokens (N, T) or features (N, T, I),
            ``("T", "N")`` for time first, ``(None, "N")`` for states, ``"lengths"`` for N integers from 1 to T. Left
            out, a single input begins with batch and time, as the LSTMs' ``batch_first`` says.
        states: for an LSTM, take h_0 and c_0 as inputs: a stream can then be run piece by piece.
        lengths: for an LSTM, take the rows' lengths as an input, as ``run_packed`` does: padding is not read.
        output_names: one for each output, nested ones flattened. Left out, an LSTM's are output, h_n, c_n.
        tolerance: the largest difference allowed, relative to 1 + |value|; float16 needs more.

    Raises:
        TypeError: the model holds no ``nn.LSTM`` or returns other things than tensors, or an argument has another type.
        ValueError: the model cannot be exported (training mode, projection, float64, a GPU), or the arguments do not
            fit; the message says what would do.
        RuntimeError: the exporter failed, or the file computes something other than the model.
        FileNotFoundError: the folder of ``path`` does not exist.
        IsADirectoryError: ``path`` is a folder.
        ImportError: onnx or onnxruntime is missing.

    Source: https://onnx.ai/onnx/operators/onnx__LSTM.html
    """
    require_module("model", model)
    require("path", path, str | Path, "a path")
    require_flag("states", states)
    require_flag("lengths", lengths)
    positive("tolerance", tolerance)
    require("output_names", output_names, list | tuple, "a list of names")
    for number, name in enumerate(output_names):
        require(f"output_names[{number}]", name, str, "a name")
    onnx, path = load("onnx"), Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(path.parent)!r} does not exist; create it, or name another")
    _refuse(model)
    model, inputs, axes, output_names = as_in_file(model, example, dynamic, states, lengths, output_names)
    trials = run_trials(model, inputs, axes, output_names)
    if len({trial.layers for trial in trials}) > 1:
        found = "; ".join(f"{trial.layers} at {trial}" for trial in trials)
        raise ValueError(f"how many LSTM layers run depends on the sizes ({found}), and a file has a fixed number")
    takes = {name: free_shape(trials, "inputs", name) for name in inputs}
    gives = {name: free_shape(trials, "outputs", name) for name in trials[0].outputs}
    content = _exported(model, trials[0], takes | gives)
    graph = onnx.load_model_from_string(content)
    onnx.checker.check_model(graph, full_check=True)
    declared = {value.name: _declared(value) for value in (*graph.graph.input, *graph.graph.output)}
    if dropped := [name for name in takes if name not in declared]:
        raise RuntimeError(f"the file has no input {dropped[0]!r}, which forward does not use; leave it out")
    nodes = Counter(node.op_type for node in graph.graph.node)
    if nodes["LSTM"] != trials[0].layers:
        ran = f"the file has {nodes['LSTM']} LSTM nodes, and {trials[0].layers} layers ran"
        raise RuntimeError(f"{ran}; a layer whose result is not used is cut away, so take it out of the model")
    running = session(content)
    worst = max(compare(partial(running.run, None), trial, tolerance) for trial in trials)
    if declared != takes | gives:
        raise RuntimeError(f"the file declares the shapes {declared}, and the model's are {takes | gives}")
    write_whole(path, content)
    return ExportReport(path, takes, gives, dict(nodes), tuple(map(str, trials)), worst, len(content))


def _refuse(model: nn.Module) -> None:
    """Raise for what cannot be exported, with what to do instead."""
    lstms = [module for module in model.modules() if isinstance(module, nn.LSTM)]
    tensors = [*model.parameters(), *model.buffers()]
    if not lstms:
        by_hand = "a loop over time written by hand would be unrolled, for one length"
        raise TypeError(f"there is no nn.LSTM in {type(model).__name__}; {by_hand}")
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode, and a file computes as in eval mode; call model.eval() first")
    if sizes := [lstm.proj_size for lstm in lstms if lstm.proj_size]:
        cure = "put lstm_utils.projection.FoldedProjection(lstm) in its place, which gives the same results"
        raise ValueError(f"an nn.LSTM has proj_size={sizes[0]}, and ONNX's LSTM has no projection; {cure}")
    if devices := {str(tensor.device) for tensor in tensors} - {"cpu"}:
        raise ValueError(f"the model is on {min(devices)}, and is checked on the CPU; call model.cpu() first")
    types = {parameter.dtype for lstm in lstms for parameter in lstm.parameters()}
    if types := types - {torch.float32, torch.float16}:
        found = ", ".join(sorted(map(str, types)))
        raise ValueError(
            f"an nn.LSTM has weights of {found}, which ONNX Runtime's LSTM does not take; call model.float()"
        )
    if (nbytes := sum(tensor.nbytes for tensor in tensors)) >= 2**31:
        raise ValueError(f"the weights take {nbytes:,} bytes, and one ONNX file holds fewer than {2**31:,}")


def _declared(value: Any) -> Shape:
    return tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _exported(model: nn.Module, trial: Trial, shapes: dict[str, Shape]) -> bytes:
    free = {name: {k: axis for k, axis in enumerate(shape) if isinstance(axis, str)} for name, shape in shapes.items()}
    names = {"input_names": list(trial.inputs), "output_names": list(trial.outputs), "dynamic_axes": free}
    how: dict[str, Any] = {"f": (buffer := io.BytesIO()), "dynamo": False, **names}
    with quiet(), torch.no_grad():
        try:
            torch.onnx.export(model, tuple(trial.inputs.values()), **how)
        except Exception as error:
            first = str(error).partition("\n")[0]
            raise RuntimeError(f"torch.onnx.export failed, {type(error).__name__}: {first}") from error
    return buffer.getvalue()
