"""What can be seen in the parameters, and what one sample of a batch has to do with another.

The second is an experiment: change one sample, and see where the change arrives, in the input of each LSTM and in the
result. Everything here runs copies (:mod:`lstm_utils.probe`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_utils.findings import Case, Layout
from lstm_utils.probe import Run
from lstm_utils.reference import ReferenceLSTM
from lstm_utils.trees import changed, changed_along, map_tensors

# The noise in a changed sample, in standard deviations of the batch: what passes many layers must still be seen.
LOUD = 5

# --- parameters ------------------------------------------------------------------------------------------------------


def lstms(model: nn.Module) -> Iterator[tuple[str, nn.LSTM | ReferenceLSTM]]:
    """Name and module of every float LSTM in a module."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LSTM | ReferenceLSTM):
            yield name or type(module).__name__, module


def check_parameters(case: Case) -> None:
    """P17 and P18."""
    for name, lstm in lstms(case.model):
        if lstm.dropout and lstm.num_layers == 1:
            case.found("P18", f"{name} has dropout={lstm.dropout} and one layer, so it drops nothing")
        if lstm.bias and lstm.hidden_size > 1:
            _check_forget_bias(case, name, lstm)


def _check_forget_bias(case: Case, name: str, lstm: nn.LSTM | ReferenceLSTM) -> None:
    """P17: a vector counts as set by hand when its forget rows are all the same number, and not zero."""
    rows = slice(lstm.hidden_size, 2 * lstm.hidden_size)
    by_hand = {}
    for layer in range(lstm.num_layers):
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: 1 + lstm.bidirectional]:
            pair = [getattr(lstm, kind + suffix).detach()[rows] for kind in ("bias_ih", "bias_hh")]
            by_hand[suffix] = values = [v[0].item() for v in pair if bool((v == v[0]).all()) and v[0] != 0]
            if len(values) == 2 and sum(values) != 1:  # a half in each is a 1 that knows of the sum
                both = f"bias_ih{suffix} and bias_hh{suffix} are both set by hand"
                case.found("P17", f"{name}: {both}, and sum to {sum(values):g}")
    untouched = [suffix.removeprefix("_") for suffix, values in by_hand.items() if not values]
    if untouched and len(untouched) < len(by_hand):
        case.found("P17", f"{name}: the forget bias is set by hand, but not in {', '.join(untouched)}")


# --- what one sample has to do with another --------------------------------------------------------------------------


