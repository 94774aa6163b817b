"""Find the pitfalls in a module and a batch of your own, above all those that raise nothing."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_utils.detectors import check_length, check_padding, check_parameters, check_reads, check_samples, lstms
from lstm_utils.findings import Case, Diagnosis
from lstm_utils.pitfalls import find_pitfalls
from lstm_utils.probe import Run, call, changed_along, is_lstm, map_tensors, run, tensors
from lstm_utils.sequences import Lengths
from lstm_utils.spec import LSTMSpec


class _UndefinedCallError(Exception):
    """Raised in place of a call that torch would not check, and that would read or write outside its tensors."""


def diagnose(
    model: nn.Module,
    batch: Any,
    lengths: Lengths | None = None,
    *,
    batch_dim: int | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    target: Any = None,
) -> Diagnosis:
    """Look for the pitfalls of chapter 8 in a module that contains an LSTM, on one batch.

    The module is copied, never changed; the copies are called about ten times, in eval mode.

    Args:
        model: an ``nn.LSTM``, a ``ReferenceLSTM``, or any module that contains one.
        batch: what the module is called with: ``model(*batch)`` for a tuple, ``model(**batch)`` for a mapping, and
            ``model(batch)`` for anything else. The first tensor of two or more dimensions must hold the samples.
        lengths: valid steps of each sequence, N integers, when the batch is padded.
        batch_dim: which of the first two dimensions of that tensor counts the samples, 0 or 1. Where only one of
            them is as long as ``lengths``, that one is taken. With neither, samples cannot be told from steps, and the
            diagnosis says that it did not look.
        loss: called as ``loss(result, target)``, when given.
        target: its second argument.

    Returns:
        the findings, and what could not be checked. No finding does not make a model good: what lies in the training
        loop or in the data is out of sight (``undetected`` in ``pitfalls.yml``).

    Raises:
        TypeError: ``model`` is no module, or contains no LSTM.
        ValueError: ``batch_dim`` is not 0 or 1, or the lengths do not fit the batch.
        Exception: whatever the module itself raises, where no known pitfall says it.
    """
    if not isinstance(model, nn.Module) or not any(map(is_lstm, model.modules())):
        raise TypeError(f"expected a module that contains an nn.LSTM, got {type(model).__name__}")
    if batch_dim not in (None, 0, 1):
        raise ValueError(f"batch_dim must be 0 or 1, got {batch_dim!r}")
    counted = None if lengths is None else torch.as_tensor(lengths).detach().cpu()
    if counted is not None and (counted.dim() != 1 or counted.is_floating_point() or counted.dtype == torch.bool):
        raise ValueError(f"lengths must be integers, one for each sample, got {lengths!r}")
    case = Case(model, batch, counted, batch_dim, loss, target)
    check_parameters(case)
    _find_samples(case)
    with warnings.catch_warnings():  # the copies would repeat what the module itself has said already
        warnings.simplefilter("ignore")
        _run_checks(case)
    return case.diagnosis()


def _run_checks(case: Case) -> None:
    try:
        base = run(case.model, case.batch, inspect=lambda *called: _check_call(case, *called))
    except _UndefinedCallError:
        case.unchecked.append("the call itself, which would be undefined")
        return
    except Exception as error:
        _recognize(case, error)
        case.unchecked.append("what comes after the error")
        return
    if all(bool(output.isfinite().all()) for output in base.outputs):
        check_samples(case, base)
        check_reads(case, base)
        check_padding(case, base)
        check_length(case, base)
    else:
        case.unchecked.append("samples and padding, since the result holds nan or inf")
    _check_training(case)
    _check_loss(case, base)


# --- before anything runs --------------------------------------------------------------------------------------------


def _find_samples(case: Case) -> None:
    """Locate the tensor that holds the samples, N and T, and hold the lengths against it (P12, P13, P07)."""
    lengths, batch = case.lengths, case.batch
    if lengths is not None and bool((lengths <= 0).any()):
        rows = (lengths <= 0).nonzero().flatten().tolist()
        case.found("P13", f"the samples {rows} have the lengths {lengths[rows].tolist()}")
    parts = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    if isinstance(batch, tuple) and not isinstance(batch, PackedSequence):
        parts = list(batch)
    pairs = [part for part in parts if isinstance(part, tuple) and not isinstance(part, PackedSequence)]
    if any(state.grad_fn is not None for state in tensors(pairs)):
        case.found("P07", "the initial state in the batch leads back into the graph of an earlier call")
    sample = next((p for p in parts if isinstance(p, PackedSequence) or (isinstance(p, Tensor) and p.dim() > 1)), None)
    if isinstance(sample, PackedSequence):
        return  # its rows are told apart already
    if sample is None:
        case.unchecked.append("samples and padding, since the batch has no tensor of two or more dimensions")
        return
    fits = [dim for dim in (0, 1) if lengths is not None and sample.shape[dim] == len(lengths)]
    if lengths is not None and (not fits or case.batch_dim not in (None, *fits)):
        where = "either dimension" if case.batch_dim is None else f"dimension {case.batch_dim}"
        raise ValueError(f"{len(lengths)} lengths do not fit {where} of the batch, {tuple(sample.shape)}")
    if case.batch_dim is None and len(fits) != 1:
        case.unchecked.append("samples and padding: pass batch_dim=0 or 1, the dimension that counts the samples")
        return
    case.batch_dim = fits[0] if case.batch_dim is None else case.batch_dim
    case.sample, case.size, case.steps = sample, sample.shape[case.batch_dim], sample.shape[1 - case.batch_dim]
    if case.longest is not None and case.longest > case.steps:
        case.found("P12", f"the longest length is {case.longest}, and the batch has {case.steps} steps")
    if case.has("P12", "P13"):
        case.lengths = None
        case.unchecked.append("padding, since the lengths are wrong")


def _check_call(case: Case, name: str, module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
    """What torch does not always check when the input is packed: its width (P30) and the states (P01, P08, P21)."""
    x = arguments[0] if arguments else keywords.get("input")
    if not isinstance(x, PackedSequence) or not isinstance(module, nn.LSTM):
        return
    spec = LSTMSpec.from_module(module)
    if x.data.shape[-1] != spec.input_size:
        case.found("P30", f"{name} has input_size={spec.input_size}, and its packed input is {x.data.shape[-1]} wide")
        raise _UndefinedCallError
    shapes = spec.shapes(1, int(x.batch_sizes[0]))
    hx = arguments[1] if len(arguments) > 1 else keywords.get("hx")
    for number, (state, shape) in enumerate(zip(hx or (), (shapes.h_n, shapes.c_n), strict=False)):
        if tuple(state.shape) != shape:
            message = f"Expected hidden[{number}] size {shape}, got {list(state.shape)}"
            case.found(_state_error(message) or "P08", f"{message} (packed, so torch does not always say it)")
            raise _UndefinedCallError


def _state_error(message: str) -> str | None:
    """P01, P08 and P21 share one message; its numbers tell them apart."""
    match = re.search(r"Expected hidden\[\d\] size \(([\d, ]+)\), got \[([\d, ]+)\]", message)
    if match is None:
        return None
    expected, got = ([int(number) for number in group.split(", ")] for group in match.groups())
    if expected[-1] != got[-1]:
        return "P21"
    return "P01" if sorted(expected) == sorted(got) else "P08"


def _recognize(case: Case, error: Exception) -> None:
    """Turn an error into a finding, or let it pass on."""
    message = f"{type(error).__name__}: {error}"
    if "deepcopy protocol" in message:
        case.found("P07", "the module keeps a tensor that leads back into a graph, so it cannot even be copied")
        return
    known = find_pitfalls(message)
    if not known:
        error.add_note("lstm_utils.diagnose: the module raised this, and no known pitfall says it")
        raise error
    first = _state_error(message) or known[0].id
    if first == "P10" and known[-1].id == "P12" and case.longest is None:
        first = "P12"  # one message for both: lengths that fit the batch cannot be the reason, unknown ones may
    if not case.has("P12", "P13", first):
        case.found(first, message.partition("\n")[0])


# --- training --------------------------------------------------------------------------------------------------------


def _check_training(case: Case) -> None:
    """Two calls, each with its backward: carried graphs (P07), missing (P26) and broken (P23) gradients."""
    model = copy.deepcopy(case.model).eval()
    parameters = {f"{name}.{key}": p for name, lstm in lstms(model) for key, p in lstm.named_parameters()}
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    if not trained:
        return
    batch = map_tensors(case.batch, lambda tensor: tensor.detach().clone())
    # cuDNN cannot go backward in eval mode (P27)
    with torch.random.fork_rng(), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        torch.manual_seed(0)
        for _ in range(2):
            outputs = [tensor for tensor in tensors(call(model, batch)) if tensor.is_floating_point()]
            if not outputs:
                case.unchecked.append("gradients, since the result holds no floating-point tensor")
                return
            outputs = [tensor for tensor in outputs if tensor.requires_grad]
            if not outputs:
                case.found("P26", "the result needs no gradient, though parameters of the LSTM do")
                return
            try:
                torch.autograd.backward(outputs, [torch.randn(t.shape).to(t) for t in outputs])
            except RuntimeError as error:
                _recognize(case, error)
                return
    if all(parameter.grad is None for parameter in trained.values()):
        case.found("P26", f"backward left no gradient in {next(iter(trained))}, nor in the LSTM's other parameters")
    broken = [name for name, p in trained.items() if p.grad is not None and not bool(p.grad.isfinite().all())]
    if broken:
        case.found("P23", f"the gradient of {broken[0]} is not finite; clipping by norm would spread it to all others")


def _check_loss(case: Case, base: Run) -> None:
    """P14: what the loss makes of the result."""
    if case.loss is None:
        return
    try:
        value = case.loss(base.result, case.target)
    except Exception as error:
        _recognize(case, error)
        return
    ignored = getattr(case.loss, "ignore_index", -100)
    if bool(value.isnan().any()) and isinstance(case.target, Tensor) and bool((case.target == ignored).all()):
        case.found("P14", f"every target is {ignored}, which the loss ignores, and a mean over nothing is nan")
    functions = (nn.functional.cross_entropy, nn.functional.nll_loss)
    by_class = isinstance(case.loss, nn.CrossEntropyLoss | nn.NLLLoss) or case.loss in functions
    scores = base.result
    if not by_class or not isinstance(scores, Tensor) or scores.dim() != 3 or not base.calls:
        return
    lstm, steps = base.calls[-1], range(scores.shape[1])
    reads = [lstm.steps_read(scores[:, step]) for step in (steps[0], steps[-1])] if lstm.batched else []
    if [None if r is None else changed_along(r, 1) for r in reads] == [{steps[0]}, {steps[-1]}]:
        case.found(
            "P14", f"dimension 1 of the scores {tuple(scores.shape)} counts steps, and the loss reads classes there"
        )
