"""Ways to break the answer to an exercise. `mutate_book.py` runs this file's text in the kernel of a chapter."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence


def offset(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, torch.Tensor | np.ndarray) and value.dtype in (torch.bool, np.dtype(bool)):
        return ~value
    return value + "x" if isinstance(value, str) else value + 1


def opposite(value: Any) -> Any:
    if isinstance(value, str | bool) or getattr(value, "dtype", None) in (torch.bool, np.dtype(bool)):
        return value
    return -value


def zeroed(value: Any) -> Any:
    return value * 0 if not isinstance(value, str | bool) else type(value)()


def each(value: Any, change: Callable[[Any], Any], number: int | None = None) -> Any:
    """The value after a change of all its parts, or of the one that comes at this place."""
    count = itertools.count()

    def walk(part: Any) -> Any:
        if isinstance(part, PackedSequence):
            return part._replace(data=walk(part.data))
        if isinstance(part, dict):
            return {key: walk(one) for key, one in part.items()}
        if isinstance(part, set):
            return set(map(walk, sorted(part)))
        if isinstance(part, tuple) and hasattr(part, "_make"):
            return part._make(map(walk, part))
        if isinstance(part, list | tuple):
            return type(part)(map(walk, part))
        if dataclasses.is_dataclass(part):
            return dataclasses.replace(part, **{f.name: walk(getattr(part, f.name)) for f in dataclasses.fields(part)})
        if isinstance(part, slice):
            return slice(walk(part.start), walk(part.stop), part.step)
        leaf = isinstance(part, str | bool | int | float | np.generic | np.ndarray | torch.Tensor)
        return change(part) if leaf and number in (None, next(count)) else part

    return walk(value)


def parts(value: Any) -> int:
    seen = []
    each(value, lambda part: seen.append(part) or part)
    return len(seen)


def is_row(value: Any) -> bool:
    return isinstance(value, list | tuple | str | torch.Tensor | np.ndarray) and getattr(value, "ndim", 1) > 0


def shorter(value: Any) -> Any:
    if isinstance(value, PackedSequence) or not is_row(value):
        return value
    return type(value)(value[:-1]) if type(value) in (list, tuple) else value[:-1]


def turned(value: Any) -> Any:
    if isinstance(value, PackedSequence) or not is_row(value):
        return value
    return value.flip(0) if isinstance(value, torch.Tensor) else value[::-1]


CHANGES = {
    "offset": lambda value: each(value, offset),
    "opposite": lambda value: each(value, opposite),
    "zero": lambda value: each(value, zeroed),
    "shorter": shorter,
    "turned": turned,
    "first part offset": lambda value: each(value, offset, 0),
    "last part offset": lambda value: each(value, offset, parts(value) - 1),
}


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor | np.ndarray):
        return one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def tensors(argument: Any) -> list[torch.Tensor]:
    """What a function may have been given to change: the parameters of a module, or the gradients of a list."""
    if isinstance(argument, nn.Module):
        return [parameter.detach() for parameter in argument.parameters()]
    parts = argument if isinstance(argument, list | tuple) else []
    return [part.grad for part in parts if isinstance(part, torch.Tensor) and part.is_leaf and part.grad is not None]


def broken_answers(right: Any) -> Iterator[tuple[str, Any, Callable[[], bool]]]:
    """Each way: its name, the broken answer, and whether it has differed from the right one so far."""
    if not callable(right):
        for name, change in CHANGES.items():
            yield name, change(right), lambda change=change: not same(change(right), right)
        return
    yield "nothing", lambda *_, **__: None, lambda: True
    for name, change in CHANGES.items():
        differed: list[bool] = []

        def after(result: Any, change: Any = change, differed: list[bool] = differed) -> Any:
            changed = change(result)
            differed.append(not same(changed, result))
            return changed

        if isinstance(right, type):  # a module: what it returns is changed

            def forward(self: Any, *arguments: Any, after: Any = after) -> Any:
                return after(right.forward(self, *arguments))

            yield name, type("Broken", (right,), {"forward": forward}), lambda differed=differed: any(differed)
        else:
            yield name, lambda *a, after=after, **k: after(right(*a, **k)), lambda differed=differed: any(differed)
    if not isinstance(right, type):
        for way in ("what it changes left as it was", "what it changes changed too much"):
            moved: list[bool] = []

            def meddling(*arguments: Any, way: str = way, moved: list[bool] = moved, **named: Any) -> Any:
                arguments = tuple(list(one) if isinstance(one, Iterator) else one for one in arguments)
                held = [(tensor, tensor.clone()) for one in arguments for tensor in tensors(one)]
                result = right(*arguments, **named)
                changed = [(tensor, before) for tensor, before in held if not torch.equal(tensor, before)]
                for tensor, before in changed:
                    tensor.copy_(before if way.endswith("as it was") else tensor + 1)
                moved.append(bool(changed))
                return result

            yield way, meddling, lambda moved=moved: any(moved)


def randomness() -> tuple[Any, ...]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002


def restore(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])  # noqa: NPY002
