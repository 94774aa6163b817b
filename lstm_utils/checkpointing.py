"""Sequences longer than the memory: an LSTM in segments of time under ``torch.utils.checkpoint``, and truncated BPTT.

A segment keeps its input and the state that it began with; the backward pass runs it a second time, one segment after
the other, so that what one of them keeps for its gradient is all that exists at a time. The gradients are those of the
plain run. Truncated backpropagation cuts the gradient instead, and is an approximation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

from lstm_utils.arguments import at_least, check_states, require, require_callable, require_flag
from lstm_utils.reference import States

Readout = Callable[[Tensor], Tensor]
Sequences = TypeVar("Sequences", Tensor, PackedSequence)


def checkpointed_lstm(
    lstm: nn.LSTM,
    x: Sequences,
    hx: States | None = None,
    *,
    segments: int | None = None,
    per_layer: bool = False,
    readout: Readout | None = None,
) -> tuple[Sequences, States]:
    """``lstm(x, hx)`` with the same results and gradients, in less memory: run in segments, recomputed in backward.

    With dropout, masks are drawn for each segment, and the same ones again in the backward pass. So a seed gives other
    masks than in the plain run (with ``per_layer``, time first and on a CPU, the same).

    Args:
        lstm: called by pieces; its parameters get their gradients as ever.
        x: (T, N, I), (N, T, I) with ``batch_first``, unbatched (T, I), or packed.
        hx: (h_0, c_0), as ``lstm`` takes them; zeros when left out.
        segments: pieces of (nearly) equal length that the T steps are cut into; about √T when left out.
        per_layer: run one layer after the other over all T steps, each in segments. It keeps the output of every layer
            whole, so it is for two directions: the reverse one begins at step T, and a stack of layers has no state
            in the middle of the sequence from which both could go on.
        readout: applied to the output of each segment, and recomputed with it, so that ``output``, of T·N·H_out
            numbers, never exists as a whole. Maps (T_s, N, H_out) to (T_s, N, …), in the layout of ``x`` and step by
            step (packed: rows to rows).

    Returns:
        output (with ``readout``: its results, joined along time) and (h_n, c_n), as ``lstm`` returns them.

    Raises:
        TypeError: ``lstm`` is no ``nn.LSTM``, or another argument of the wrong type.
        ValueError, RuntimeError: ``segments`` is no integer from 1 to T, or states, input or options do not fit.

    Source: Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost"; in time, Gruslys et al. (2016),
    "Memory-Efficient Backpropagation Through Time".
    """
    _check_module(lstm)
    require_flag("per_layer", per_layer)
    require("x", x, Tensor | PackedSequence, "a tensor or a PackedSequence")
    require_callable("readout", abs if readout is None else readout)
    if lstm.bidirectional and not per_layer:
        raise ValueError(
            "a bidirectional LSTM cannot be cut in time, since its reverse direction begins at the last step; "
            "pass per_layer=True, which cuts each direction of each layer"
        )
    if lstm.bidirectional and readout is not None:
        raise ValueError(
            "readout cannot be applied in a segment of a bidirectional LSTM, where the other direction is missing; "
            "apply it to the output"
        )
    check_states(lstm, x, hx)
    if isinstance(x, PackedSequence):
        if per_layer:
            cure = "leave it out, or for two directions batch sequences of equal length"
            raise ValueError(f"per_layer=True does not take a PackedSequence; {cure}")
        return _packed(lstm, x, hx, _count(segments, len(x.batch_sizes)), readout)
    time = _time(lstm, x)
    pieces = _count(segments, x.shape[time])
    if not per_layer:
        return _segmented(lstm, x.tensor_split(pieces, time), hx, time, readout)
    finals: list[States] = []
    for layer in range(lstm.num_layers):
        if layer and lstm.dropout:
            x = F.dropout(x, lstm.dropout, lstm.training)
        halves = []
        for reverse in (False, True)[: 1 + lstm.bidirectional]:
            row = len(finals)
            start = None if hx is None else (hx[0][row : row + 1], hx[1][row : row + 1])
            read = readout if layer == lstm.num_layers - 1 else None
            part = _part(lstm, layer, reverse)
            half, final = _segmented(part, x.tensor_split(pieces, time), start, time, read, reverse)
            halves.append(half)
            finals.append(final)
        x = torch.cat(halves, -1) if lstm.bidirectional else halves[0]
    return x, _join(finals, 0)


class Chunk(NamedTuple):
    """A window of truncated backpropagation.

    Args:
        steps: which steps of the sequence it covers; index the targets with it, along time.
        output: the LSTM's, for these steps, with a graph that begins at the window's first step.
        state: (h_n, c_n) after its last step, detached: where the next window begins, or the next batch.
    """

    steps: slice
    output: Tensor
    state: States


def truncated_bptt(lstm: nn.LSTM, x: Tensor, length: int, hx: States | None = None) -> Iterator[Chunk]:
    """The windows of a sequence for truncated backpropagation: the state is carried on, the gradient is not.

    Take the loss of each window and call ``backward()`` before the next is asked for: then the memory is that of one
    window. An optimizer's step in between is allowed; the carried state is then that of the older weights.

    Args:
        lstm: in one direction.
        x: (T, N, I), (N, T, I) with ``batch_first``, or unbatched (T, I).
        length: steps in a window; the last one may be shorter. T gives ordinary backpropagation.
        hx: (h_0, c_0), as ``lstm`` takes them; zeros when left out. The first window's gradient reaches it.

    Yields:
        a :class:`Chunk` for each window, from the first step on.

    Raises:
        TypeError: ``lstm`` is no ``nn.LSTM``, or ``x`` is packed.
        ValueError, RuntimeError: ``length`` is no positive integer, the LSTM bidirectional, or states or ``x`` unfit.

    Source: Williams and Peng (1990), "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
    Trajectories", with windows that do not overlap.
    """
    _check_module(lstm)
    if not isinstance(x, Tensor):
        raise TypeError(f"truncated_bptt needs a padded tensor, got {type(x).__name__}; mask the loss of each window")
    if lstm.bidirectional:
        raise ValueError("truncated_bptt needs one direction: the reverse one would have to begin at the last step")
    check_states(lstm, x, hx)
    return _windows(lstm, x, at_least("length", length, 1), hx)


def _windows(lstm: nn.LSTM, x: Tensor, length: int, hx: States | None) -> Iterator[Chunk]:
    """The generator itself, apart, so that a wrong argument is refused in the call and not in the first window."""
    start, steps = 0, x.shape[_time(lstm, x)]
    for piece in torch.split(x, max(1, min(length, steps)), _time(lstm, x)):  # one that fits into 64 bits
        output, (h, c) = lstm(piece, hx)
        hx = h.detach(), c.detach()
        yield Chunk(slice(start, start := start + piece.shape[_time(lstm, x)]), output, hx)


def _check_module(lstm: nn.LSTM) -> None:
    if not isinstance(lstm, nn.LSTM):
        raise TypeError(f"expected an nn.LSTM, whose output and states are known, got {type(lstm).__name__}")


def _time(lstm: nn.LSTM, x: Tensor) -> int:
    """The dimension of time."""
    return 1 if lstm.batch_first and x.dim() == 3 else 0


def _count(segments: int | None, seq_len: int) -> int:
    """The number of segments, refused when the steps cannot be cut into so many."""
    if segments is None:
        return max(1, round(math.sqrt(seq_len)))
    return at_least("segments", segments, 1, seq_len, "T = ")


def _checkpointed(
    lstm: nn.LSTM,
    readout: Readout | None,
    x: Tensor,
    state: States | None,
    sizes: Tensor | None = None,
    flip: int | None = None,
) -> tuple[Tensor, States]:
    """One segment, which keeps nothing but its arguments."""

    def run(x: Tensor, *state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x if flip is None else x.flip(flip)
        result, (h, c) = lstm(x if sizes is None else PackedSequence(x, sizes), state or None)
        output: Tensor = result if sizes is None else result.data
        output = output if flip is None else output.flip(flip)
        return output if readout is None else readout(output), h, c

    # Keeping the random state costs 5 KiB a segment: only where something may draw from it.
    draws = (lstm.training and lstm.dropout > 0) or readout is not None
    # The other variant, use_reentrant=True, gives no gradient at all where the input needs none.
    output, h, c = checkpoint(run, x, *(state or ()), use_reentrant=False, preserve_rng_state=draws)
    return output, (h, c)


def _segmented(
    lstm: nn.LSTM,
    pieces: Sequence[Tensor],
    state: States | None,
    time: int,
    readout: Readout | None = None,
    reverse: bool = False,
) -> tuple[Tensor, States]:
    """The segments one after the other, from the last one back in the reverse direction."""
    outputs = []
    for piece in reversed(pieces) if reverse else pieces:
        output, state = _checkpointed(lstm, readout, piece, state, flip=time if reverse else None)
        outputs.append(output)
    assert state is not None  # there is at least one piece
    return torch.cat(outputs[::-1] if reverse else outputs, time), state


def _packed(
    lstm: nn.LSTM, x: PackedSequence, hx: States | None, segments: int, readout: Readout | None
) -> tuple[PackedSequence, States]:
    """Segments of a packed batch: rows that have ended leave the state, and come back at the end."""
    if hx is not None and x.sorted_indices is not None:
        hx = hx[0][:, x.sorted_indices], hx[1][:, x.sorted_indices]
    sizes = x.batch_sizes.tensor_split(segments)
    outputs, ended, state = [], [], hx
    for data, size in zip(torch.split(x.data, [int(size.sum()) for size in sizes]), sizes, strict=True):
        if state is not None:
            running = int(size[0])
            ended.append((state[0][:, running:], state[1][:, running:]))
            state = state[0][:, :running], state[1][:, :running]
        output, state = _checkpointed(lstm, readout, data, state, size)
        outputs.append(output)
    assert state is not None  # there is at least one segment
    h, c = _join([state, *reversed(ended)], 1)  # longest first, as they were sorted
    if x.unsorted_indices is not None:
        h, c = h[:, x.unsorted_indices], c[:, x.unsorted_indices]
    return PackedSequence(torch.cat(outputs), x.batch_sizes, x.sorted_indices, x.unsorted_indices), (h, c)


def _join(states: Sequence[States], dim: int) -> States:
    return torch.cat([h for h, _ in states], dim), torch.cat([c for _, c in states], dim)


def _part(lstm: nn.LSTM, layer: int, reverse: bool) -> nn.LSTM:
    """One direction of one layer as a module of its own, with the same parameters and not copies."""
    width = (1 + lstm.bidirectional) * (lstm.proj_size or lstm.hidden_size) if layer else lstm.input_size
    same = {"bias": lstm.bias, "batch_first": lstm.batch_first, "proj_size": lstm.proj_size}
    part = nn.LSTM(width, lstm.hidden_size, **same, device="meta")  # allocates nothing
    for name in [name for name, _ in part.named_parameters()]:
        setattr(part, name, getattr(lstm, name.replace("_l0", f"_l{layer}{'_reverse' * reverse}")))
    return part.train(lstm.training)
