"""Every public function, given one wrong argument at a time: refused by a documented error that says what it got.

An entry of ``TABLE`` is a call that works, and for each argument what must not. Three things are asked of a refusal:
its type stands under ``Raises`` in the docstring, a ``raise`` of lstm_utils gave it (so it is no accident further
down), and its message quotes the value. No refusal at all is a silent wrong answer. Input that is valid and extreme
(empty, nan, huge, in half precision) is in ``tests/test_extremes.py``.

Public is what ``lstm_utils.__all__`` names, and what a chapter imports.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import linecache
import math
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from checks import NOTEBOOKS, ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from records import record
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import lstm_utils
from lstm_utils import (
    checkpointing,
    claims,
    ctc,
    datasets,
    diagnose,
    diagrams,
    exercises,
    files,
    gradients,
    initialization,
    measure,
    models,
    onnx_export,
    pitfalls,
    plotting,
    projection,
    quantization,
    reference,
    regularization,
    report,
    results,
    roofline,
    runtimes,
    sequences,
    spec,
    speech,
    training,
)

matplotlib.use("Agg")

T, N, I, H = 4, 3, 2, 6  # noqa: E741

# --- what is wrong ----------------------------------------------------------------------------------------------------

NO_NUMBERS = st.sampled_from([None, "", "1", b"1", [], [1], {}, ..., 1j, object, np.zeros(2)])
NO_TENSORS = st.sampled_from([None, 0, 1.5, "x", [[1.0]], (1, 2), np.zeros((2, 2)), object()])
NO_MODULES = st.sampled_from([None, 3, "lstm", nn.LSTM, {}, torch.zeros(2), iter(())])
NO_LSTMS = st.one_of(NO_MODULES, st.sampled_from([nn.Linear(2, 2), nn.GRU(2, 2), nn.LSTMCell(2, 2)]))
NO_CALLABLES = st.sampled_from([None, True, 3, "f", (1, 2), torch.zeros(1)])
NO_FLAGS = st.sampled_from([None, 0, 1, 0.0, "False", "", [], np.bool_(True), torch.tensor(True)])
NO_NAMES = st.sampled_from([None, 3, 1.5, "", "nope", b"last", [], ("last",), math.nan])
NO_TEXTS = st.sampled_from([None, 3, 1.5, b"text", ["a"], math.nan])
NO_DTYPES = st.sampled_from([None, "float32", 4, np.float32, float, torch.zeros(1), []])
NO_DEVICES = st.sampled_from([None, 3, 1.5, "", "gpu", "cpu:x", "cuda:-1", "cuda:99", b"cpu", ["cpu"]])
NO_SPECS = st.sampled_from([None, 3, "lstm", {}, nn.LSTM(2, 3), spec.LSTMSpec, spec.LSTMSpec(2, 3).shapes(4)])
SHARES = st.one_of(NO_NUMBERS, st.booleans(), st.floats(max_value=-1e-9), st.floats(min_value=1.0, exclude_min=True))
NO_SHARES = st.one_of(SHARES, st.just(math.nan))


def no_ints(least: int, most: int | None = None) -> st.SearchStrategy[Any]:
    """Everything but an integer from ``least`` on; floats that equal one are wrong too."""
    wrong = [NO_NUMBERS, st.booleans(), st.integers(max_value=least - 1), st.floats()]
    return st.one_of(*wrong, *([] if most is None else [st.integers(min_value=most + 1)]))


def no_positives(inf: bool = False) -> st.SearchStrategy[Any]:
    return st.one_of(NO_NUMBERS, st.booleans(), st.floats(max_value=0), st.sampled_from([math.nan] + [math.inf] * inf))


def other_ranks(*ranks: int, size: int = 2) -> st.SearchStrategy[Tensor]:
    return st.sampled_from([torch.ones((size,) * rank) for rank in range(6) if rank not in ranks])


def no_lengths(rows: int, steps: int | None = None) -> st.SearchStrategy[Any]:
    """Lengths of the wrong kind, number or size, as lists, tensors and arrays."""
    kinds: list[Any] = [None, "123", 3, {}, [None] * rows, [[1] * rows], [1.0] * rows, [True] * rows, [math.nan] * rows]
    kinds += [torch.ones(rows), torch.ones(rows, 1).long(), np.ones(rows), torch.ones(rows).cfloat(), object()]
    kinds += [[], np.array([], dtype=int), np.array(["1"] * rows), [2**63] * rows]
    outside = st.one_of(st.integers(-(2**62), 0), *([] if steps is None else [st.integers(steps + 1, 2**62)]))
    bad = st.tuples(st.integers(0, rows - 1), outside).map(lambda at: [1] * at[0] + [at[1]] + [1] * (rows - 1 - at[0]))
    counts = st.integers(1, 9).filter(lambda n: n != rows).map(lambda n: [1] * n)
    wrong = [st.sampled_from(kinds), bad, bad.map(torch.tensor), bad.map(np.array)]
    return st.one_of(*wrong, *([] if steps is None else [counts, counts.map(torch.tensor)]))


def no_records() -> st.SearchStrategy[Any]:
    """What is no record, or one that has been tampered with."""
    nan = {"bandwidth": math.nan, "cache_bandwidth": 1e11, "gemm_flops": {"float32": 1e11, "bfloat16": None}}
    others = [{"schema": 2}, {"schema": object()}, {"timings": around()}, {"more": 5}, {"roofline": nan}, {b"x": 1}]
    return st.sampled_from([None, 3, "record", [], [record()], around(), *({**record(), **other} for other in others)])


def states(*shapes: Sequence[int]) -> st.SearchStrategy[Any]:
    """Pairs of states of which one has another shape."""
    h, c = (torch.zeros(shape) for shape in shapes)
    others = [
        torch.zeros([2 * d for d in h.shape]),
        h[:, :1],
        torch.cat([h, h]),
        torch.cat([h, h], 1),
        h[..., :1],
        h[0],
    ]
    odd = [other for other in others if other.shape not in (h.shape, c.shape)]
    return st.sampled_from([(other, c) for other in odd] + [(h, other) for other in odd])


def lstm(**arguments: Any) -> nn.LSTM:
    return nn.LSTM(I, H, **arguments)


def x(*shape: int) -> Tensor:
    return torch.ones(shape or (T, N, I))


def packed(enforce_sorted: bool = True) -> Any:
    return pack_padded_sequence(x(), torch.tensor([4, 2, 1]), enforce_sorted=enforce_sorted)


FOLDERS: list[Path] = []


# Files for the arguments that name one: an LSTM in ONNX, a checkpoint, and neither.
FILES: dict[str, Callable[[Path], object]] = {
    "lstm.onnx": lambda path: onnx_export.export_onnx(lstm().eval(), torch.randn(T, N, I), path),
    "checkpoint": lambda path: training.fit(**trained({"epochs": 1, "checkpoint": path})),
    "text": lambda path: path.write_text("no such file", encoding="utf-8"),
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    FOLDERS.append(tmp_path_factory.mktemp("fuzz"))
    yield
    plt.close("all")
    FOLDERS.clear()


def here(name: str) -> Path:
    """A path in the test's folder; one of FILES is made when it is first asked for, since that takes a while."""
    path = FOLDERS[0] / name
    if name in FILES and not path.exists():
        FILES[name](path)
    return path


