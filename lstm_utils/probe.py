"""Run a module under observation: what its LSTMs were given, and which steps of their output its result reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode

from lstm_utils.reference import ReferenceLSTM
from lstm_utils.trees import call_with, changed_along, copy_of, detached, first_line, leaves

Inspect = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None]
Edit = Callable[[int, nn.Module, Tensor], Tensor]


def is_lstm(module: Any) -> bool:
    """Whether this is an LSTM with nn.LSTM's call; the quantized one is a class of its own, of the same name."""
    kind = type(module)
    return isinstance(module, nn.LSTM | ReferenceLSTM) or (
        kind.__name__ == "LSTM" and kind.__module__.startswith("torch.")
    )


@dataclass(frozen=True, eq=False)
class LSTMCall:
    """One call of one LSTM: its name in the module, and what went in, padded to (N, T, width), and came out.

    ``lengths`` is None where the call was not packed; ``raw`` is the tensor that the rest of the module received, and
    ``visible`` says whether autograd was on.
    """

    number: int
    name: str
    module: nn.Module
    input: Tensor
    states: tuple[Tensor, ...]
    lengths: Tensor | None
    raw: Tensor | PackedSequence
    visible: bool

    @property
    def batched(self) -> bool:
        """Whether the input had a batch dimension."""
        return self.input.dim() == 3

    @property
    def data(self) -> Tensor:
        """The numbers of the output, packed or not."""
        return self.raw.data if isinstance(self.raw, PackedSequence) else self.raw

    def steps_read(self, result: Tensor) -> Tensor | None:
        """Which entries of the output ``result`` depends on: bool (N, T, width), or None if on none."""
        gradient = _gradient(result, self.data)
        if gradient is None:
            return None
        packed = isinstance(self.raw, PackedSequence)
        gradient, _ = padded(self.module, PackedSequence(gradient, *self.raw[1:]) if packed else gradient)
        return gradient != 0


@dataclass(frozen=True)
class Unpacked:
    """What ``pad_packed_sequence`` returned, the longest sequence first, and how many sequences have each step."""

    tensor: Tensor
    batch_sizes: Tensor
    batch_first: bool

    @property
    def total_length(self) -> int:
        """Steps, with the padding."""
        return self.tensor.shape[1 if self.batch_first else 0]

    def rows_read(self, result: Tensor) -> Tensor:
        """Whether ``result`` depends on the steps of each sequence, and on the zeros behind them: bool (N, 2)."""
        gradient = _gradient(result, self.tensor)
        if gradient is None:
            return torch.zeros(int(self.batch_sizes[0]), 2, dtype=torch.bool)
        read = (gradient if self.batch_first else gradient.transpose(0, 1)).flatten(2).any(-1).cpu()
        real = (
            torch.arange(len(read))[:, None] < nn.functional.pad(self.batch_sizes, (0, read.shape[1]))[: read.shape[1]]
        )
        return torch.stack([(read & real).any(1), (read & ~real).any(1)], dim=1)


def _gradient(result: Tensor, tensor: Tensor) -> Tensor | None:
    """The gradient of a random sum of ``result``; None where nothing depends on the tensor."""
    if not result.requires_grad or not tensor.requires_grad:
        return None
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(0)).to(result)  # probabilities sum to 1
    (gradient,) = torch.autograd.grad(result, tensor, weights, retain_graph=True, allow_unused=True)
    return None if gradient is None else gradient.nan_to_num(0)  # nan is a finding of its own


