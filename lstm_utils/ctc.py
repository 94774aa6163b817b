"""Connectionist temporal classification: what can be wrong with the arguments of its loss."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from lstm_utils.arguments import at_least, integers, require_tensor
from lstm_utils.findings import Case, Diagnosis
from lstm_utils.sequences import Lengths


def diagnose_ctc(
    log_probs: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths, blank: int = 0
) -> Diagnosis:
    """Look for P22 in the arguments of ``nn.CTCLoss``: what gives inf, a negative loss, or a meaningless one.

    Args:
        log_probs: what the loss is given, (T, N, C).
        targets: labels, padded (N, S), or all in one row (sum of the lengths,).
        input_lengths: frames of each sample, N integers up to T. What stands behind them is not looked at.
        target_lengths: labels of each sample, N integers up to S.
        blank: the label of the blank.

    Raises:
        TypeError: what has to be a tensor is none, or the lengths are no integers.
        ValueError: ``blank`` is no class, numbers are of the wrong kind, or the shapes or the lengths
            do not fit one another, so that the loss would raise an error too.
    """
    case = Case(nn.Identity(), None)
    require_tensor("log_probs", log_probs)
    require_tensor("targets", targets)
    frames, labels = (integers(lengths).tolist() for lengths in (input_lengths, target_lengths))
    fitting = log_probs.dim() == 3 and len(frames) == len(labels) == log_probs.shape[1]
    if not fitting or targets.dim() == 0 or targets.shape[:-1] not in ((), (len(labels),)):
        raise ValueError(
            f"expected log_probs (T, N, C), targets (N, S) or (sum,) and N lengths of each kind; got "
            f"{tuple(log_probs.shape)}, {tuple(targets.shape)}, {len(frames)} and {len(labels)}"
        )
    for name, values, floats in (("log_probs", log_probs, True), ("targets", targets, False)):
        if values.is_floating_point() != floats or values.dtype in (torch.bool, torch.complex64, torch.complex128):
            raise ValueError(f"{name} must hold {'floats' if floats else 'integers'}, got {values.dtype}")
    steps, _, classes = log_probs.shape
    at_least("blank", blank, 0, classes - 1)
    _check_range("input_lengths", frames, steps, "T")
    flat = targets.tolist()
    if targets.dim() == 1:
        if sum(labels) != len(flat):
            raise ValueError(f"target_lengths {labels} must sum to the {len(flat)} labels of the targets")
        rows = [flat[end - count : end] for end, count in zip(accumulate(labels), labels, strict=True)]
    else:
        _check_range("target_lengths", labels, targets.shape[1], "S")
        rows = [row[:count] for row, count in zip(flat, labels, strict=True)]
    read = torch.arange(steps)[:, None] < torch.tensor(frames)
    total = log_probs.detach().double().logsumexp(-1)[read.to(log_probs.device)]
    # A class of probability p is off by p·|log p|·eps/2 for rounding, and all of them together by log(C)·eps/2.
    rounding = torch.finfo(log_probs.dtype).eps * math.log(classes)
    wrong = ~(total.abs() <= max(1e-3, rounding))  # nan too
    if bool(wrong.any()):
        worst = total[wrong][total[wrong].abs().argmax()].exp().item()
        case.found("P22", f"no log-probabilities: the classes of a frame sum to {worst:.3g}, not to 1")
    for number, (row, available) in enumerate(zip(rows, frames, strict=True)):
        repeats = sum(left == right for left, right in pairwise(row))
        needed = len(row) + repeats
        if needed > available:
            reason = f"{len(row)} labels and {repeats} blanks between equal neighbors"
            case.found("P22", f"sample {number} has {available} frames and needs {needed}: {reason}")
        if blank in row:
            case.found("P22", f"the target of sample {number} contains {blank}, the blank")
        if strange := [label for label in row if not 0 <= label < classes]:
            case.found(
                "P22", f"the target of sample {number} contains {strange[0]}, and the classes are 0 to {classes - 1}"
            )
    return case.diagnosis()


def _check_range(name: str, lengths: list[int], most: int, symbol: str) -> None:
    if wrong := [length for length in lengths if not 0 <= length <= most]:
        raise ValueError(f"{name} must lie from 0 to {symbol} = {most}, got {wrong[0]}")
