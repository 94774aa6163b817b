"""Arguments that are refused before anything is computed from them, with what was wanted and what came."""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def require(name: str, value: object, kind: Any, wanted: str) -> None:
    """Refuse what is of another type.

    Raises:
        TypeError: the value is no ``kind``; ``wanted`` says in words what would do.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {wanted}, got {reprlib.repr(value)} of type {type(value).__name__}")


def require_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor, with a TypeError."""
    require(name, value, Tensor, "a tensor")


def require_module(name: str, value: object) -> None:
    """Refuse what is no module, the class of one included, with a TypeError."""
    require(name, value, nn.Module, "a module")


def require_lstm(name: str, value: object) -> None:
    """Refuse what is no ``nn.LSTM``, with a TypeError."""
    require(name, value, nn.LSTM, "an nn.LSTM, such as one of model.modules()")


def require_flag(name: str, value: object) -> None:
    """Refuse what is no bool, with a TypeError: the text "False" would count as true."""
    require(name, value, bool, "True or False")


def require_callable(name: str, value: object) -> None:
    """Refuse what cannot be called, with a TypeError: often the result of the call that was meant."""
    if not callable(value):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a function to call, got {reprlib.repr(value)} of type {kind}")


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """The value, one of the known names.

    Raises:
        ValueError: it is none of them; a list or another value that no set can hold is none either.
    """
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return value


def as_device(name: str, value: Any) -> torch.device:
    """The device that a text or a ``torch.device`` names, whether it is present here or not.

    Raises:
        TypeError: it is neither.
        ValueError: torch knows no such device.
    """
    require(name, value, str | torch.device, "a device, or the name of one such as 'cpu'")
    try:
        return torch.device(value)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} must name a device that torch knows, got {value!r}: {reason}") from error


def at_least(name: str, value: Any, least: int, most: int | None = None, named: str = "") -> int:
    """The value as an int.

    Raises:
        ValueError: it is no integer (a bool is none, nor is a float), or lies outside ``least`` to ``most``.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {named}{most}"
        raise ValueError(f"{name} must be an integer {span}, got {value!r}")
    return int(value)


def share(name: str, value: Any) -> float:
    """The value, a probability.

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value!r}")
    return float(value)


def positive(name: str, value: Any, zero: bool = False) -> float:
    """The value, a finite number above 0; with ``zero``, it may be 0 too.

    Raises:
        ValueError: it is none.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not (value > 0 or (zero and value == 0)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number {'of at least' if zero else 'above'} 0, got {value!r}")
    return float(value)


def check_states(lstm: Any, x: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None) -> None:
    """Refuse states of more layers or rows, of which a segment would take some, and a tensor without time.

    ``lstm`` is an ``nn.LSTM``, or what has its arguments as attributes.
    """
    if isinstance(x, PackedSequence):
        rows = [int(x.batch_sizes[0])]
    elif x.dim() not in (2, 3):
        raise ValueError(f"expected an input of 2D or 3D, got {x.dim()}D, the shape {tuple(x.shape)}")
    else:
        rows = [x.shape[0 if lstm.batch_first else 1]] if x.dim() == 3 else []
    for name, state, width in zip(
        ("h_0", "c_0"), hx or (), (lstm.proj_size or lstm.hidden_size, lstm.hidden_size), strict=False
    ):
        if state.shape != (shape := ((1 + lstm.bidirectional) * lstm.num_layers, *rows, width)):
            raise ValueError(f"{name} must have shape {shape}, whatever batch_first says, got {tuple(state.shape)}")


def require_even(width: int) -> None:
    """Refuse an output that cannot be split in two directions, with a ValueError."""
    if width % 2:
        raise ValueError(f"two directions have an even width together, got an output of width {width}")


def integers(lengths: Any) -> Tensor:
    """The lengths as an int64 tensor of one dimension, refused when they are nothing of the kind.

    Raises:
        TypeError, ValueError: they are no integers, or not of one dimension.
    """
    try:
        # A tensor as it is: under another default device, as_tensor would move it there.
        found = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(lengths).__name__
        raise TypeError(f"lengths must be integers, one for each sequence, got a {kind}: {error}") from error
    if found.dim() != 1 or not len(found):
        raise ValueError(f"lengths must be one integer for each sequence, got the shape {tuple(found.shape)}")
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        raise TypeError(f"lengths must be integers, got {found.dtype}; convert them where they are measured")
    if found.dtype == torch.uint64 and bool((found.to(torch.int64) < 0).any()):  # as int64 they would be negative
        raise ValueError(f"lengths must be smaller than 2**63, got {max(found.tolist())}")
    return found.to(torch.int64)
