"""The detectors of the silent pitfalls, most of them experiments.

Change one sample, and see whose result moves; change the padding, and see whether anything moves; ask autograd which
steps of an LSTM's output the result depends on. Everything here runs copies (:mod:`lstm_utils.probe`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lstm_utils.findings import Case
from lstm_utils.probe import LSTMCall, Run, changed, changed_along, is_lstm, map_tensors, run
from lstm_utils.reference import ReferenceLSTM

# A unit behind a ReLU may be dead at one point, so the question what is read is asked at several.
NOISE_SEEDS = (0, 1, 2)


def positions(tensor: Tensor, dim: int, device: torch.device) -> Tensor:
    """0, 1, 2, … along a dimension."""
    return torch.arange(tensor.shape[dim], device=device)


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
    for suffix in (key.removeprefix("bias_ih") for key, _ in lstm.named_parameters() if key.startswith("bias_ih")):
        pair = [getattr(lstm, kind + suffix).detach()[rows] for kind in ("bias_ih", "bias_hh")]
        by_hand[suffix] = [v[0].item() for v in pair if bool((v == v[0]).all()) and v[0] != 0]
        if len(by_hand[suffix]) == 2:
            total = sum(by_hand[suffix])
            case.found("P17", f"{name}: bias_ih{suffix} and bias_hh{suffix} are both set by hand, and sum to {total:g}")
    untouched = [suffix.removeprefix("_") for suffix, values in by_hand.items() if not values]
    if untouched and len(untouched) < len(by_hand):
        case.found("P17", f"{name}: the forget bias is set by hand, but not in {', '.join(untouched)}")


# --- what one sample has to do with another --------------------------------------------------------------------------


def check_samples(case: Case, base: Run) -> None:
    """Change one sample, and see where the change goes (P02, P09, P10, P11, P19)."""
    sample, size, dim = case.sample, case.size, case.batch_dim
    if sample is None or size is None or dim is None:
        return
    if size < 2:
        case.unchecked.append("whether samples mix, since the batch holds a single one")
        return
    row = size // 2  # not the first: where samples are taken for steps, the first would move all the others
    batch = map_tensors(case.batch, lambda tensor: _change_row(tensor, dim, row) if tensor is sample else tensor)
    other = run(case.model, batch)
    for before, after in zip(base.calls, other.calls, strict=False):
        if before.input.shape == after.input.shape:
            _check_input(case, before, changed(before.input, after.input), row)
    for one, two in zip(base.outputs, other.outputs, strict=False):
        _check_output(case, base, one, two, row)


def _change_row(tensor: Tensor, dim: int, row: int) -> Tensor:
    """The tensor with one sample replaced: by noise, or, for integers, by ids that occur elsewhere in it."""
    tensor = tensor.detach().clone()
    chosen = tensor.select(dim, row)
    generator = torch.Generator().manual_seed(0)
    if tensor.is_floating_point():
        chosen += torch.randn(chosen.shape, generator=generator).to(tensor) * tensor.std().clamp(min=0.1)
    else:
        values = torch.unique(tensor)
        chosen.copy_(values[torch.randint(len(values), chosen.shape, generator=generator).to(values.device)])
    return tensor


def _check_input(case: Case, before: LSTMCall, moved: Tensor, row: int) -> None:
    """The input of one LSTM, when the sample ``row`` changed: the change must not be one step of every sequence."""
    shape, size = tuple(before.input.shape), case.size
    if not before.batched:
        if shape[0] == size and changed_along(moved, 0) == {row}:
            case.found("P19", f"{before.name} got {shape}, and read the {size} samples as the steps of one sequence")
        return
    packed = before.lengths is not None
    if (packed or shape[1] == size) and changed_along(moved, 1) == {row} and len(changed_along(moved, 0)) > 1:
        seen = f"sample {row} changed, and with it step {row} of {shape[0]} sequences that {before.name} read"
        case.found("P10" if packed else "P02", seen)


def _check_output(case: Case, base: Run, before: Tensor, after: Tensor, row: int) -> None:
    """One tensor of the result, when the sample ``row`` changed: no other sample's part may have moved."""
    if case.has("P02", "P10", "P19"):
        return  # what mixes them is known
    if before.shape != after.shape or case.size not in before.shape:
        case.unchecked.append(f"whether samples mix in a result of shape {tuple(before.shape)}")
        return
    moved = changed(before, after)
    dims = [dim for dim, size in enumerate(before.shape) if size == case.size]
    alone = [dim for dim in dims if changed_along(moved, dim) <= {row}]
    if not alone:
        others = len(changed_along(moved, dims[0]) - {row})
        case.found("P09", f"sample {row} changed, and the results of {others} other samples moved")
    turned = (
        alone == [1] and case.batch_dim == 0 and before.dim() == 3 and before.shape[0] in (case.steps, case.longest)
    )
    if turned and not base.is_state(before) and not is_lstm(case.model):
        case.found("P11", f"the batch came in batch first, and the result {tuple(before.shape)} is time first")


# --- padding ---------------------------------------------------------------------------------------------------------


