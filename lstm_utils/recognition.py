"""Tell from an error, or from the arguments of a call before it is made, which pitfall it is."""

from __future__ import annotations

import re
import traceback
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_utils.findings import Case
from lstm_utils.pitfalls import find_pitfalls
from lstm_utils.probe import input_of, is_lstm
from lstm_utils.spec import LSTMSpec
from lstm_utils.trees import first_line, tensors

# Messages that much else gives as well: they count only where an LSTM raised them.
OF_AN_LSTM = {"P01", "P08", "P20", "P21", "P30", "P31"}


class UndefinedCallError(Exception):
    """Raised in place of a call that torch would not check, and that would read or write outside its tensors."""


def check_call(case: Case, name: str, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """What torch does not always check, or not in so many words, when the input of an LSTM is packed.

    That is how much of it there is (P10, P12), its width (P30), and the states (P01, P08, P20, P21).
    """
    x = input_of(arguments, keywords)
    case.hx = arguments[1] if len(arguments) > 1 else keywords.get("hx")
    if not isinstance(x, PackedSequence):
        return
    held, counted = len(x.data), int(x.batch_sizes.sum())
    if held != counted and (steps := _steps_beside(case, int(x.batch_sizes[0]))):
        pitfall = "P10" if len(x.batch_sizes) <= steps else "P12"
        case.found(pitfall, f"{name} got {held} packed steps, and the lengths sum to {counted}")
        raise UndefinedCallError
    if not isinstance(module, nn.LSTM):
        return
    spec = LSTMSpec.from_module(module)
    if x.data.shape[-1] != spec.input_size:
        case.found("P30", f"{name} has input_size={spec.input_size}, and its packed input is {x.data.shape[-1]} wide")
        raise UndefinedCallError
    shapes = spec.shapes(1, int(x.batch_sizes[0]))
    expected = (shapes.h_n, shapes.c_n)
    states = () if case.hx is None else tuple(case.hx)
    if isinstance(case.hx, Tensor) and tuple(tuple(state.shape) for state in states) != expected:
        case.found("P20", f"{name} got one tensor {tuple(case.hx.shape)} in place of the pair (h_0, c_0)")
        raise UndefinedCallError
    for number, (state, shape) in enumerate(zip(states, expected, strict=False)):
        if tuple(state.shape) != shape:
            message = f"Expected hidden[{number}] size {shape}, got {list(state.shape)}"
            case.found(_state_error(message) or "P08", f"{message} (packed, so torch does not always say it)")
            raise UndefinedCallError


def recognize(case: Case, error: Exception, what: str = "module") -> None:
    """Turn an error into a finding, or let it pass on."""
    message = f"{type(error).__name__}: {error}"
    pitfall = _pitfall_of(case, error, message)
    if pitfall is None:
        give_up(error, f"the {what} raised this, and no known pitfall says it")
    if not case.has(pitfall):
        case.found(pitfall, first_line(Exception(message)))


def give_up(error: Exception, why: str) -> NoReturn:
    """Let an error pass on, with a word on where it comes from."""
    error.add_note(f"lstm_utils.diagnose: {why}")
    raise error


def _pitfall_of(case: Case, error: Exception, message: str) -> str | None:
    """The pitfall that an error is the symptom of."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    known = [entry.id for entry in find_pitfalls(message)]
    for frame in frames:
        packing = frame.f_locals if frame.f_code.co_name == "pack_padded_sequence" else {}
        if ("P10" in known and packing) or (not known and packing.get("sorted_indices") is not None):
            return "P10" if _steps_beside(case, len(packing["lengths"])) else None
    if not known or known[0] == "P10":
        return None
    if known[0] in OF_AN_LSTM and not any(is_lstm(frame.f_locals.get("self")) for frame in frames):
        return None
    if known[0] == "P20" or "hx and cx should also be" in message:
        return "P20" if isinstance(case.hx, Tensor) else "P01" if "unbatched" in message else "P08"
    return _state_error(message) or known[0]


def _steps_beside(case: Case, count: int) -> int | None:
    """How many steps the batch has, if the other one of its first two dimensions is as long as there are lengths."""
    shape = next((tuple(tensor.shape[:2]) for tensor in tensors(case.batch) if tensor.dim() > 1), ())
    return shape[1 - shape.index(count)] if count in shape else None


def _state_error(message: str) -> str | None:
    """P01, P08 and P21 share one message; its numbers tell them apart."""
    match = re.search(r"Expected hidden\[\d\] size \(([\d, ]+)\), got \[([\d, ]+)\]", message)
    if match is None:
        return None
    expected, got = ([int(number) for number in group.split(", ")] for group in match.groups())
    if expected[-1] != got[-1]:
        return "P21"
    return "P01" if sorted(expected) == sorted(got) else "P08"
