"""Which steps of an LSTM's output reach the result, and whether as many come back as went in.

Autograd says it: where a step is not read, its gradient is exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_utils.findings import Case
from lstm_utils.padding import is_padded, positions
from lstm_utils.probe import LSTMCall, Run

# A unit behind a ReLU may be dead at one point, and a maximum reads one step alone. So what is read is asked at other
# points too: seeds and sizes of random outputs, each with its opposite.
NOISES = ((0, 1.0), (0, -1.0), (1, 10.0), (1, -10.0))


def check_reads(case: Case, base: Run, valid: list[Tensor | None]) -> None:
    """Which steps of each LSTM's output the results depend on (P03, P04); results of one shape count as one."""
    if all(call.steps_read(output) is None for call in base.calls for output in base.outputs):
        return  # the final states alone
    runs = [base]
    for noise in NOISES:
        other = case.attempt("which steps are read", noise=noise)
        if other is None:
            return
        runs.append(other)
    for shape in {tuple(output.shape): None for output in base.outputs}:
        results = [_parts(case, observed, shape, valid) for observed in runs]
        for number, call in enumerate(base.calls):
            found = [
                observed.calls[number].steps_read(part)
                for observed, parts in zip(runs, results, strict=True)
                for part in parts
                if number < len(observed.calls)
            ]
            reads = _any(found)
            if reads is not None:
                reads = reads if call.batched else reads[None]
                _check_last_step(case, call, reads)
                _check_single_steps(case, call, reads)
        for number in range(len(base.unpacked)):
            rows = [
                observed.unpacked[number].rows_read(part)
                for observed, parts in zip(runs, results, strict=True)
                for part in parts
                if number < len(observed.unpacked)
            ]
            _check_zeros_alone(case, base, number, _any(rows))


def _parts(case: Case, observed: Run, shape: tuple[int, ...], valid: list[Tensor | None]) -> list[Tensor]:
    """What counts of the results of one shape."""
    results = zip(observed.outputs, case.layouts, valid, strict=False)
    return [
        output.reshape(layout.shape)[counts]
        for output, layout, counts in results
        if tuple(output.shape) == shape and counts is not None
    ]


def _any(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Where one of several masks is set, of those that have the shape of the first."""
    known = [mask for mask in masks if mask is not None]
    return torch.stack([mask for mask in known if mask.shape == known[0].shape]).any(0) if known else None


def _check_last_step(case: Case, call: LSTMCall, reads: Tensor) -> None:
    """P04: a padded step is read."""
    lengths, steps = _lengths(case, call, reads), reads.any(-1)
    padded = steps & (positions(steps, 1) >= lengths)
    if bool(padded.any()):
        row, step = padded.nonzero()[0].tolist()
        seen = f"sample {row} has {int(lengths[row])} steps, and the result reads step {step} of {call.name}"
        case.found("P04", seen + " (counting from 0)")


def _check_zeros_alone(case: Case, base: Run, number: int, reads: Tensor | None) -> None:
    """P04: of a sequence that was packed and unpacked, the result reads nothing but the zeros behind it."""
    if reads is None or not bool((zeros := reads[:, 1] & ~reads[:, 0]).any()):
        return
    rows, sizes = zeros.nonzero().flatten(), base.unpacked[number].batch_sizes
    for call in reversed(base.calls):
        if isinstance(call.raw, PackedSequence) and torch.equal(call.raw.batch_sizes, sizes):
            order = call.raw.sorted_indices
            samples = sorted((rows if order is None else order.cpu()[rows]).tolist())
            seen = f"of the samples {samples} the result reads padding alone, zeros in the output of {call.name}"
            case.found("P04", seen)
            return


def _check_single_steps(case: Case, call: LSTMCall, reads: Tensor) -> None:
    """P03: one half of a bidirectional output is read only where it has seen a single step of a longer sequence."""
    if not call.module.bidirectional:
        return
    forward, reverse = (half.any(-1) for half in reads.chunk(2, dim=-1))
    lengths, steps = _lengths(case, call, reads), positions(forward, 1)
    starts = {"forward": (forward, (steps == 0).expand_as(forward)), "reverse": (reverse, steps >= lengths - 1)}
    for name, (half, start) in starts.items():
        used = half & (lengths > 1)
        if bool(used.any()) and not bool((used & ~start).any()):
            case.found("P03", f"the {name} half of {call.name} is read only where it has seen a single step")


def _lengths(case: Case, call: LSTMCall, reads: Tensor) -> Tensor:
    """Lengths of the sequences of one call, (N, 1): as packed, as given, or all T."""
    lengths = case.lengths if is_padded(case, call) else call.lengths
    if lengths is None:
        lengths = torch.full((len(reads),), reads.shape[1])
    return lengths.to(reads.device)[:, None]


def check_unpacking(case: Case, base: Run) -> None:
    """P11: the steps come back in the first dimension; or there are fewer than in the batch."""
    for leaf, layout in zip(base.leaves, case.layouts, strict=True):
        if isinstance(leaf, PackedSequence) or tuple(leaf.shape) != layout.shape:
            continue
        if leaf.dim() != 3 or layout.samples not in (0, 1):
            continue
        shape, time = tuple(leaf.shape), 1 - layout.samples
        turned = (case.batch_dim, layout.samples) == (0, 1) and not _is_for_ctc(case, leaf)
        if turned and base.counts_steps(leaf, time):
            case.found("P11", f"the batch came in batch first, and the result {shape} is time first")
        shrunk = [call for call in base.calls if call.lengths is not None and call.input.shape[1] == case.longest]
        if shape[time] == case.longest != case.steps and base.counts_steps(leaf, time, shrunk):
            case.found("P11", f"the batch has {case.steps} steps, and the result {shape} has {case.longest}")


def _is_for_ctc(case: Case, result: Tensor) -> bool:
    """Whether a result is what nn.CTCLoss expects, which is time first: log-probabilities."""
    sums_to_one = bool((result.logsumexp(-1).abs() < 1e-3).all()) and result.shape[-1] > 1
    return isinstance(case.loss, nn.CTCLoss) or sums_to_one
