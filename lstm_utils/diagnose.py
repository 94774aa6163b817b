"""Find the pitfalls in a module and a batch of your own, above all those that raise nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lstm_utils.arguments import require_callable
from lstm_utils.detectors import check_parameters, check_samples, lstms
from lstm_utils.findings import Case, Diagnosis
from lstm_utils.padding import check_padding, check_zeros, settle_lengths, valid_entries
from lstm_utils.pitfalls import find_pitfalls
from lstm_utils.probe import Run, experiment, is_lstm, run
from lstm_utils.recognition import UndefinedCallError, check_call, give_up, recognize
from lstm_utils.sequences import Lengths
from lstm_utils.steps import check_reads, check_unpacking
from lstm_utils.trees import call_with, copy_of, detached, tensors


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
            ``model(batch)`` for anything else. The first tensor of two or more dimensions, or packed sequence, must
            hold the samples.
        lengths: valid steps of each sequence, N integers, when the batch is padded. A packed one brings its own.
        batch_dim: which of the first two dimensions of that tensor counts the samples, 0 or 1. Where only one of
            them is as long as ``lengths``, that one is taken. With neither, samples cannot be told from steps, and the
            diagnosis says that it did not look.
        loss: called as ``loss(result, target)``, when given.
        target: its second argument.

    Returns:
        the findings, and what could not be checked. One finding may hide another (where samples are read as steps, what
        is padding cannot be said), so diagnose again after the repair. No finding does not make a model good: what lies
        in the training loop or in the data is out of sight (``undetected`` in ``pitfalls.yml``).

    Raises:
        TypeError: ``model`` is no module, or contains no LSTM, or ``loss`` is no function.
        ValueError: ``batch_dim`` is not 0 or 1, or the lengths do not fit the batch.
        Exception: whatever the module itself raises, where no known pitfall says it.
    """
    if not isinstance(model, nn.Module) or not any(map(is_lstm, model.modules())):
        raise TypeError(f"expected a module that contains an nn.LSTM, got {type(model).__name__}")
    if isinstance(batch_dim, bool) or not (batch_dim is None or (isinstance(batch_dim, int) and batch_dim in (0, 1))):
        raise ValueError(f"batch_dim must be 0 or 1, got {batch_dim!r}")
    if loss is not None:
        require_callable("loss", loss)
    try:
        own = copy_of(model)
    except Exception as error:
        give_up(error, "everything runs on copies, and this module cannot be copied")
    case = Case(own, batch, None if lengths is None else _counts(lengths), batch_dim, loss, target)
    check_parameters(case)
    _check_carried(case, model)
    _find_samples(case)
    with warnings.catch_warnings():  # the copies would repeat what the module itself has said already
        warnings.simplefilter("ignore")
        _run_checks(case)
    return case.diagnosis()


def _counts(lengths: Lengths) -> Tensor:
    """The lengths as a tensor of integers on the CPU."""
    try:
        counts = torch.as_tensor(lengths).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        counts = torch.empty(0)
    if (
        counts.dim() != 1
        or not len(counts)
        or counts.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    ):
        raise ValueError(f"lengths must be integers, one for each sample, got {lengths!r}")
    return counts.long()


def _run_checks(case: Case) -> None:
    try:
        base = run(case.model, case.batch, inspect=lambda *called: check_call(case, *called))
    except UndefinedCallError:
        case.unchecked.append("the call itself, which would be undefined")
        return
    except Exception as error:
        recognize(case, error)
        case.unchecked.append("what comes after the error")
        return
    if not base.calls:
        case.unchecked.append("what the LSTM reads and what reads it, since it was not called, or not as nn.LSTM is")
    elif not base.outputs:
        case.unchecked.append("samples and padding, since the result holds no floating-point tensor")
    elif any(bool(output.isnan().any()) for output in base.outputs):
        case.unchecked.append("samples and padding, since the result holds nan")
    else:
        check_samples(case, base)
        settle_lengths(case, base)
        if not case.has("P02", "P10", "P19"):  # what is a step depends on them
            _check_steps(case, base)
    _check_training(case, {call.name for call in base.calls})
    _check_loss(case, base)


def _check_steps(case: Case, base: Run) -> None:
    """P03, P04, P11 and P32."""
    valid = [valid_entries(case, base, index) for index in range(len(base.outputs))]
    if base.unreadable:
        case.unchecked.append(f"which steps are read, since {base.unreadable}")
    else:
        check_reads(case, base, valid)
        check_unpacking(case, base)
    check_padding(case, base, valid)
    check_zeros(case, base)


# --- before anything runs --------------------------------------------------------------------------------------------


def _check_carried(case: Case, model: nn.Module) -> None:
    """P07: a tensor of the batch leads back to parameters of the module, so into the graph of an earlier call."""
    own = {id(parameter) for parameter in model.parameters()}
    nodes = [tensor.grad_fn for tensor in tensors(case.batch)]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if id(getattr(node, "variable", None)) in own:
            case.found("P07", "the initial state in the batch leads back into the graph of an earlier call")
            return
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]