def a_runtime() -> runtimes.Runtime:
    return runtimes.Runtime("eager fp32", "float32", "a kernel", 1, 0.1, lambda x: x, None, "print('ready')")


def around() -> list[Any]:
    """A list that holds itself."""
    found: list[Any] = []
    found.append(found)
    return found


def with_gradients() -> nn.Module:
    module = nn.Linear(2, 2)
    module(torch.ones(1, 2)).sum().backward()
    return module


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    call: Callable[..., Any]
    valid: Callable[[], dict[str, Any]]
    wrong: dict[str, st.SearchStrategy[Any]]
    documented: Any = None  # where the docstring is, if not at ``call``
    torch: tuple[str, ...] = ()  # arguments that torch itself refuses, in its words, as the docstring says


def entry(
    call: Any, valid: Callable[[], dict[str, Any]], documented: Any = None, torch: Any = (), /, **wrong: Any
) -> Entry:
    return Entry(call, valid, wrong, documented or call, torch)


WORK = {"spec": NO_SPECS, "seq_len": no_ints(1), "batch_size": no_ints(1), "precision": NO_NAMES}
sizes = dict.fromkeys(("input_size", "hidden_size", "num_layers"), no_ints(1).filter(lambda v: v is not True))
flags = dict.fromkeys(("bias", "batch_first", "bidirectional"), NO_FLAGS)
no_projections = no_ints(0, H - 1).filter(
    lambda v: not isinstance(v, np.ndarray) and (isinstance(v, complex) or v != 0)  # any zero is "no projection"
)
TABLE = {
    "LSTMSpec": entry(
        spec.LSTMSpec,
        lambda: {"input_size": I, "hidden_size": H},
        **sizes,
        **flags,
        dropout=NO_SHARES,
        proj_size=no_projections,
    ),
    "LSTMSpec.shapes": entry(
        spec.LSTMSpec(I, H).shapes,
        lambda: {"seq_len": T, "batch_size": N},
        seq_len=no_ints(1),
        batch_size=no_ints(0).filter(lambda v: v is not None),
    ),
    "LSTMSpec.flops": entry(
        spec.LSTMSpec(I, H).flops, lambda: {"seq_len": T, "batch_size": N}, seq_len=no_ints(1), batch_size=no_ints(0)
    ),
    "LSTMSpec.layer_input_size": entry(
        spec.LSTMSpec(I, H, 3).layer_input_size, lambda: {"layer": 2}, layer=no_ints(0, 2)
    ),
    "LSTMSpec.nbytes": entry(spec.LSTMSpec(I, H).nbytes, dict, dtype=NO_DTYPES),
    "LSTMSpec.describe": entry(
        spec.LSTMSpec(I, H).describe,
        dict,
        seq_len=no_ints(1),
        batch_size=no_ints(0).filter(lambda v: v is not None),
        dtype=NO_DTYPES,
    ),
    "LSTMSpec.from_module": entry(spec.LSTMSpec.from_module, lambda: {"module": lstm()}, module=NO_MODULES),
    "valid_mask": entry(
        sequences.valid_mask,
        lambda: {"lengths": [1, 2, 3], "seq_len": T, "batch_first": True},
        lengths=no_lengths(3),
        seq_len=no_ints(3).filter(lambda v: v is not None),
        batch_first=NO_FLAGS,
    ),
    "run_packed": entry(
        sequences.run_packed,
        lambda: {"lstm": lstm(), "x": x(), "lengths": [4, 1, 2]},
        None,
        ("hx",),
        lstm=NO_MODULES,
        x=st.one_of(other_ranks(3), NO_TENSORS),
        lengths=no_lengths(N, T),
        hx=states((1, N, H), (1, N, H)),
    ),
    "last_valid_step": entry(
        sequences.last_valid_step,
        lambda: {"output": x(), "lengths": [4, 1, 2], "batch_first": False, "bidirectional": False},
        output=st.one_of(other_ranks(3), NO_TENSORS),
        lengths=no_lengths(N, T),
        batch_first=NO_FLAGS,
        bidirectional=NO_FLAGS,
    ),
    "masked_mean": entry(
        sequences.masked_mean,
        lambda: {"values": x(T, N), "mask": torch.ones(T, N, dtype=torch.bool)},
        values=st.one_of(NO_TENSORS, other_ranks(2)),
        mask=st.one_of(
            NO_TENSORS, st.sampled_from([x(T, N), x(T, N).long(), x(T, N) < 0, x(N, T) > 0, x(T, N, 1) > 0])
        ),
        dim=no_ints(-2, 1).filter(lambda v: v is not None),
    ),
    "LengthBucketSampler": entry(
        sequences.LengthBucketSampler,
        lambda: {"lengths": [3, 1, 2], "batch_size": 2},
        lengths=no_lengths(3),
        batch_size=no_ints(1),
        batches_per_pool=no_ints(1),
        drop_last=NO_FLAGS,
        seed=no_ints(0),
    ),
    "LengthBucketSampler.set_epoch": entry(
        sequences.LengthBucketSampler([1, 2], 1).set_epoch,
        lambda: {"epoch": 1},
        sequences.LengthBucketSampler.set_epoch,
        epoch=no_ints(0),
    ),
    "init_lstm_": entry(
        initialization.init_lstm_,
        lambda: {"lstm": lstm()},
        lstm=NO_LSTMS,
        input=NO_NAMES,
        recurrent=NO_NAMES,
        forget_bias=st.one_of(
            NO_NUMBERS, st.booleans(), st.sampled_from([math.nan, math.inf, 1e39, -1e300, 10**400, "chron"])
        ),
        max_lag=st.one_of(NO_NUMBERS.filter(lambda v: v is not None), st.floats()),
        generator=st.sampled_from([0, "cpu", 1.5, np.random.default_rng(0), torch.device("cpu")]),
    ),
    "init_lstm_ with chrono": entry(
        initialization.init_lstm_,
        lambda: {"lstm": lstm(), "forget_bias": "chrono", "max_lag": 9},
        max_lag=st.one_of(
            NO_NUMBERS, st.booleans(), st.floats(max_value=1.999), st.sampled_from([math.nan, math.inf, 1e39, 10**400])
        ),
    ),
    "init_lstm_ in half precision": entry(
        initialization.init_lstm_, lambda: {"lstm": lstm().half()}, forget_bias=st.sampled_from([65_536, -1e5, 1e38])
    ),
    "gate_blocks": entry(
        initialization.gate_blocks,
        lambda: {"stacked": x(8, 2)},
        stacked=st.one_of(NO_TENSORS, st.sampled_from([x(0, 2), x(7), torch.tensor(1.0), x(2, 8)])),
    ),
    "forget_biases": entry(initialization.forget_biases, lambda: {"lstm": lstm()}, lstm=NO_LSTMS),
    "gradient_norms": entry(
        gradients.gradient_norms,
        lambda: {"module": with_gradients()},
        module=st.one_of(NO_MODULES, st.sampled_from([nn.Linear(2, 2), nn.Identity()])),
    ),
    "GradientClipper": entry(
        gradients.GradientClipper,
        lambda: {"module": with_gradients(), "max_norm": 1.0},
        module=NO_MODULES,
        max_norm=st.one_of(no_positives(), st.sampled_from([10**400, {"": 0}, {"weight": 1.0}, {3: 1.0}, {"": None}])),
        nonfinite=NO_NAMES,
    ),
    "checkpointed_lstm": entry(
        checkpointing.checkpointed_lstm,
        lambda: {"lstm": lstm(), "x": x()},
        None,
        ("x",),
        lstm=NO_LSTMS,
        x=st.one_of(NO_TENSORS, other_ranks(2, 3), st.sampled_from([x(0, N, I), x(T, N, I + 1), x().long()])),
        hx=states((1, N, H), (1, N, H)),
        segments=no_ints(1, T).filter(lambda v: v is not None),
        readout=NO_CALLABLES.filter(lambda v: v is not None),
        per_layer=NO_FLAGS,
    ),
    "checkpointed_lstm by layer": entry(
        checkpointing.checkpointed_lstm,
        lambda: {"lstm": lstm(num_layers=2), "x": x(), "per_layer": True},
        hx=states((2, N, H), (2, N, H)),
    ),
    "checkpointed_lstm of a packed batch": entry(
        checkpointing.checkpointed_lstm,
        lambda: {"lstm": lstm(num_layers=2), "x": packed(), "segments": 2},
        hx=states((2, N, H), (2, N, H)),
        segments=no_ints(1, T).filter(lambda v: v is not None),
    ),
    "checkpointed_lstm of an unsorted batch": entry(
        checkpointing.checkpointed_lstm,
        lambda: {"lstm": lstm(num_layers=2), "x": packed(enforce_sorted=False)},
        hx=states((2, N, H), (2, N, H)),
    ),
    "truncated_bptt": entry(
        lambda **arguments: list(checkpointing.truncated_bptt(**arguments)),
        lambda: {"lstm": lstm(), "x": x(), "length": 2},
        checkpointing.truncated_bptt,
        ("x", "hx"),
        lstm=NO_LSTMS,
        x=st.one_of(NO_TENSORS, other_ranks(2, 3), st.sampled_from([packed(), x(0, N, I), x(T, N, I + 1), x().long()])),
        length=no_ints(1),
        hx=states((1, N, H), (1, N, H)),
    ),
    "quantize_lstm": entry(
        quantization.quantize_lstm,
        lambda: {"model": lstm()},
        model=NO_LSTMS,
        dtype=st.one_of(NO_DTYPES, st.sampled_from([torch.int8, torch.float32, torch.bfloat16, torch.quint8])),
        also=st.sampled_from(
            [None, nn.Linear, 3, (3,), (nn.LSTM,), ["Linear"], (nn.Linear, nn.Conv1d), nn.Linear(1, 1)]
        ),
        per_channel=NO_FLAGS,
    ),
    "saved_size": entry(quantization.saved_size, lambda: {"model": lstm()}, model=NO_MODULES),
    "error_report": entry(
        quantization.error_report,
        lambda: {"model": lstm().eval(), "quantized": lstm().eval(), "inputs": x()},
        None,
        ("inputs",),
        model=st.one_of(NO_MODULES, st.sampled_from([lstm(), nn.Linear(I, 1).eval()])),
        quantized=st.one_of(NO_MODULES, st.sampled_from([lstm(), nn.Linear(I, 1).eval(), nn.LSTM(I, H + 1).eval()])),
    ),
    "export_onnx": entry(
        onnx_export.export_onnx,
        lambda: {"model": lstm().eval(), "example": torch.randn(T, N, I), "path": here("exported.onnx")},
        model=st.one_of(NO_LSTMS, st.sampled_from([lstm(), lstm().double().eval(), lstm(proj_size=2).eval()])),
        example=st.one_of(
            NO_TENSORS,
            other_ranks(3),
            st.sampled_from([x(0, N, I), x(T, 0, I), x().long(), x().bfloat16(), math.nan * x(), x(T, N, I + 1)]),
        ),
        path=st.sampled_from([None, 3, "", ".", "/no/such/folder/x.onnx", b"x.onnx"]),
        dynamic=st.sampled_from([3, "N", [("N",)], [3], [("N", "T", "N", "T")], [None]]),
        states=NO_FLAGS,
        lengths=NO_FLAGS,
        output_names=st.sampled_from(
            [None, 3, "abc", ["a"], [1, 2, 3], ["a", "b", "b"], ["input", "b", "c"], ["", "b", "c"]]
        ),
        tolerance=no_positives(inf=True),
    ),
    "export_onnx of a model": entry(
        onnx_export.export_onnx,
        lambda: {
            "model": nn.Sequential(lstm()).eval(),
            "example": [torch.randn(T, N, I)],
            "path": here("exported.onnx"),
        },
        example=st.one_of(NO_TENSORS, st.sampled_from([[None], [x(), None], [], [x(T, 0, I)]])),
        dynamic=st.sampled_from([3, "N", [("N",), ("N",)], [3], [None], [("N", "T", "N", "T")], ["lengths"]]),
        states=st.one_of(NO_FLAGS, st.just(True)),
        lengths=st.one_of(NO_FLAGS, st.just(True)),
    ),
    "quantize_onnx": entry(
        onnx_export.quantize_onnx,
        lambda: {"source": here("lstm.onnx"), "target": here("int8.onnx"), "example": [torch.randn(T, N, I)]},
        source=st.one_of(
            st.sampled_from([None, 3, "", b"x.onnx", ["x"], "/no/such/file"]), st.builds(lambda: here("text"))
        ),
        target=st.sampled_from([None, 3, "", b"x.onnx", ["x"], "/no/such/folder/x.onnx"]),
        example=st.sampled_from(
            [
                *(None, 3, "x", x(), [None], [np.ones((T, N, I))], [x(), x()], [x(T, N)], [x(T, N, I + 1)]),
                *([x(T, 0, I)], [x().double()], [x().long()], [math.nan * x()], [math.inf * x()]),
            ]
        ),
        per_channel=NO_FLAGS,
    ),
    "FoldedProjection": entry(
        projection.FoldedProjection,
        lambda: {"lstm": lstm(proj_size=2)},
        lstm=st.one_of(NO_LSTMS, st.sampled_from([lstm(), reference.ReferenceLSTM(I, H, proj_size=2)])),
    ),
    "FoldedProjection.forward": entry(
        lambda **arguments: projection.FoldedProjection(lstm(proj_size=2))(**arguments),
        lambda: {"input": x()},
        projection.FoldedProjection.forward,
        ("input", "hx"),
        input=st.one_of(other_ranks(2, 3), st.sampled_from([x(0, N, I), x(T, N, I + 1), x().long()])),
        hx=states((1, N, 2), (1, N, H)),
    ),
    "diagnose_ctc": entry(
        ctc.diagnose_ctc,
        lambda: {
            "log_probs": torch.zeros(T, 2, 5).log_softmax(-1),
            "targets": torch.tensor([[1, 2], [3, 4]]),
            "input_lengths": [4, 4],
            "target_lengths": [2, 1],
        },
        log_probs=st.one_of(NO_TENSORS, other_ranks(3), st.sampled_from([x(T, 3, 5), x(T, 2, 5).long()])),
        targets=st.one_of(
            NO_TENSORS, other_ranks(1, 2), st.sampled_from([x(2, 2), x(2, 2) > 0, x(2).long(), x(2, 1).long()])
        ),
        input_lengths=no_lengths(2, T).filter(lambda v: not _zero(v)),
        target_lengths=no_lengths(2, 2).filter(lambda v: not _zero(v)),
        blank=no_ints(0, 4),
    ),
    "diagnose": entry(
        diagnose,
        lambda: {"model": lstm(), "batch": x(), "lengths": [4, 1, 2]},
        model=st.one_of(NO_MODULES, st.sampled_from([nn.Linear(2, 2), nn.GRU(2, 2)])),
        lengths=no_lengths(N).filter(lambda v: v is not None and not _negative(v)),
        batch_dim=no_ints(0, 1).filter(lambda v: v is not None),
        loss=NO_CALLABLES.filter(lambda v: v is not None),
    ),
    "read_data": entry(datasets.read_data, lambda: {"name": "digits.npz"}, name=NO_NAMES),
    "split_of": entry(datasets.split_of, lambda: {"spelling": "walk"}, spelling=NO_TEXTS),
    "SequenceClassifier": entry(
        models.SequenceClassifier,
        lambda: {"num_symbols": 5, "num_classes": 2},
        num_symbols=no_ints(1),
        num_classes=no_ints(1),
        embedding_size=no_ints(1).filter(lambda v: v is not True),
        hidden_size=sizes["hidden_size"],
        num_layers=no_ints(1).filter(lambda v: not isinstance(v, np.ndarray)),
        bidirectional=NO_FLAGS,
        proj_size=no_projections.filter(lambda v: not isinstance(v, int) or not 0 < v < 64),
        dropout=NO_SHARES,
        pooling=NO_NAMES.filter(lambda v: v != "last"),
    ),
    "pool": entry(
        models.pool,
        lambda: {"output": x(N, T, 3), "lengths": torch.tensor([1, 2, 3]), "how": "last", "bidirectional": False},
        output=st.one_of(NO_TENSORS, other_ranks(3)),
        lengths=no_lengths(N, T),
        how=NO_NAMES,
        bidirectional=NO_FLAGS,
    ),
    "pool by maximum": entry(
        models.pool,
        lambda: {"output": x(N, T, 3), "lengths": torch.tensor([1, 2, 3]), "how": "max", "bidirectional": False},
        output=st.one_of(NO_TENSORS, other_ranks(3)),
        lengths=no_lengths(N, T),
    ),
    "ResidualLSTM": entry(
        models.ResidualLSTM,
        lambda: {"input_size": I, "hidden_size": H},
        **sizes,
        **flags,
        dropout=NO_SHARES,
        proj_size=no_projections,
        residual=NO_FLAGS,
        norm=NO_NAMES,
    ),
    "ResidualLSTM.forward": entry(
        lambda **arguments: models.ResidualLSTM(I, H, 2)(**arguments),
        lambda: {"input": x()},
        models.ResidualLSTM.forward,
        ("input",),
        input=st.one_of(other_ranks(2, 3), st.sampled_from([x(0, N, I), x(T, N, I + 1), x().long()])),
        hx=states((2, N, H), (2, N, H)),
    ),
    "fit": entry(
        lambda **arguments: training.fit(**trained(arguments)),
        lambda: {"epochs": 1},
        training.fit,
        epochs=no_ints(1),
        max_norm=no_positives(),
        maximize=NO_FLAGS,
        model=NO_MODULES,
        batches=st.sampled_from([None, 3, [], ()]),
        loss_of=NO_CALLABLES,
        optimizer=st.sampled_from([None, 3, "sgd", torch.optim.SGD, nn.Linear(1, 1)]),
        scheduler=st.sampled_from([3, "step", lambda: None, nn.Linear(1, 1)]),
        progress=NO_FLAGS.filter(lambda v: v is not None),
        validate=st.one_of(NO_CALLABLES, st.just(lambda: math.nan)),
        checkpoint=st.sampled_from([3, "/no/such/folder/x"]),
    ),
    "load_checkpoint": entry(
        training.load_checkpoint,
        lambda: {"path": here("checkpoint")},
        path=st.sampled_from([None, 3.5, "/no/such/file", "/dev/null", "/", ""]),
    ),
    "LockedDropout": entry(regularization.LockedDropout, dict, p=NO_SHARES, batch_first=NO_FLAGS),
    "LockedDropout.forward": entry(
        regularization.LockedDropout().forward, lambda: {"x": x()}, x=st.one_of(NO_TENSORS, other_ranks(2, 3))
    ),
    "WeightDrop": entry(regularization.WeightDrop, lambda: {"lstm": lstm()}, lstm=NO_LSTMS, p=NO_SHARES),
    "save_results": entry(
        results.save_results,
        lambda: {"name": "x", "numbers": {}, "figure": Picture(), "folder": here("")},
        None,
        ("numbers",),
        name=st.sampled_from([None, 3, "", "a/b", "../x", ".", b"x"]),
        numbers=st.sampled_from([None, 3, [1], {"x": math.nan}, {"x": math.inf}, {"x": {1}}, {"hardware": 1}]),
        figure=st.sampled_from([None, 3, "figure", object()]),
        device=NO_DEVICES,
        folder=st.sampled_from(["/no/such/folder", "/dev/null", 3, None, b"x"]),
    ),
    "write_whole": entry(
        files.write_whole,
        lambda: {"path": here("x"), "content": ""},
        path=st.sampled_from([None, 3, "", ".", "/", "/no/such/folder/x", b"x", "/dev"]),
        content=st.sampled_from([None, 3, 1.5, ["a"], {}, object()]),
    ),
    "whole_file": entry(
        lambda path: files.whole_file(path).__enter__(),
        lambda: {"path": here("x")},
        files.whole_file,
        path=st.sampled_from([None, 3, "", ".", "/", "/no/such/folder/x", b"x", "/dev"]),
    ),
    "error_of": entry(exercises.error_of, lambda: {"call": lambda: 1 / 0}, call=NO_CALLABLES),
    "check": entry(
        exercises.check,
        lambda: {"exercise": "1.2", "passes": lambda: True, "hint": ""},
        exercise=NO_TEXTS,
        hint=NO_TEXTS,
        passes=st.one_of(NO_CALLABLES, st.sampled_from([lambda: None, lambda: 1, lambda: np.bool_(True)])),
    ),
    "audit": entry(claims.audit, lambda: {"claim_id": "G20"}, claim_id=NO_NAMES),
    "parse_claims": entry(
        claims.parse_claims,
        lambda: {"text": "[]"},
        text=st.one_of(NO_TEXTS, st.sampled_from(["", "3", "{}", "[3]", "[", "a: b: c", "\0", "- {verdict: [}"])),
    ),
    "pitfall": entry(pitfalls.pitfall, lambda: {"pitfall_id": "P01"}, pitfall_id=NO_NAMES),
    "find_pitfalls": entry(pitfalls.find_pitfalls, lambda: {"message": "x"}, message=NO_TEXTS),
    "normalize": entry(pitfalls.normalize, lambda: {"text": "x"}, text=NO_TEXTS),
    "parse_pitfalls": entry(
        pitfalls.parse_pitfalls,
        lambda: {"text": "[]"},
        text=st.one_of(NO_TEXTS, st.sampled_from(["", "3", "{}", "[3]", "[", "a: b: c", "\0"])),
    ),
    "ReferenceLSTM": entry(
        reference.ReferenceLSTM,
        lambda: {"input_size": I, "hidden_size": H},
        **sizes,
        **flags,
        dropout=NO_SHARES,
        proj_size=no_projections,
    ),
    "ReferenceLSTM.forward": entry(
        reference.ReferenceLSTM(I, H).forward,
        lambda: {"input": x()},
        input=st.one_of(other_ranks(2, 3), st.sampled_from([x(0, N, I), x(T, N, I + 1), x().long()])),
        hx=states((1, N, H), (1, N, H)),
    ),
    "resolve_device": entry(measure.resolve_device, lambda: {"device": "auto"}, device=st.one_of(NO_TEXTS, NO_DEVICES)),
    "hardware": entry(measure.hardware, dict, device=NO_DEVICES),
    "compare_times": entry(
        measure.compare_times,
        lambda: {"candidates": {"a": list, "b": dict}, "rounds": 3, "min_seconds": 0},
        candidates=st.sampled_from([None, 3, "ab", [], {}, [list], list, {"a": None}, {"a": list, "b": 3}]),
        rounds=no_ints(3),
        min_seconds=st.one_of(
            NO_NUMBERS, st.booleans(), st.floats(max_value=-1e-9), st.sampled_from([math.nan, math.inf])
        ),
        num_threads=no_ints(1),
    ),
    "saved_bytes": entry(
        measure.saved_bytes,
        lambda: {"call": lambda: x().requires_grad_().exp(), "without": [x()]},
        call=NO_CALLABLES,
        without=st.sampled_from([None, 3, "x", [None], [1.5], [np.zeros(2)], {"a": x()}, [[x()]]]),
    ),
    "peak_memory": entry(
        measure.peak_memory,
        lambda: {"call": "pass"},
        call=NO_TEXTS,
        setup=NO_TEXTS,
        device=st.one_of(NO_DEVICES.filter(lambda v: v != "cuda:99"), st.sampled_from(["mps", "meta"])),
        num_threads=no_ints(1),
    ),
    "draw_shapes": entry(
        diagrams.draw_shapes,
        lambda: {"spec": spec.LSTMSpec(2, 3), "seq_len": 4},
        spec=st.one_of(NO_SPECS, st.sampled_from([spec.LSTMSpec(9, 2), spec.LSTMSpec(2, 9), spec.LSTMSpec(2, 3, 4)])),
        seq_len=no_ints(1, 9),
        batch_size=no_ints(1, 4).filter(lambda v: v is not None),
    ),
    "plot_traces": entry(
        plotting.plot_traces,
        lambda: {"panels": {"a": {"f": np.ones(2)}}, "labels": ["a", "b"], "shaded": [True, False], "title": ""},
        panels=st.sampled_from(
            [
                *(None, 3, "a", {}, [np.ones(2)], {"a": None}, {"a": [np.ones(2)]}, {"a": {"f": np.ones(3)}}),
                *({"a": {"f": None}}, {"a": {"f": ["a", "b"]}}, {"a": dict.fromkeys("xyz", np.ones(2))}),
            ]
        ),
        labels=st.sampled_from([None, 3, [], "", ["a"], "abc", object()]),
        shaded=st.sampled_from([None, 3, [True], [[True, False]], ["a", "b"], "ab", object()]),
        title=NO_TEXTS,
    ),
    "plot_seeds": entry(
        plotting.plot_seeds,
        lambda: {"axis": Figure().subplots(), "x": [1, 2], "runs": np.ones((3, 2)), "label": "a"},
        axis=st.sampled_from([None, 3, "axis", plt, []]),
        x=st.sampled_from([None, 3, "12", [1], [1, 2, 3], [None, None], ["a", "b"], [[1, 2]], np.array(1)]),
        runs=st.sampled_from([None, 3, "ab", [[1.0, 2.0]], x(2), x(0, 2), x(3, 1), x(3, 2, 1), np.array([["a", "b"]])]),
        label=NO_TEXTS,
    ),
    "check_record": entry(
        report.check_record, lambda: {"record": record(), "name": "x"}, record=no_records(), name=NO_TEXTS
    ),
    "save_record": entry(
        report.save_record,
        lambda: {"path": here("record.json"), "record": record()},
        path=st.sampled_from([None, 3, b"x", ["x"], "", ".", "/no/such/folder/x"]),
        record=no_records(),
    ),
    "recurrent_work": entry(roofline.recurrent_work, lambda: {"spec": spec.LSTMSpec(I, H), "seq_len": T}, **WORK),
    "lstm_work": entry(
        roofline.lstm_work, lambda: {"spec": spec.LSTMSpec(I, H), "seq_len": T}, roofline.recurrent_work, **WORK
    ),
    "measure_roofline": entry(
        roofline.measure_roofline,
        lambda: {"cache_bytes": 4, "memory_bytes": 4, "rounds": 1},
        device=NO_DEVICES.filter(lambda v: v != "cuda:99"),
        num_threads=no_ints(1),
        cache_bytes=no_ints(4),
        memory_bytes=no_ints(4),
        rounds=no_ints(1),
    ),
    "operators": entry(runtimes.operators, lambda: {"call": list}, call=NO_CALLABLES),
    "prepare": entry(
        runtimes.prepare,
        lambda: {"name": "eager fp32", "lstm": lstm().eval(), "example": x(), "folder": here("")},
        name=NO_NAMES,
        lstm=st.one_of(NO_LSTMS, st.sampled_from([lstm(), lstm().double().eval(), lstm(batch_first=True).eval()])),
        example=st.one_of(
            NO_TENSORS,
            other_ranks(3),
            st.sampled_from([x(0, N, I), x(T, 0, I), x(T, N, I + 1), x().long(), x().half()]),
        ),
        folder=st.sampled_from([None, 3, b"x", ["x"], "/no/such/folder", "/dev/null"]),
        num_threads=no_ints(1),
    ),
    "cold_start": entry(
        runtimes.cold_start,
        lambda: {"runtime": a_runtime(), "rounds": 1},
        runtime=st.sampled_from([None, 3, "eager fp32", runtimes.NotRun("eager fp32", "a reason"), runtimes.Runtime]),
        rounds=no_ints(1),
    ),
    "load_speech": entry(
        speech.load_speech,
        lambda: {"number": 1},
        number=no_ints(1),
        folder=st.sampled_from([3, 1.5, b"x", ["x"], object()]),
        seed=no_ints(0),
    ),
    "log_mel": entry(
        speech.log_mel,
        lambda: {"waveform": torch.zeros(2000)},
        waveform=st.one_of(
            NO_TENSORS,
            st.sampled_from(
                [x(0), x(512), x(2000, 1), x(1, 2000), x(2000).long(), x(2000).cfloat(), torch.tensor(1.0)]
            ),
            st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e38]).map(lambda v: v * x(2000)),
        ),
    ),
}
EXEMPT = {
    "lstm_cell": "written to be read, five lines of algebra; ReferenceLSTM checks what it hands over",
}


