"""One model at several sizes: inputs drawn like an example, and a comparison of what comes out."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

LENGTHS = "lengths"
# The names of an input's axes, from the first on, None where the size is fixed; or LENGTHS: N integers from 1 to T.
Axes = Sequence[str | None] | str
Shape = tuple[int | str, ...]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters and quantizers print, warn and log, in Python or from C++ on the descriptors 1 and 2."""
    kept, level = [os.dup(1), os.dup(2)], logging.root.manager.disable
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
        try:
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
        finally:
            for descriptor, stream in enumerate(kept, 1):
                os.dup2(stream, descriptor)
                os.close(stream)
            logging.disable(level)


@dataclass(frozen=True)
class Trial:
    """Inputs at some sizes, what PyTorch makes of them, and how many layers of LSTMs ran for that."""

    sizes: Mapping[str, int]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    layers: int

    def __str__(self) -> str:
        return ", ".join(f"{axis}={size}" for axis, size in self.sizes.items())


def run_trials(
    model: nn.Module, example: Mapping[str, Tensor], axes: Mapping[str, Axes], output_names: Sequence[str] = ()
) -> list[Trial]:
    """Call a model with an example, then with inputs of other sizes.

    The other sizes: each free axis at 1, and at twice its size, which an operator with the old size in it may take
    without an error; all at 1; all one longer. Values are drawn from the example's.

    Args:
        model: its ``forward`` takes the inputs in their order.
        example: by name of the input.
        axes: by name of the input.
        output_names: for the outputs, nested ones flattened.

    Raises:
        TypeError: the model returns something other than tensors.
        ValueError: it fails at one of the sizes, or axes, inputs and names do not fit each other.
    """
    return [_run(model, sizes, inputs, output_names) for sizes, inputs in _draws(example, axes)]


def free_shape(trials: Sequence[Trial], kind: str, name: str) -> Shape:
    """The shape of one of the "inputs" or "outputs", with names for the sizes that change.

    The name is that of the free axis which has the same size in every trial, or one made up from the tensor's name.

    Raises:
        ValueError: how many dimensions there are depends on the sizes.
    """
    shape: list[int | str] = []
    shapes = [tuple(getattr(trial, kind)[name].shape) for trial in trials]
    if len({*map(len, shapes)}) > 1:
        found = "; ".join(f"{seen} at {trial}" for seen, trial in zip(shapes, trials, strict=True))
        raise ValueError(
            f"how many dimensions {name} has depends on the sizes ({found}), and a file has a fixed number"
        )
    for at, sizes in enumerate(zip(*shapes, strict=True)):
        equal = [axis for axis in trials[0].sizes if [trial.sizes[axis] for trial in trials] == list(sizes)]
        shape.append(sizes[0] if len(set(sizes)) == 1 else (equal or [f"{name}_{at}"])[0])
    return tuple(shape)


def compare(run: Callable[[dict[str, Any]], Sequence[Any]], trial: Trial, tolerance: float) -> float:
    """The largest difference between what ``run`` makes of a trial's inputs and its outputs, relative to 1 + |value|.

    Args:
        run: takes arrays by name, returns arrays in the order of the outputs.
        trial: with PyTorch's outputs.
        tolerance: the largest difference that is no error.

    Raises:
        RuntimeError: it fails, returns other shapes, or other values.
    """
    cure = "a size was fixed as the model was traced: take sizes from tensor.shape, pad packed outputs to total_length"
    try:
        found = run({name: tensor.numpy() for name, tensor in trial.inputs.items()})
    except Exception as error:
        raise RuntimeError(f"the file fails at {trial}, and PyTorch does not; {cure}. {error}") from error
    worst = 0.0
    for (name, tensor), array in zip(trial.outputs.items(), found, strict=True):
        if array.shape != tuple(tensor.shape):
            shapes = f"the file gives {name} the shape {array.shape}, and PyTorch {tuple(tensor.shape)}"
            raise RuntimeError(f"at {trial}, {shapes}; {cure}")
        wanted = tensor.double().numpy()
        with np.errstate(invalid="ignore"):  # two that are infinite are equal, and have no difference
            gaps = np.where(array == wanted, 0, np.abs(array - wanted) / (1 + np.abs(wanted)))
        difference = float(gaps.max(initial=0))
        if not difference <= tolerance:  # nan is not, either
            raise RuntimeError(f"at {trial}, {name} differs by {difference:.2g}, and {tolerance:.2g} is allowed")
        worst = max(worst, difference)
    return worst


