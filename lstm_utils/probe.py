"""Run a module under observation: what its LSTMs were given, and which steps of their output its result reads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lstm_utils.reference import ReferenceLSTM

# Changes below this share of a tensor's largest entry are rounding.
ROUNDING = 1e-5

Inspect = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None]
Edit = Callable[[nn.Module, Tensor], Tensor]


def is_lstm(module: nn.Module) -> bool:
    """Whether a module is an LSTM with nn.LSTM's call; the quantized one is a class of its own, of the same name."""
    return isinstance(module, nn.LSTM | ReferenceLSTM) or type(module).__name__ == "LSTM"


@dataclass(frozen=True)
class LSTMCall:
    """One call of one LSTM: its name in the module, and what went in and came out, padded to (N, T, width).

    ``lengths`` is None where the call was not packed; ``raw`` is the tensor that the rest of the module received.
    """

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor
    states: tuple[Tensor, ...]
    lengths: Tensor | None
    raw: Tensor | PackedSequence

    @property
    def batched(self) -> bool:
        """Whether the input had a batch dimension."""
        return self.input.dim() == 3

    def gradient(self, gradient: Tensor) -> Tensor:
        """A gradient with respect to the output, padded to (N, T, width) like the output itself."""
        if isinstance(self.raw, PackedSequence):
            raw = self.raw
            packed = PackedSequence(gradient, raw.batch_sizes, raw.sorted_indices, raw.unsorted_indices)
            return pad_packed_sequence(packed, batch_first=True)[0]
        return gradient if self.module.batch_first or gradient.dim() == 2 else gradient.transpose(0, 1)

    def steps_read(self, result: Tensor) -> Tensor | None:
        """Which entries of the output the sum of ``result`` depends on: bool (N, T, width), or None if on none."""
        raw = self.raw.data if isinstance(self.raw, PackedSequence) else self.raw
        if not (result.requires_grad and raw.requires_grad):  # a reentrant checkpoint takes it from what it returns
            return None
        (gradient,) = torch.autograd.grad(result.sum(), raw, retain_graph=True, allow_unused=True)
        return None if gradient is None else self.gradient(gradient) != 0


@dataclass(frozen=True)
class Run:
    """What a module returned, and the calls of its LSTMs in order."""

    result: Any
    calls: list[LSTMCall] = field(default_factory=list)

    @property
    def outputs(self) -> list[Tensor]:
        """Every tensor of floating-point numbers in the result."""
        return [t for t in tensors(self.result) if t.is_floating_point()]

    def is_state(self, tensor: Tensor) -> bool:
        """Whether a tensor is the h_n or c_n of a call."""
        states = [state for call in self.calls for state in call.states]
        return any(state.shape == tensor.shape and torch.equal(state, tensor) for state in states)


def call(model: nn.Module, batch: Any) -> Any:
    """``model(*batch)`` for a tuple, ``model(**batch)`` for a mapping, otherwise ``model(batch)``."""
    if isinstance(batch, PackedSequence):  # a tuple too
        return model(batch)
    if isinstance(batch, tuple):
        return model(*batch)
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of nested tuples, lists and mappings with every tensor changed; of a PackedSequence the data alone."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, PackedSequence):
        return PackedSequence(change(tree.data), *tree[1:])
    if isinstance(tree, Mapping):
        return {name: map_tensors(value, change) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [map_tensors(value, change) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return tree


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and mappings; a PackedSequence comes padded, (T, N, width)."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, PackedSequence):
        yield pad_packed_sequence(tree)[0]
    elif isinstance(tree, Mapping | tuple | list):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from tensors(value)


def run(
    model: nn.Module, batch: Any, inspect: Inspect | None = None, edit: Edit | None = None, noise: int | None = None
) -> Run:
    """Call a copy of the module in eval mode, always with the same random numbers.

    Args:
        model: left as it is.
        batch: its arguments, see :func:`call`.
        inspect: called before each LSTM with its name, itself, and its arguments; may raise.
        edit: called with each LSTM and its unpacked input; returns the input to use instead.
        noise: replace what the LSTMs put out by random numbers from this seed: what reads it is asked at another point.
    """
    model = copy.deepcopy(model).eval()
    calls: list[LSTMCall] = []

    def before(name: str, module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        if inspect:
            inspect(name, module, arguments, keywords)
        if edit and arguments and isinstance(arguments[0], Tensor):
            arguments = (edit(module, arguments[0]), *arguments[1:])
        return arguments, keywords

    def after(name: str, module: nn.Module, arguments: Any, keywords: dict[str, Any], result: Any) -> Any:
        output, states = result
        data = output.data if isinstance(output, PackedSequence) else output
        if noise is not None:
            generator = torch.Generator().manual_seed(noise)
            data = torch.randn(data.shape, generator=generator).to(data) + 0 * data
        if not data.requires_grad:
            data = data.detach().requires_grad_()
        output = PackedSequence(data, *output[1:]) if isinstance(output, PackedSequence) else data
        given = arguments[0] if arguments else keywords["input"]
        (x, lengths), (y, _) = _padded(module, given), _padded(module, output)
        calls.append(LSTMCall(name, module, x.detach(), y, tuple(states), lengths, output))
        return output, states

    for name, module in model.named_modules():
        if is_lstm(module):
            label = name or type(module).__name__
            module.register_forward_pre_hook(lambda m, a, k, n=label: before(n, m, a, k), with_kwargs=True)
            module.register_forward_hook(lambda m, a, k, r, n=label: after(n, m, a, k, r), with_kwargs=True)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        result = call(model, map_tensors(batch, lambda tensor: tensor.detach().clone()))
    return Run(result, calls)


def _padded(module: nn.Module, x: Tensor | PackedSequence) -> tuple[Tensor, Tensor | None]:
    """A sequence as (N, T, width), and its lengths if it was packed; an unbatched one stays (T, width)."""
    if isinstance(x, PackedSequence):
        return pad_packed_sequence(x, batch_first=True)
    return (x if module.batch_first or x.dim() == 2 else x.transpose(0, 1)), None


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Where two tensors differ by more than rounding: bool, of their shape."""
    scale = before.abs().max().clamp(min=1e-30)
    return (before - after).abs() > ROUNDING * scale


def changed_along(mask: Tensor, dim: int) -> set[int]:
    """The positions along a dimension at which a mask is set anywhere."""
    return set(mask.movedim(dim, 0).flatten(1).any(1).nonzero().flatten().tolist())