UNTRIED = {
    "diagnose": {"batch", "target"},  # the model takes them, and what it raises comes through
    "error_report": {"inputs"},  # the same
    "plot_seeds": {"style"},  # matplotlib's
    "ReferenceLSTM": {"device", "dtype"},  # torch's, of every parameter
    "ResidualLSTM": {"device", "dtype"},
}


class Picture:
    def savefig(self, *_: Any, **__: Any) -> None:
        """As a figure does."""


def _zero(value: Any) -> bool:
    """Lengths of 0, which the loss takes and a recurrent network does not."""
    return isinstance(value, list | Tensor | np.ndarray) and 0 in np.asarray(value).ravel().tolist()


def _negative(value: Any) -> bool:
    """Integers below 1, which diagnose reports as a finding."""
    array = np.asarray(value) if isinstance(value, list | Tensor | np.ndarray) else np.ones(1)
    return bool(array.ndim == 1 and array.dtype.kind == "i" and array.size and array.min() < 1)


def trained(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a training of one step, with the given ones in place."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    whole = {"model": model, "batches": [torch.ones(1, 1)], "loss_of": lambda batch: model(batch).sum()}
    return whole | {"validate": lambda: 0.0, "optimizer": optimizer, "progress": False} | arguments


# --- the tests --------------------------------------------------------------------------------------------------------


def documented(function: Any) -> set[str]:
    """The names under ``Raises`` in a docstring."""
    _, _, section = inspect.getdoc(function).partition("Raises:\n")
    lines = re.findall(r"^    ([A-Z]\w+(?:, [A-Z]\w+)*):", section.partition("\n\n")[0], re.MULTILINE)
    return {name for line in lines for name in line.split(", ")}


def quoted(value: Any, message: str) -> bool:
    """Whether a message says what it got: the value, an entry of it, or its type, shape, dtype or length."""
    if callable(value) or not str(value):  # a message does not print a module, nor can it miss an empty text
        return True
    kinds = [type(value).__name__, repr(value), str(value)]
    kinds += ["null"] if value is None else []  # in JSON
    kinds += [str(Path(value).parent)] if isinstance(value, str) else []
    if isinstance(value, dict):
        kinds += [str(list(value)), *map(repr, value.values()), *(type(e).__name__ for e in value.values())]
    if dataclasses.is_dataclass(value):
        kinds += [repr(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, Tensor | np.ndarray):
        kinds += [
            str(tuple(value.shape)),
            str(value.dtype),
            *map(str, value.shape[-1:]),
            str(math.prod(value.shape)),
        ]
    if isinstance(value, list | tuple | Tensor | np.ndarray | dict) and getattr(value, "shape", (1,)) != ():
        entries = list(value.flatten().tolist() if hasattr(value, "tolist") else value)
        if any(quoted(e, message) for e in entries if isinstance(e, Tensor | np.ndarray)):
            return True
        kinds += [str(len(entries))] + [str(e) for e in entries]
        kinds += [str(tuple(e.shape)) for e in entries if isinstance(e, Tensor)]
        kinds += [type(e).__name__ for e in entries]
    return any(kind in message for kind in kinds if kind)


ARGUMENTS = [(name, argument) for name, one in TABLE.items() for argument in one.wrong]


@pytest.mark.parametrize("name", TABLE)
def test_the_call_without_a_wrong_argument_works(name):
    TABLE[name].call(**TABLE[name].valid())


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS, ids=[" ".join(pair) for pair in ARGUMENTS])
@settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_wrong_argument_is_refused_by_a_documented_error_that_quotes_it(name, argument, data):
    one = TABLE[name]
    value = data.draw(one.wrong[argument], argument)
    try:
        result = one.call(**one.valid() | {argument: value})
    except Exception as raised:
        error = raised
    else:
        pytest.fail(f"{argument}={value!r} was taken, and gave {result!r}")
    allowed = documented(one.documented)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    assert kinds & allowed, f"{type(error).__name__} is not documented, {sorted(allowed)} are: {error}"
    if argument not in one.torch:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = linecache.getline(frame.filename, frame.lineno).strip()
        assert line.startswith("raise "), f"an accident and no refusal, in {line!r}: {type(error).__name__}: {error}"
        assert quoted(value, str(error)), f"the message does not quote {value!r}: {error}"


def imported(source: str) -> dict[str, Any]:
    """What a cell or a script takes from lstm_utils, by name."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith("lstm_utils")], "use from … import"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lstm_utils":
            module = importlib.import_module(node.module)
            found |= {alias.name: getattr(module, alias.name) for alias in node.names}
    return found


def public() -> dict[str, Any]:
    """Every public name that can be called with a wrong argument: no constants, and nothing without parameters."""
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "notebooks").glob("*.py"))]
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        sources += [cell.source for cell in cells if cell.cell_type == "code"]
    found = {name: getattr(lstm_utils, name) for name in lstm_utils.__all__}
    for source in sources:
        for name, value in imported(source).items():
            assert found.setdefault(name, value) is value, f"two things are called {name}"
    callables = {name: value for name, value in found.items() if callable(value) and not is_record(value)}
    return {name: value for name, value in callables.items() if inspect.signature(value).parameters}


def test_every_public_name_is_in_the_table():
    names, known = set(public()), {re.split("[ .]", name)[0] for name in TABLE}
    assert len(names) > 50, "the chapters have not been read"
    assert names - known == set(EXEMPT)


def test_every_argument_is_tried_or_handed_to_torch():
    """What a public function takes, and the table does not get wrong, is here with the reason."""
    untried = {}
    for name, value in public().items():
        tried = {
            argument for entry, one in TABLE.items() if re.split("[ .]", entry)[0] == name for argument in one.wrong
        }
        if name not in EXEMPT and (left := inspect.signature(value).parameters.keys() - tried):
            untried[name] = left
    assert untried == UNTRIED


def test_an_import_of_a_chapter_is_seen():
    found = imported("if quick:\n    from lstm_utils.files import write_whole, whole_file as whole")
    assert found == {"write_whole": files.write_whole, "whole_file": files.whole_file}
    with pytest.raises(AssertionError, match="use from"):
        imported("import lstm_utils.files")


def is_record(value: Any) -> bool:
    """Exceptions, and dataclasses and tuples that hold what they are given: nothing there can be computed wrong."""
    if not isinstance(value, type):
        return False
    plain = dataclasses.is_dataclass(value) and not hasattr(value, "__post_init__")
    return issubclass(value, BaseException) or plain or hasattr(value, "_fields")
