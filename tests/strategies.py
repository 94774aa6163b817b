"""What the tests draw: arguments, specifications, and whole forward calls. Not a test module itself."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_utils import LSTMSpec

ARGUMENTS = tuple(LSTMSpec.__dataclass_fields__)
sizes = st.integers(1, 9)
dropouts = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 0, 1]), st.floats(0, 1))
lengths = st.integers(1, 6)

examples = {name: settings(max_examples=count, deadline=None) for name, count in {"many": 300, "some": 100}.items()}


@contextmanager
def no_dropout_warning() -> Iterator[None]:
    """Silence the warning that dropout does nothing in a single layer, which is true and not what is tested."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="dropout", category=UserWarning)
        yield


def build(spec: LSTMSpec, kind: type[nn.Module] = nn.LSTM, **factory: Any) -> Any:
    """The module of that kind which the specification describes, without the warning above."""
    with no_dropout_warning():
        return kind(**spec.as_dict(), **factory)


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that nn.LSTM takes: the two required ones, and any of the others."""
    hidden_size = draw(sizes)
    optional = {
        "num_layers": st.integers(1, 4),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "dropout": dropouts,
        "bidirectional": st.booleans(),
        "proj_size": st.integers(0, hidden_size - 1),
    }
    return {"input_size": draw(sizes), "hidden_size": hidden_size} | draw(st.fixed_dictionaries({}, optional=optional))


def specs(**fixed: Any) -> st.SearchStrategy[LSTMSpec]:
    """Every specification of small sizes, apart from the arguments that are fixed here."""
    return arguments().map(lambda drawn: LSTMSpec(**drawn | fixed))


every_spec = specs()

# Values of every type that may end up in an argument: listed ones, each on some boundary, and drawn ones near them.
NOTABLE = (
    *(-1, 0, 1, 2, 3, True, False, None, ..., "", "0", "2", "0.5", "nan", b"1"),
    *(-0.0, 0.5, 1.0, 2.0, math.nan, math.inf, -math.inf, 0j, 1j, 1 + 0j),
    *(Fraction(0), Fraction(1, 2), Fraction(2), Fraction(10**30 + 1, 10**30)),
    *(Decimal(0), Decimal("0.5"), Decimal(2), Decimal("NaN"), Decimal("Infinity")),
    *(np.int64(-1), np.int64(0), np.int64(2), np.int8(2), np.uint8(0), np.uint64(2), np.bool_(True), np.bool_(False)),
    *(np.float64(0), np.float64(0.5), np.float32(1), np.float16(0.5), np.float64(np.nan)),
)
anything = st.one_of(
    st.sampled_from(NOTABLE),
    st.integers(-2, 9),
    st.floats(),
    st.floats(-0.25, 1.25),
    st.fractions(-1, 2),
    st.decimals(-1, 2, allow_nan=False),
    st.integers(0, 9).flatmap(lambda value: st.sampled_from([np.int16(value), np.uint64(value)])),
    st.floats(-0.25, 1.25).flatmap(lambda value: st.sampled_from([np.float16(value), np.float64(value)])),
)


@st.composite
def tampered_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that nn.LSTM takes, of which up to three are replaced by anything at all."""
    replaced = draw(st.lists(st.sampled_from(ARGUMENTS), unique=True, max_size=3))
    return draw(arguments()) | {name: draw(anything) for name in replaced}


@dataclass(frozen=True)
class Call:
    """One forward call: a specification, the layout of its input, and the seed that its numbers come from."""

    spec: LSTMSpec
    layout: str  # unbatched, batched, sorted or unsorted, the last two packed with enforce_sorted True and False
    lengths: tuple[int, ...]  # of the rows; the batch is padded to the longest
    with_states: bool
    seed: int

    @property
    def packed(self) -> bool:
        return self.layout in ("sorted", "unsorted")

    @property
    def batch_size(self) -> int | None:
        return None if self.layout == "unbatched" else len(self.lengths)

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The padded input, and (h_0, c_0) or None: leaves that ask for gradients, the same ones in every call."""
        shapes = self.spec.shapes(max(self.lengths), self.batch_size)
        generator = torch.Generator().manual_seed(self.seed)
        x, h_0, c_0 = (
            torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True)
            for shape in (shapes.input, shapes.h_n, shapes.c_n)
        )
        return x, (h_0, c_0) if self.with_states else None

    def pack(self, x: Tensor) -> Tensor | PackedSequence:
        """The input as the layout has it."""
        if not self.packed:
            return x
        enforce_sorted = self.layout == "sorted"
        return pack_padded_sequence(x, torch.tensor(self.lengths), self.spec.batch_first, enforce_sorted)

    def run(self, module: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Any]:
        """Everything that comes out of the call, and the gradients of it all, by name."""
        x, hx = self.tensors(dtype)
        torch.manual_seed(seed)
        output, (h_n, c_n) = module(self.pack(x), hx)
        data = output.data if isinstance(output, PackedSequence) else output
        leaves = {"input": x} | ({} if hx is None else {"h_0": hx[0], "c_0": hx[1]}) | dict(module.named_parameters())
        generator = torch.Generator().manual_seed(self.seed + 1)
        cotangents = [torch.randn(t.shape, generator=generator, dtype=dtype) for t in (data, h_n, c_n)]
        gradients = torch.autograd.grad((data, h_n, c_n), tuple(leaves.values()), cotangents)
        named = {f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
        return {"output": output, "h_n": h_n, "c_n": c_n} | named


@st.composite
def calls(
    draw: st.DrawFn,
    spec: st.SearchStrategy[LSTMSpec] = every_spec,
    layouts: tuple[str, ...] = ("unbatched", "batched", "sorted", "unsorted"),
) -> Call:
    """Every way to call a module: the layouts, lengths, and with or without initial states."""
    layout = draw(st.sampled_from(layouts))
    rows = draw(st.lists(lengths, min_size=1, max_size=5)) if layout in ("sorted", "unsorted") else None
    if rows is None:
        rows = [draw(lengths)] * (1 if layout == "unbatched" else draw(st.integers(1, 5)))
    if layout == "sorted":
        rows.sort(reverse=True)
    return Call(draw(spec), layout, tuple(rows), draw(st.booleans()), draw(st.integers(0, 2**32)))