def _find_samples(case: Case) -> None:
    """Locate what holds the samples, N and T, and hold the lengths against it (P13)."""
    lengths, batch = case.lengths, case.batch
    if lengths is not None and bool((lengths <= 0).any()):
        rows = (lengths <= 0).nonzero().flatten().tolist()
        case.found("P13", f"the samples {rows} have the lengths {lengths[rows].tolist()}")
        case.unchecked.append("padding, since the lengths are wrong")
    parts = [batch]
    if isinstance(batch, Mapping) or (isinstance(batch, tuple) and not isinstance(batch, PackedSequence)):
        parts = list(batch.values() if isinstance(batch, Mapping) else batch)
    sample = next((p for p in parts if isinstance(p, PackedSequence) or (isinstance(p, Tensor) and p.dim() > 1)), None)
    if isinstance(sample, PackedSequence):
        packed = pad_packed_sequence(sample)[1]
        if lengths is not None and lengths.tolist() != packed.tolist():
            raise ValueError(f"the packed batch has the lengths {packed.tolist()}, and lengths is {lengths.tolist()}")
        case.sample, case.lengths, case.batch_dim = sample, packed, None
        case.size, case.steps = len(packed), int(packed.max())
        return
    if sample is None:
        case.unchecked.append("samples and padding, since the batch has no tensor of two or more dimensions")
        return
    fits = [dim for dim in (0, 1) if lengths is not None and sample.shape[dim] == len(lengths)]
    if lengths is not None and (not fits or case.batch_dim not in (None, *fits)):
        where = "either dimension" if case.batch_dim is None else f"dimension {case.batch_dim}"
        raise ValueError(f"{len(lengths)} lengths do not fit {where} of the batch, {tuple(sample.shape)}")
    if case.has("P13"):
        case.lengths = None
    if case.batch_dim is None and len(fits) != 1:
        case.unchecked.append("samples and padding: pass batch_dim=0 or 1, the dimension that counts the samples")
        return
    case.batch_dim = fits[0] if case.batch_dim is None else case.batch_dim
    case.sample, case.size, case.steps = sample, sample.shape[case.batch_dim], sample.shape[1 - case.batch_dim]


# --- training --------------------------------------------------------------------------------------------------------


def _check_training(case: Case, called: set[str]) -> None:
    """Two calls, each with its backward: carried graphs (P07), missing (P26) and broken (P23) gradients."""
    model, batch = copy_of(case.model), detached(case.batch)
    trained = {
        name: {f"{name}.{key}": parameter for key, parameter in lstm.named_parameters() if parameter.requires_grad}
        for name, lstm in lstms(model)
        if name in called
    }
    trained = {name: parameters for name, parameters in trained.items() if parameters}
    if not trained:
        return
    with experiment():
        for again in (False, True):
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    outputs = [tensor for tensor in tensors(call_with(model, batch)) if tensor.requires_grad]
                    if outputs:
                        torch.autograd.backward(outputs, [torch.randn(t.shape).to(t) for t in outputs])
            except Exception as error:
                if not again:
                    give_up(error, "the module raised this in its first backward pass")
                recognize(case, error)
                return
    reentrant = any("P26" in [entry.id for entry in find_pitfalls(str(warning.message))] for warning in caught)
    for name, parameters in trained.items():
        if any(parameter.grad is not None for parameter in parameters.values()):
            continue
        first = next(iter(parameters))
        if reentrant and outputs:
            case.found("P26", f"backward left no gradient in {first}, nor in the LSTM's other parameters")
        elif reentrant:
            case.found("P26", "the result needs no gradient, though parameters of the LSTM do")
        else:
            case.unchecked.append(f"gradients, since none reaches {first} or another parameter of {name}")
    everything = {key: parameter.grad for parameters in trained.values() for key, parameter in parameters.items()}
    broken = [key for key, grad in everything.items() if grad is not None and not bool(grad.isfinite().all())]
    if broken:
        case.found("P23", f"the gradient of {broken[0]} is not finite; clipping by norm would spread it to all others")


def _check_loss(case: Case, base: Run) -> None:
    """P14: what the loss makes of the result."""
    if case.loss is None:
        return
    try:
        value = case.loss(base.result, case.target)
    except Exception as error:
        recognize(case, error, "loss")
        return
    ignored = getattr(case.loss, "ignore_index", -100)
    nothing_left = isinstance(case.target, Tensor) and bool((case.target == ignored).all())
    if nothing_left and isinstance(value, Tensor) and bool(value.isnan().any()):
        case.found("P14", f"every target is {ignored}, which the loss ignores, and a mean over nothing is nan")
    functions = (nn.functional.cross_entropy, nn.functional.nll_loss)
    by_class = isinstance(case.loss, nn.CrossEntropyLoss | nn.NLLLoss) or case.loss in functions
    scores = base.result
    if not by_class or not isinstance(scores, Tensor) or scores.dim() != 3 or base.unreadable:
        return
    if base.counts_steps(scores, 1):
        shape = tuple(scores.shape)
        case.found("P14", f"dimension 1 of the scores {shape} counts steps, and the loss reads classes there")