def _draws(
    example: Mapping[str, Tensor], axes: Mapping[str, Axes]
) -> Iterator[tuple[Mapping[str, int], Mapping[str, Tensor]]]:
    sizes: dict[str, int] = {}
    for name, tensor in example.items():
        if not tensor.numel():
            raise ValueError(f"the example of {name} has no entry to draw others from, got {tuple(tensor.shape)}")
        names = ("N",) if axes[name] == LENGTHS else axes[name]
        if not isinstance(names, list | tuple) or len(names) > tensor.dim():
            raise ValueError(f"the axes of {name}, of shape {tuple(tensor.shape)}, cannot be {names!r}")
        for size, axis in zip(tensor.shape, names, strict=False):
            if axis is not None and sizes.setdefault(axis, size) != size:
                raise ValueError(f"the axis {axis!r} is {size} long in {name}, and {sizes[axis]} in another input")
    if not sizes or (LENGTHS in axes.values() and not {"N", "T"} <= set(sizes)):
        raise ValueError(f"there must be a free axis, and with lengths both 'N' and 'T'; got {dict(axes)}")
    yield sizes, example
    others = [sizes | {axis: size} for axis in sizes for size in (1, 2 * sizes[axis])]
    others += [dict.fromkeys(sizes, 1), {axis: size + 1 for axis, size in sizes.items()}]
    random = torch.Generator().manual_seed(0)
    for other in (other for at, other in enumerate(others) if other not in (sizes, *others[:at])):
        yield other, {name: _draw(tensor, axes[name], other, random) for name, tensor in example.items()}


def _draw(tensor: Tensor, axes: Axes, sizes: Mapping[str, int], random: torch.Generator) -> Tensor:
    if axes == LENGTHS:  # 2, 3, … T, 1, 2, …: in no order, and where rows are few, none of them of all T steps
        return (1 + torch.arange(1, 1 + sizes["N"]) % sizes["T"]).to(tensor.dtype)
    names = [*axes, *[None] * (tensor.dim() - len(axes))]
    shape = [size if axis is None else sizes[axis] for axis, size in zip(names, tensor.shape, strict=True)]
    return tensor.flatten()[torch.randint(tensor.numel(), shape, generator=random)]


def _run(model: nn.Module, sizes: Mapping[str, int], inputs: Mapping[str, Tensor], names: Sequence[str]) -> Trial:
    layers: list[int] = []
    lstms = [module for module in model.modules() if isinstance(module, nn.LSTM)]
    hooks = [lstm.register_forward_pre_hook(lambda lstm, _: layers.append(lstm.num_layers)) for lstm in lstms]
    try:
        with torch.no_grad():
            result = model(*inputs.values())
    except Exception as error:
        where = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ValueError(f"PyTorch itself fails at {where}, with {type(error).__name__}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    outputs = list(_tensors(result))
    names = names or ["output", *(f"output_{k}" for k in range(1, len(outputs)))]
    if len(names) != len(outputs):
        raise ValueError(f"there are {len(outputs)} outputs, and {len(names)} output_names: {list(names)}")
    if len({*names, *inputs}) < len(names) + len(inputs) or "" in names:
        raise ValueError(f"output_names must differ, from one another and from {list(inputs)}, got {list(names)}")
    return Trial(sizes, inputs, dict(zip(names, outputs, strict=True)), sum(layers))


def _tensors(result: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples and lists in a row, as an exporter puts them."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list) and not isinstance(result, PackedSequence):
        for part in result:
            yield from _tensors(part)
    else:
        raise TypeError(f"the outputs of a file are tensors, and the model returns a {type(result).__name__}")
