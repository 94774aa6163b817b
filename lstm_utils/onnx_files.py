"""ONNX files: run by ONNX Runtime, and quantized by it."""

from __future__ import annotations

import importlib
import math
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lstm_utils.arguments import require, require_flag, require_tensor
from lstm_utils.files import whole_file
from lstm_utils.onnx_trials import quiet


@dataclass(frozen=True)
class QuantizationReport:
    """A file that was quantized: LSTM nodes replaced and left, its bytes, the largest difference to the source."""

    path: Path
    replaced: int
    left: int
    nbytes: int
    max_error: float


def quantize_onnx(
    source: Path | str, target: Path | str, *, example: Sequence[Tensor] = (), per_channel: bool = False
) -> QuantizationReport:
    """Write a file with int8 weights, by ONNX Runtime's dynamic quantization, and never one in which no LSTM changed.

    The file is prepared first: ONNX Runtime replaces an LSTM only where its weights stand in the file as constants, and
    passes over any other in silence. Weights get 7 bits of the 8 (``reduce_range``), since processors without an int8
    dot product add pairs of products in 16 bits, which 8 would overflow.

    Args:
        source: a float file, from any exporter.
        target: of the new one. What stands there stays until the new file has run.
        example: inputs to compare both files on, in order: finite numbers, at least one in each. Made up from the
            declared shapes when left out.
        per_channel: one scale for each row of a weight instead of one for all.

    Raises:
        TypeError: a path is neither a text nor a path, ``example`` no list of tensors, or ``per_channel`` no bool.
        ValueError: ``source`` is damaged or no ONNX file, or the example does not fit its inputs.
        RuntimeError: no LSTM was replaced, or what the new file computes is not finite.
        FileNotFoundError: there is no ``source``, or no folder for ``target``.
        IsADirectoryError: ``target`` is a folder.
        ImportError: onnx or onnxruntime is missing.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    require("source", source, str | Path, "a path")
    require_flag("per_channel", per_channel)
    require("example", example, list | tuple, "a list of tensors")
    for number, tensor in enumerate(example):
        require_tensor(f"example[{number}]", tensor)
    onnx, quantization = load("onnx"), load("onnxruntime.quantization")
    prepare = load("onnxruntime.quantization.shape_inference").quant_pre_process
    if not Path(source).is_file():
        raise FileNotFoundError(f"there is no file {str(source)!r}")
    before = _read(source)
    takes = before.get_inputs()
    values = [tensor.detach().numpy() for tensor in example] or [_made_up(value) for value in takes]
    _check_values(source, takes, values)
    with whole_file(target) as half, tempfile.TemporaryDirectory() as folder:
        with quiet():
            prepare(str(source), ready := f"{folder}/ready.onnx")
            quantization.quantize_dynamic(ready, str(half), per_channel=per_channel, reduce_range=True)
        nodes = Counter(node.op_type for node in onnx.load(half).graph.node)
        if not (replaced := nodes["DynamicQuantizeLSTM"]):
            found = f"no LSTM in {str(source)!r} was quantized; it has {nodes['LSTM']} LSTM nodes"
            raise RuntimeError(f"{found}, whose weights must be float32 constants, as export_onnx writes them")
        feed = {value.name: array for value, array in zip(takes, values, strict=True)}
        runs = zip(before.run(None, feed), session(str(half)).run(None, feed), strict=True)
        with np.errstate(invalid="ignore"):
            error = max(float(np.abs(new - old).max()) for old, new in runs)
        if not math.isfinite(error):
            raise RuntimeError(f"quantized, {str(source)!r} computes numbers that are not finite")
        nbytes = half.stat().st_size
    return QuantizationReport(Path(target), replaced, nodes["LSTM"], nbytes, error)


def _read(source: Path | str) -> Any:
    onnx = load("onnx")
    try:
        onnx.checker.check_model(onnx.load(source), full_check=True)
        return session(str(source))
    except Exception as error:  # protobuf, the checker and ONNX Runtime have no common one
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{str(source)!r} cannot be read as ONNX ({first}); export it again") from error


def _check_values(source: Path | str, takes: list[Any], values: list[Any]) -> None:
    """Refuse what the source does not take, and what proves nothing; on a batch of no rows the runtime would abort."""
    wanted = ", ".join(f"{value.name} {value.type} {tuple(value.shape)}" for value in takes)
    names = {"float32": "float", "float64": "double"}  # the others are called the same
    shapes = [(str(array.dtype), array.shape) for array in values]
    fits = len(values) == len(takes) and all(
        f"tensor({names.get(array.dtype.name, array.dtype.name)})" == value.type
        and array.ndim == len(value.shape)
        and all(size == axis or not isinstance(axis, int) for size, axis in zip(array.shape, value.shape, strict=True))
        for array, value in zip(values, takes, strict=False)
    )
    if not fits or not all(array.size for array in values):
        raise ValueError(f"{str(source)!r} takes {wanted}, with at least one number in each; got {shapes}")
    for value, array in zip(takes, values, strict=True):
        if not np.isfinite(array).all():
            raise ValueError(f"the example {value.name} must be finite, got {array[~np.isfinite(array)][0]}")


def load(name: str) -> Any:
    """A package of the extra ``notebooks``; an ImportError names the extra."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from its import on, ONNX Runtime sends messages otherwise
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'{name} is missing: pip install "lstm-utils[notebooks]"') from error


def session(file: str | bytes) -> Any:
    """A file, or its content, ready to run on one thread."""
    onnxruntime = load("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised; the log would say it a second time
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _made_up(value: Any) -> Any:
    """An input for a file whose author is not there: normal numbers, and ones for tokens and lengths."""
    shape = [size if isinstance(size, int) else 3 for size in value.shape]
    numbers = np.random.default_rng(0).normal(size=shape) if value.type == "tensor(float)" else np.ones(shape)
    return numbers.astype(np.float32 if value.type == "tensor(float)" else np.int64)