def check_samples(case: Case, base: Run) -> None:
    """Change one sample, then another, and see where the change goes (P02, P09, P10, P19).

    Finds out as well which dimension of each result counts the samples.
    """
    case.layouts = [_likely_layout(case, base, output) for output in base.outputs]
    if case.size is None:
        return
    if case.size < 2:
        case.unchecked.append("whether samples mix, since the batch holds a single one")
        return
    others = {}
    for row in (case.size // 2, 0):  # of the steps taken for samples, the first alone is in every sequence
        other = case.attempt("whether samples mix", _change_row(case, row))
        if other is None:
            return
        others[row] = other
    _check_inputs(case, base, others)
    if case.has("P02", "P10", "P19"):
        return  # what mixes them is known
    moved = [_check_output(case, base, index, others) for index in range(len(base.outputs))]
    if not any(moved):
        case.unchecked.append("whether samples mix, since nothing in the result moved when one was changed")


def _change_row(case: Case, row: int) -> Any:
    """The batch with one sample replaced: by noise, or, for integers, by ids that occur elsewhere."""
    sample, generator = case.sample, torch.Generator().manual_seed(0)
    index: tuple[Any, ...] = (*[slice(None)] * (case.batch_dim or 0), row)
    if isinstance(sample, PackedSequence):
        at = row if sample.unsorted_indices is None else int(sample.unsorted_indices[row])
        starts = sample.batch_sizes.cumsum(0) - sample.batch_sizes
        index = ((starts + at)[sample.batch_sizes > at],)

    def other(tensor: Tensor) -> Any:
        chosen = tensor[index]
        if tensor.is_floating_point():
            finite = tensor[tensor.isfinite()]
            size = finite.std().clamp(min=0.1) if finite.numel() > 1 else 1
            return chosen + LOUD * size * torch.randn(chosen.shape, generator=generator).to(tensor)
        if isinstance(sample, PackedSequence):
            ids = torch.unique(tensor)
            return ids[(torch.searchsorted(ids, chosen) + 1) % len(ids)]
        rows = tensor.movedim(case.batch_dim or 0, 0)  # a whole sample, so that ids for padding stay at its end
        return rows[(rows != chosen).flatten(1).sum(1).argmax()]

    def change(tensor: Tensor) -> Tensor:
        if tensor is not (sample.data if isinstance(sample, PackedSequence) else sample):
            return tensor
        tensor = tensor.detach().clone()
        tensor[index] = other(tensor)
        return tensor

    return map_tensors(case.batch, change)


def _check_inputs(case: Case, base: Run, others: dict[int, Run]) -> None:
    """What LSTMs read, when a sample changed: the change must not be one step of every sequence (P02, P10, P19)."""
    moved: list[dict[int, Tensor]] = []  # for each call: the changed sample, and where the input moved
    for index, call in enumerate(base.calls):
        afters = {row: other.calls[index].input for row, other in others.items() if index < len(other.calls)}
        masks = {row: changed(call.input, x) for row, x in afters.items() if x.shape == call.input.shape}
        moved.append({row: mask for row, mask in masks.items() if bool(mask.any())})
    case.reading = {index for index, masks in enumerate(moved) if masks} or None
    for call, masks in zip(base.calls, moved, strict=True):
        packed, shape, time = call.lengths is not None, tuple(call.input.shape), call.input.dim() - 2
        if not (packed or shape[time] == case.size):
            continue
        if not masks or any(changed_along(mask, time) != {row} for row, mask in masks.items()):
            continue
        row, mask = max(masks.items(), key=lambda item: len(changed_along(item[1], 0)))
        same = [m for c, m in zip(base.calls, moved, strict=True) if c.name == call.name]
        looped = len(same) > 1 and sum(row in m for m in same) == 1  # one call for each sample
        if not packed and not looped and (not call.batched or shape[0] == 1):
            seen = f"{call.name} got {shape}, and read the {case.size} samples as the steps of one sequence"
            case.found("P02" if call.batched else "P19", seen)
        elif call.batched and len(changed_along(mask, 0)) > 1:
            seen = f"sample {row} changed, and with it step {row} of {shape[0]} sequences that {call.name} read"
            case.found("P10" if packed else "P02", seen)


def _likely_layout(case: Case, base: Run, output: Tensor) -> Layout:
    """How a result is probably to be read, until an experiment tells."""
    shape = tuple(output.shape)
    dims = [dim for dim, width in enumerate(shape) if width == case.size]
    likely = output.dim() - 2 if base.is_state(output) else case.batch_dim
    if not dims and case.size == 1 and shape and shape[0] in (case.steps, case.longest):
        return Layout((1, *shape), 0)
    return Layout(shape, likely if likely in dims else dims[0] if dims else None)


def _check_output(case: Case, base: Run, index: int, others: dict[int, Run]) -> bool:
    """One result, when a sample changed: no other sample's part of it may move (P09). Returns whether it moved."""
    before, moved = base.outputs[index], {}
    for row, other in others.items():
        if len(other.outputs) <= index or other.outputs[index].shape != before.shape:
            case.unchecked.append(f"whether samples mix in a result of shape {tuple(before.shape)}")
            return True
        mask = changed(before, other.outputs[index])
        if bool(mask.any()):
            moved[row] = mask
    likely, size = case.layouts[index], case.size or 0
    dims = [dim for dim, width in enumerate(likely.shape) if width == size]
    candidates = [Layout(likely.shape, dim) for dim in sorted(dims, key=lambda dim: dim != likely.samples)]
    if before.dim() and before.shape[0] > size and before.shape[0] % size == 0:  # flattened, one way or the other
        rest, blocks = likely.shape[1:], before.shape[0] // size
        candidates += [Layout((size, blocks, *rest), 0), Layout((blocks, size, *rest), 1)]
    for layout in candidates:
        masks = {row: mask.reshape(layout.shape) for row, mask in moved.items()}
        if all(changed_along(mask, layout.samples or 0) <= {row} for row, mask in masks.items()):
            case.layouts[index] = layout
            return bool(moved)
    for row, mask in moved.items():
        if not dims:
            case.unchecked.append(f"whether samples mix in a result of shape {likely.shape}")
        elif bool((mask.nonzero()[:, dims] != row).all(1).any()):  # in a table of pairs, row and column may move
            others_moved = len(changed_along(mask, dims[0]) - {row})
            case.found("P09", f"sample {row} changed, and the results of {others_moved} other samples moved")
            break
    return bool(moved)
