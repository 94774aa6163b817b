"""The arguments of ``torch.nn.LSTM`` as a value: shapes, counts and memory by arithmetic alone.

Nothing here allocates a tensor, so a specification of a trillion parameters is as cheap to ask as one of ten.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any, NamedTuple

import torch
from torch import nn

from lstm_utils.arguments import at_least, require

# describe() lists the tensors of so many layers; those above repeat the last one's shapes.
SHOWN_LAYERS = 8


class LSTMShapes(NamedTuple):
    """What goes in and what comes out of one forward call. The initial states have the shapes of the final ones."""

    input: tuple[int, ...]
    output: tuple[int, ...]
    h_n: tuple[int, ...]
    c_n: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LSTMSpec:
    """The eight arguments that decide the structure of an ``nn.LSTM``, checked as ``nn.LSTM`` checks them.

    A specification is refused exactly when ``nn.LSTM`` refuses the arguments, either on construction or in its
    first forward call (``bidirectional=1`` builds, and then fails with a message that does not name it). Tensors and
    arrays of a single number, which ``nn.LSTM`` takes in places, are left out of that promise.

    Args:
        input_size: features of one time step, I.
        hidden_size: width of the cell state, H.
        num_layers: stacked layers, L.
        bias: whether the two bias vectors exist.
        batch_first: whether input and output are (batch, seq, feature); the states never are.
        dropout: probability of zeroing an element between layers.
        bidirectional: a second, reversed LSTM in every layer (D = 2).
        proj_size: width of the hidden state when it is projected, P; 0 for no projection.

    Raises:
        TypeError: an argument has a type that ``nn.LSTM`` cannot use.
        ValueError: an argument has a value out of range.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0

    def __post_init__(self) -> None:
        for name in ("input_size", "hidden_size", "num_layers"):
            self._require_int(name, minimum=1)
        for name in ("bias", "batch_first", "bidirectional"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, numbers.Real | Decimal):
            raise TypeError(f"dropout must be a number from 0 to 1, got {self.dropout!r}")
        if self.dropout != self.dropout or not 0 <= self.dropout <= 1:  # a NaN differs from itself
            raise ValueError(f"dropout must lie from 0 to 1, got {self.dropout!r}")
        if self.proj_size != 0 or isinstance(self.proj_size, complex):  # any other zero is "no projection" to nn.LSTM
            self._require_int("proj_size", minimum=0)
            if self.proj_size >= self.hidden_size:
                raise ValueError(
                    f"proj_size must be smaller than hidden_size ({self.hidden_size}), got {self.proj_size!r}; "
                    "0 means no projection"
                )
        for name in ("input_size", "hidden_size", "num_layers", "proj_size"):
            object.__setattr__(self, name, int(getattr(self, name)))
        object.__setattr__(self, "dropout", float(self.dropout))

    def _require_int(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if name in ("input_size", "hidden_size"):  # nn.LSTM asks for Python's int, and bool is a kind of int
            fits = isinstance(value, int)
        else:  # its kernel takes NumPy's integers too, and no bool
            fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not fits:
            raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value!r}")

    @classmethod
    def from_module(cls, module: nn.LSTM) -> LSTMSpec:
        """Read the specification back from a module (an ``nn.LSTM``, or anything with its attributes).

        Raises:
            TypeError: an attribute is missing.
        """
        try:
            return cls(**{name: getattr(module, name) for name in cls.__dataclass_fields__})
        except AttributeError as error:
            got = type(module).__name__
            raise TypeError(f"expected an nn.LSTM or a module with its attributes, got {got}") from error

    def as_dict(self) -> dict[str, Any]:
        """The arguments by name: ``nn.LSTM(**spec.as_dict())`` is ``spec.build()``."""
        return asdict(self)

    def build(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> nn.LSTM:
        """Allocate the ``nn.LSTM`` that this specification describes."""
        return nn.LSTM(**self.as_dict(), device=device, dtype=dtype)

    @property
    def num_directions(self) -> int:
        """D: 2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def hidden_width(self) -> int:
        """Width of h, the hidden state: P when it is projected, else H. The cell state always has width H."""
        return self.proj_size or self.hidden_size

    def layer_input_size(self, layer: int) -> int:
        """Features that layer ``layer`` reads: I for layer 0, and D times the hidden width above it.

        Raises:
            ValueError: there is no such layer; they are counted from 0.
        """
        return self._reads(at_least("layer", layer, 0, self.num_layers - 1))

    def _reads(self, layer: int) -> int:
        return self.input_size if layer == 0 else self.num_directions * self.hidden_width

    def shapes(self, seq_len: int, batch_size: int | None = None) -> LSTMShapes:
        """Shapes of one call on ``seq_len`` steps; ``batch_size=None`` is the unbatched, two-dimensional input.

        Raises:
            ValueError: ``seq_len`` is no integer of at least 1, or ``batch_size`` none of at least 0.
        """
        rows = 0 if batch_size is None else batch_size
        for name, value, least in (("seq_len", seq_len, 1), ("batch_size", rows, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
        if batch_size is None:
            lead: tuple[int, ...] = (seq_len,)
        else:
            lead = (batch_size, seq_len) if self.batch_first else (seq_len, batch_size)
        states = (self.num_layers * self.num_directions,) + (() if batch_size is None else (batch_size,))
        return LSTMShapes(
            input=(*lead, self.input_size),
            output=(*lead, self.num_directions * self.hidden_width),
            h_n=(*states, self.hidden_width),
            c_n=(*states, self.hidden_size),
        )

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape, with the names and in the order of ``named_parameters()``."""
        return {
            f"{kind}_l{layer}{'_reverse' if direction else ''}": shape
            for layer in range(self.num_layers)
            for direction in range(self.num_directions)
            for kind, shape in self._cell_parameters(self._reads(layer))
        }

    def _cell_parameters(self, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Tensors of one layer in one direction, whose input has ``width`` features. Rows are stacked i, f, g, o."""
        gates = 4 * self.hidden_size
        yield "weight_ih", (gates, width)
        yield "weight_hh", (gates, self.hidden_width)
        if self.bias:
            yield "bias_ih", (gates,)
            yield "bias_hh", (gates,)
        if self.proj_size:
            yield "weight_hr", (self.proj_size, self.hidden_size)

    def _total(self, cost: Callable[[str, tuple[int, ...]], int]) -> int:
        """Sum ``cost(name, shape)`` over every tensor, visiting layer 0 and only one of the layers above it."""
        first, above = (
            sum(cost(name, shape) for name, shape in self._cell_parameters(self._reads(layer))) for layer in (0, 1)
        )
        return self.num_directions * (first + (self.num_layers - 1) * above)

    def num_parameters(self) -> int:
        """Scalars in all parameter tensors: D·Σ 4·[(I_l + H_out)·H + 2H] + P·H, I_l being the layer's input width."""
        return self._total(lambda _, shape: math.prod(shape))

    def flops(self, seq_len: int, batch_size: int = 1) -> int:
        """Floating-point operations of one forward call, in its matrix products alone (a multiply-add counts as 2).

        Biases, gates and other element-wise work are left out, as ``torch.utils.flop_counter`` does: they grow with H,
        the products with H².

        Raises:
            ValueError: ``seq_len`` is no integer of at least 1, or ``batch_size`` none of at least 0.
        """
        if batch_size is None:
            raise ValueError("batch_size must be an int of at least 0, got None, which has no number of rows")
        self.shapes(seq_len, batch_size)  # refuses sizes that no call could have
        return seq_len * batch_size * self._total(lambda name, shape: 2 * math.prod(shape) if "weight" in name else 0)

    def nbytes(self, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of the parameters alone; gradients add as much again, and Adam's two moments twice as much.

        Raises:
            TypeError: ``dtype`` is no ``torch.dtype``.
        """
        require("dtype", dtype, torch.dtype, "a torch.dtype, such as torch.float16")
        return self.num_parameters() * dtype.itemsize

    def describe(self, seq_len: int = 20, batch_size: int | None = 32, dtype: torch.dtype = torch.float32) -> str:
        """Shapes, the table of tensors, totals and memory: the text of ``python -m lstm_utils describe``.

        Raises:
            TypeError, ValueError: from :meth:`shapes` and :meth:`nbytes`.
        """
        defaults = LSTMSpec(1, 1).as_dict() | {"input_size": None, "hidden_size": None}
        given = ", ".join(f"{name}={value!r}" for name, value in self.as_dict().items() if value != defaults[name])
        lines = [f"nn.LSTM({given})", ""]
        lines += [f"  {name:<7}{shape}" for name, shape in self.shapes(seq_len, batch_size)._asdict().items()]
        rows = replace(self, num_layers=min(self.num_layers, SHOWN_LAYERS)).parameter_shapes()
        width = max(len(name) for name in rows)
        lines += ["", *(f"  {name:<{width}}  {shape!s:<14}{math.prod(shape):>14,}" for name, shape in rows.items())]
        if (hidden := self.num_layers - SHOWN_LAYERS) > 0:
            lines.append(f"  … and {hidden:,} more layers, each with the shapes of layer {SHOWN_LAYERS - 1}")
        flops = self.flops(seq_len, 1 if batch_size is None else batch_size)
        lines += [
            "",
            f"  parameters  {self.num_parameters():,}",
            f"  memory      {_binary(self.nbytes(dtype))} as {str(dtype).removeprefix('torch.')}",
            f"  training    {_binary(4 * self.nbytes(dtype))} with gradients and Adam's two moments",
            f"  forward     {flops:,} FLOPs in matrix products",
        ]
        return "\n".join(lines)


def _binary(nbytes: int) -> str:
    """Bytes, at least one, in the largest binary unit that keeps the number at 1 or more."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    step = min(int(math.log2(nbytes) / 10), len(units) - 1)
    number = nbytes / 1024**step if nbytes < 2**1023 else Decimal(nbytes) / 1024**step  # which no float could hold
    return f"{number:,.4g} {units[step]}"