def check_padding(case: Case, base: Run) -> None:
    """Put other numbers into the padding that LSTMs are given, and see whether the result moves (P32)."""
    lengths, size = case.lengths, case.size
    if lengths is None or size is None or case.has("P02", "P04", "P09", "P10"):
        return

    def overwrite(module: nn.Module, x: Tensor) -> Tensor:
        batch, time = (0, 1) if module.batch_first else (1, 0)
        if x.dim() != 3 or x.shape[batch] != size:
            return x
        padded = positions(x, time, x.device) >= lengths.to(x.device)[:, None]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        return torch.where((padded if batch == 0 else padded.T).unsqueeze(-1), noise, x)

    other = run(case.model, case.batch, edit=overwrite)
    for before, after in zip(base.outputs, other.outputs, strict=False):
        if before.shape != after.shape or not _is_understood(case, base, before, size, case.steps):
            case.unchecked.append(f"padding, in a result of shape {tuple(before.shape)}")
            continue
        moved = changed(before, after) & _valid(case, before, size, case.steps)
        if bool(moved.any()):
            rows = sorted(changed_along(moved, list(moved.shape).index(size)))
            case.found("P32", f"other numbers in the padding change the results of the samples {rows}")
            return


def check_length(case: Case, base: Run) -> None:
    """P11: the time dimension of the result shrank to the longest sequence of this batch."""
    if case.longest is None or case.steps is None or case.longest >= case.steps:
        return
    for output in base.outputs:
        lead = tuple(output.shape[:2])
        if output.dim() == 3 and case.size in lead and case.longest in lead and not base.is_state(output):
            case.found(
                "P11", f"the batch has {case.steps} steps, and the result {tuple(output.shape)} has {case.longest}"
            )


def _step_dims(case: Case, tensor: Tensor, size: int, steps: int | None) -> list[int]:
    """Dimensions of a result that may count steps."""
    batch = list(tensor.shape).index(size)
    return [d for d, width in enumerate(tensor.shape) if d != batch and width in (steps, case.longest)]


def _is_understood(case: Case, base: Run, tensor: Tensor, size: int, steps: int | None) -> bool:
    """Whether a result is a state, or one vector for each sample, or one for each step."""
    if size not in tensor.shape:
        return False
    return tensor.dim() < 3 or base.is_state(tensor) or bool(_step_dims(case, tensor, size, steps))


def _valid(case: Case, tensor: Tensor, size: int, steps: int | None) -> Tensor:
    """Which entries of a result count: all but those of padded steps, where a dimension counts steps."""
    mask = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
    if case.lengths is None or case.size != size:
        return mask
    batch = list(tensor.shape).index(size)
    for dim in _step_dims(case, tensor, size, steps)[:1]:
        shape = [1] * tensor.dim()
        shape[batch], shape[dim] = tensor.shape[batch], tensor.shape[dim]
        valid = positions(tensor, dim, tensor.device) < case.lengths.to(tensor.device)[:, None]
        mask = mask & (valid if batch < dim else valid.T).reshape(shape)
    return mask


# --- which steps are read --------------------------------------------------------------------------------------------


def check_reads(case: Case, base: Run) -> None:
    """Which steps of each LSTM's output the result depends on (P03, P04)."""
    runs = [base, *(run(case.model, case.batch, noise=seed) for seed in NOISE_SEEDS)]
    for number, lstm in enumerate(base.calls):
        if not lstm.batched or lstm.input.shape[1] < 2 or case.size not in (None, lstm.input.shape[0]):
            continue
        found = [reads for observed in runs for reads in _reads(case, observed, number)]
        if found:
            reads = torch.stack(found).any(0)
            _check_last_step(case, lstm, reads)
            _check_single_steps(case, lstm, reads)


def _reads(case: Case, observed: Run, number: int) -> list[Tensor]:
    """For each result that is understood: where it depends on the output of LSTM ``number``, bool (N, T, width)."""
    lstm = observed.calls[number]
    size, steps = lstm.input.shape[:2]
    found = []
    for output in observed.outputs:
        if _is_understood(case, observed, output, size, steps) and not observed.is_state(output):
            found.append(lstm.steps_read(output[_valid(case, output, size, steps)]))
    return [reads for reads in found if reads is not None]


def _lengths(case: Case, lstm: LSTMCall, reads: Tensor) -> Tensor:
    """Lengths of the sequences of one call, (N, 1): as packed, as given, or all T."""
    lengths = case.lengths if lstm.lengths is None else lstm.lengths
    if lengths is None or len(lengths) != len(reads):
        lengths = torch.full((len(reads),), reads.shape[1])
    return lengths.to(reads.device)[:, None]


def _check_last_step(case: Case, lstm: LSTMCall, reads: Tensor) -> None:
    """P04: a padded step is read; or, where the batch was packed, nothing of a short sequence is."""
    lengths, steps = _lengths(case, lstm, reads), reads.any(-1)
    padded = steps & (positions(steps, 1, steps.device) >= lengths)
    if bool(padded.any()):
        row, step = padded.nonzero()[0].tolist()
        seen = f"sample {row} has {int(lengths[row])} steps, and the result reads step {step} of {lstm.name}"
        case.found("P04", seen + " (counting from 0)")
    unread = ~steps.any(1)
    if lstm.lengths is not None and bool(unread.any()) and not bool(unread.all()):
        rows = unread.nonzero().flatten().tolist()
        case.found("P04", f"of the samples {rows} the result reads padding alone, zeros in the output of {lstm.name}")


def _check_single_steps(case: Case, lstm: LSTMCall, reads: Tensor) -> None:
    """P03: one half of a bidirectional output is read only where it has seen a single step of a longer sequence."""
    if not lstm.module.bidirectional:
        return
    forward, reverse = (half.any(-1) for half in reads.chunk(2, dim=-1))
    lengths, steps = _lengths(case, lstm, reads), positions(reads, 1, reads.device)
    starts = {"forward": (forward, (steps == 0).expand_as(forward)), "reverse": (reverse, steps >= lengths - 1)}
    for name, (half, start) in starts.items():
        used = half & (lengths > 1)
        if bool(used.any()) and not bool((used & ~start).any()):
            case.found("P03", f"the {name} half of {lstm.name} is read only where it has seen a single step")