@dataclass(frozen=True)
class Run:
    """What a module returned, and the calls of its LSTMs and of ``pad_packed_sequence``, each in order."""

    result: Any
    calls: tuple[LSTMCall, ...]
    unpacked: tuple[Unpacked, ...]

    @cached_property
    def leaves(self) -> list[Tensor | PackedSequence]:
        """Whatever in the result holds floating-point numbers."""
        found = (leaf for leaf in leaves(self.result) if leaf.data.is_floating_point())
        return [leaf for leaf in found if leaf.data.numel()]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """The same as tensors; a PackedSequence comes padded, (N, T, width)."""
        return [pad_packed_sequence(x, True)[0] if isinstance(x, PackedSequence) else x for x in self.leaves]

    @cached_property
    def unreadable(self) -> str:
        """Why autograd cannot tell what the result reads, or nothing."""
        wanted = [output.sum() for output in self.outputs if output.requires_grad]
        if not wanted or not self.calls:
            return "no gradient leads from the result to an LSTM"
        data = [call.data for call in self.calls]
        try:
            gradients = torch.autograd.grad(wanted, data, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            return f"autograd says: {first_line(error)}"
        for call, gradient in zip(self.calls, gradients, strict=True):
            if gradient is None and not call.visible:  # in a reentrant checkpoint, for one
                return f"{call.name} ran where gradients are off"
        return ""

    def is_state(self, tensor: Tensor) -> bool:
        """Whether a tensor is the h_n or c_n of a call."""
        states = [state for call in self.calls for state in call.states]
        return any(state.shape == tensor.shape and torch.equal(state, tensor) for state in states)

    def counts_steps(self, tensor: Tensor, dim: int, calls: Sequence[LSTMCall] | None = None) -> bool:
        """Whether a dimension of a result counts steps: whether its first and its last slice read different ones."""
        for call in self.calls if calls is None else calls:
            end = min(tensor.shape[dim], call.input.shape[-2]) - 1  # behind a packed run there may be more zeros
            slices = [call.steps_read(tensor.select(dim, at)) for at in (0, end)] if call.batched else []
            read = [changed_along(mask, 1) for mask in slices if mask is not None and bool(mask.any())]
            if len(read) == 2 and read[0] != read[1]:
                return True
        return False


@contextmanager
def experiment() -> Iterator[None]:
    """The same random numbers each time; autograd on, and cuDNN off: it cannot go backward in eval mode (P27)."""
    on_gpu = torch.cuda.default_generators  # none before CUDA is in use; torch.manual_seed would seed it then, later
    fork = torch.random.fork_rng(range(len(on_gpu)))
    with fork, torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        for generator in (torch.default_generator, *on_gpu):
            generator.manual_seed(0)
        yield


def run(
    model: nn.Module,
    batch: Any,
    inspect: Inspect | None = None,
    edit: Edit | None = None,
    noise: tuple[int, float] | None = None,
    more_steps: int = 0,
) -> Run:
    """Call a copy of the module in eval mode, always with the same random numbers.

    Args:
        model: left as it is.
        batch: its arguments, see :func:`call`.
        inspect: called before each LSTM with its name, itself, and its arguments; may raise.
        edit: called with the number of the call, the LSTM, and its unpacked input; returns the input to use instead.
        noise: seed and size of the random numbers that replace what the LSTMs put out: what reads it is asked at
            another point.
        more_steps: steps of zeros that every unpacking appends.
    """
    model = copy_of(model)
    calls: list[LSTMCall] = []

    def before(name: str, module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        if inspect:
            inspect(name, module, arguments, keywords)
        given = input_of(arguments, keywords)
        if edit and isinstance(given, Tensor):
            given = edit(len(calls), module, given)
            return ((given, *arguments[1:]), keywords) if arguments else ((), keywords | {"input": given})
        return None

    def after(name: str, module: nn.Module, arguments: Any, keywords: dict[str, Any], result: Any) -> Any:
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor | PackedSequence):
            return None  # a subclass with a call of its own
        output, states = result
        data = output.data if isinstance(output, PackedSequence) else output
        if noise is not None:
            generator = torch.Generator().manual_seed(noise[0])
            drawn = noise[1] * torch.randn(data.shape, generator=generator)
            data = drawn.to(data) + (data - data.detach())  # the gradient passes to what lies below
        if not data.requires_grad:  # a frozen LSTM
            data = data.detach().requires_grad_()
        output = PackedSequence(data, *output[1:]) if isinstance(output, PackedSequence) else data
        x, lengths = padded(module, input_of(arguments, keywords))
        calls.append(
            LSTMCall(len(calls), name, module, x.detach(), tuple(states), lengths, output, torch.is_grad_enabled())
        )
        return output, states

    for name, module in model.named_modules():
        if is_lstm(module):
            label = name or type(module).__name__
            module.register_forward_pre_hook(lambda m, a, k, n=label: before(n, m, a, k), with_kwargs=True)
            module.register_forward_hook(lambda m, a, k, r, n=label: after(n, m, a, k, r), with_kwargs=True)
    with experiment(), _Unpacking(more_steps) as unpacking:
        result = call_with(model, detached(batch))
    return Run(result, tuple(calls), tuple(unpacking.seen))  # a checkpoint calls its LSTM again, later


class _Unpacking(TorchFunctionMode):
    """While it is active, ``pad_packed_sequence`` is recorded, and appends so many steps of padding."""

    def __init__(self, more_steps: int) -> None:
        super().__init__()
        self.more_steps = more_steps
        self.seen: list[Unpacked] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "_pad_packed_sequence":
            return func(*args, **(kwargs or {}))
        *others, total_length = args
        result = func(*others, total_length + self.more_steps)
        self.seen.append(Unpacked(result[0], args[1], args[2]))
        return result


def input_of(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """The input among the arguments of an LSTM's call."""
    return arguments[0] if arguments else keywords["input"]


def padded(module: nn.Module, x: Tensor | PackedSequence) -> tuple[Tensor, Tensor | None]:
    """A sequence as (N, T, width), and its lengths if it was packed; an unbatched one stays (T, width)."""
    if isinstance(x, PackedSequence):
        return pad_packed_sequence(x, batch_first=True)
    return (x if module.batch_first or x.dim() == 2 else x.transpose(0, 1)), None
