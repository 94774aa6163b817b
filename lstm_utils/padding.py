"""Sequences shorter than their batch: which entries are padding, and whether padding moves the result.

Two experiments: other numbers in the padding that an LSTM reads, and more zeros behind what was unpacked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lstm_utils.findings import Case
from lstm_utils.probe import LSTMCall, Run, run
from lstm_utils.trees import changed, changed_along


def settle_lengths(case: Case, base: Run) -> None:
    """Hold the lengths against the steps that LSTMs read (P12), and say to which inputs they do not apply."""
    if case.size is None or case.steps is None or case.lengths is None or case.longest is None:
        return
    unpacked = [call for call in base.calls if call.lengths is None]
    read = {call.input.shape[1] for call in unpacked if call.batched and call.input.shape[0] == case.size}
    if case.longest > case.steps and case.steps in read:
        case.found("P12", f"the longest length is {case.longest}, and the batch has {case.steps} steps")
        case.lengths = None
        case.unchecked.append("padding, since the lengths are wrong")
        return
    if case.longest > case.steps:  # the module makes the steps, of images say
        behind = [unpacked.total_length for unpacked in base.unpacked]
        case.steps = max([case.longest, *behind, *(read if len(read) == 1 else [])])
    loops: dict[str, list[int]] = {}
    for call in unpacked:
        if not call.batched or call.input.shape[0] == 1:
            loops.setdefault(call.name, []).append(call.input.shape[-2])
    for call in unpacked:
        cut = sorted(loops.get(call.name, [])) == sorted(case.lengths.tolist())  # a loop over the samples
        if case.padded and not cut and not is_padded(case, call):
            case.unchecked.append(f"padding in the input of {call.name}, {tuple(call.input.shape)}")


def is_padded(case: Case, call: LSTMCall) -> bool:
    """Whether the lengths of the case are those of a call."""
    fits = call.lengths is None and tuple(call.input.shape[:-1]) == (case.size, case.steps)
    return case.padded and fits and (case.reading is None or call.number in case.reading)


def positions(tensor: Tensor, dim: int) -> Tensor:
    """0, 1, 2, … along a dimension of a tensor, in a shape that fits it."""
    shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
    return torch.arange(tensor.shape[dim], device=tensor.device).reshape(shape)


def valid_entries(case: Case, base: Run, index: int) -> Tensor | None:
    """Which entries of a result count: all but those of padded steps; None where that is unclear."""
    layout = case.layouts[index]
    output = base.outputs[index].reshape(layout.shape)
    valid = torch.ones_like(output, dtype=torch.bool)
    if not case.padded or case.lengths is None or base.is_state(output):
        return valid
    others = [dim for dim in range(output.dim()) if dim != layout.samples]
    dims = [dim for dim in others if output.shape[dim] in (case.steps, case.longest)]
    if len(dims) > 1 or (not dims and output.dim() > 2):  # as many classes as steps; or steps of another number
        counting = [] if base.unreadable else [d for d in others if base.counts_steps(output, d)]
        unclear = bool(counting or base.unreadable) and not dims
        dims = [dim for dim in dims if dim in counting] or dims
    else:
        alike = sum(other.shape == output.shape for other in base.outputs)
        unclear = not dims and alike > 1 and alike in (case.steps, case.longest)  # a list with an entry for each step
    for dim in dims if not base.unreadable else []:  # as many steps as in the batch, but those of a decoder, say
        mine = [call for call in base.calls if call.lengths is not None or is_padded(case, call)]
        if base.counts_steps(output, dim) and not base.counts_steps(output, dim, mine):
            return valid
    if layout.samples is None or unclear:
        case.unchecked.append(f"padding, in a result of shape {tuple(output.shape)}")
        return None
    lengths = case.lengths.to(output.device)
    lengths = lengths.reshape([-1 if dim == layout.samples else 1 for dim in range(output.dim())])
    for dim in dims:
        valid &= positions(output, dim) < lengths
    return valid


def check_padding(case: Case, base: Run, valid: list[Tensor | None]) -> None:
    """Put other numbers into the padding that LSTMs are given, and see whether the result moves (P32)."""
    if case.has("P04", "P09") or not any(is_padded(case, call) for call in base.calls):
        return
    assert case.lengths is not None  # or nothing would be padded
    lengths = case.lengths

    def overwrite(number: int, module: nn.Module, x: Tensor) -> Tensor:
        batch, time = (0, 1) if module.batch_first else (1, 0)
        if number >= len(base.calls) or not is_padded(case, base.calls[number]):
            return x
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        count = lengths.to(x.device).reshape([-1 if dim == batch else 1 for dim in range(3)])
        return torch.where(positions(x, time) >= count, noise, x)

    other = case.attempt("padding", edit=overwrite)
    for before, after, layout, counts in zip(
        base.outputs, other.outputs if other else [], case.layouts, valid, strict=False
    ):
        if counts is None:
            continue
        moved = changed(before, after).reshape(layout.shape) & counts
        if bool(moved.any()):
            rows = sorted(changed_along(moved, layout.samples or 0))
            case.found("P32", f"other numbers in the padding change the results of the samples {rows}")
            return


def check_zeros(case: Case, base: Run) -> None:
    """Append zeros to what is unpacked: a result that moves takes them for steps (P04), or an LSTM does (P32)."""
    packed = [call for call in base.calls if call.lengths is not None]
    if case.has("P04", "P09", "P32") or not packed or any(call.input.shape[1] == 1 for call in packed):
        return  # a mask of one step would fit any number of them
    try:
        other = run(case.model, case.batch, more_steps=2)
    except Exception:  # the module knows how many steps there must be
        return
    for before, after in zip(base.outputs, other.outputs, strict=False):
        growth = {long - short for short, long in zip(before.shape, after.shape, strict=False)}
        common = tuple(slice(width) for width in before.shape)
        if growth <= {0, 2} and bool(changed(before, after[common]).any()):
            pairs = zip(base.calls, other.calls, strict=False)
            readers = [one.name for one, two in pairs if one.lengths is None and one.input.shape != two.input.shape]
            seen = f"two more steps of zeros behind what was unpacked move the result {tuple(before.shape)}"
            case.found("P32" if readers else "P04", seen + (f"; {readers[0]} reads them" if readers else ""))
            return
