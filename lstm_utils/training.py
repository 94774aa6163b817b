"""One training loop for several chapters: clipped steps, the best weights kept, and checkpoints that resume exactly."""

from __future__ import annotations

import math
import os
import pickle
import random
import statistics
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from operator import gt, length_hint, lt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm  # type: ignore[import-untyped]

from lstm_utils.arguments import require, require_callable, require_flag
from lstm_utils.files import whole_file
from lstm_utils.gradients import GradientClipper

FORMAT = "lstm_utils.training, 1"


class CheckpointError(ValueError):
    """A checkpoint is damaged, is none of :func:`fit`, or belongs to a training with other settings."""


@dataclass
class History:
    """What :func:`fit` saw, one number an epoch.

    Args:
        losses: mean loss of the epoch's batches, each before its step.
        metrics: what ``validate`` returned after the epoch.
        clipped: the share of steps whose gradient was made smaller.
        seconds: how long the epoch took, validation included; left out when histories are compared.
        best: the epoch, counted from 0, whose weights were kept: the first with the best metric.
    """

    losses: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list, compare=False)
    best: int = 0


def fit(
    model: nn.Module,
    batches: Iterable[Any],
    loss_of: Callable[[Any], Tensor],
    validate: Callable[[], float],
    optimizer: Optimizer,
    *,
    epochs: int,
    max_norm: float = 1.0,
    scheduler: LRScheduler | None = None,
    maximize: bool = True,
    checkpoint: Path | str | None = None,
    progress: bool | None = None,
) -> History:
    """Train, and leave the model with the weights of its best epoch.

    With a checkpoint, a killed run loses at most the epoch it was in: build everything anew and call ``fit`` again. The
    result is that of an uninterrupted run, bit for bit, where operations are deterministic (same number of threads).

    Args:
        model: what ``loss_of`` and ``validate`` run; in training mode for the one, in evaluation mode for the other.
        batches: a loader or a list. ``set_epoch`` of it, its ``batch_sampler`` or ``sampler`` is called every epoch.
        loss_of: maps a batch to the loss, a scalar.
        validate: measures the model on validation data; called without gradients.
        optimizer: over the model's parameters.
        epochs: how many in all, those before an interruption included.
        max_norm: the gradients' norm is clipped to this; ``math.inf`` never clips.
        scheduler: stepped after every step of the optimizer.
        maximize: whether a larger metric is better, as an accuracy is and an error is not.
        checkpoint: a file, written after every epoch and continued where it exists.
        progress: whether to show a bar; by default on a terminal only, so that no stored output contains one.

    Raises:
        TypeError: an argument has the wrong type.
        FileNotFoundError: the folder of the checkpoint does not exist.
        ValueError: ``epochs`` is no integer of at least 1, there are no batches, or the metric is not a number.
        CheckpointError: the checkpoint cannot be continued.
        NonFiniteGradientError: from the clipper.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs!r}")
    require("batches", batches, Iterable, "a loader or a list")
    require_callable("loss_of", loss_of)
    require_callable("validate", validate)
    require("optimizer", optimizer, Optimizer, "an optimizer over the model's parameters")
    require("scheduler", scheduler, LRScheduler | None, "a scheduler of the optimizer, or None")
    require("progress", progress, bool | None, "True, False or None")
    require_flag("maximize", maximize)
    clipper = GradientClipper(model, max_norm)
    if checkpoint:
        require("checkpoint", checkpoint, str | Path, "a path")
    path = Path(checkpoint) if checkpoint else None
    if path is not None and not path.parent.is_dir():  # said now, not after an epoch
        raise FileNotFoundError(f"the folder {str(path.parent)!r} does not exist; create it, or name another")
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer} | ({"scheduler": scheduler} if scheduler else {})
    settings = _settings(parts, max_norm=max_norm, maximize=maximize)
    history, best, better = History(), _copy(model), gt if maximize else lt
    if path is not None and path.exists():
        state = load_checkpoint(path)
        if (began := state["settings"]) != settings:
            keys = [key for key in began | settings if began.get(key) != settings.get(key)]
            was = ", ".join(f"{key} was {began.get(key)} and is {settings.get(key)}" for key in keys)
            raise CheckpointError(f"{path} is of a training with other settings: {was}; delete it to begin anew")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        history, best = History(**state["history"]), state["best"]
        _set_random_state(state["random"])
    done, size = len(history.losses), length_hint(batches)
    # Given disable=None, tqdm looks whether it writes to a terminal.
    bar = tqdm(total=size * epochs or None, initial=done * size, disable=None if progress is None else not progress)
    for epoch in range(done, epochs):
        start, losses = time.perf_counter(), []
        for sampler in (batches, getattr(batches, "batch_sampler", None), getattr(batches, "sampler", None)):
            getattr(sampler, "set_epoch", lambda _: None)(epoch)
        model.train()
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_of(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            clipper.clip()
            optimizer.step()
            if scheduler:
                scheduler.step()
            losses.append(loss.item())
            bar.update()
        if not losses:
            raise ValueError(f"no batches in epoch {epoch}; an iterator is used up after one, so pass a list or loader")
        model.eval()
        with torch.no_grad():
            metric = float(validate())
        if math.isnan(metric):
            raise ValueError(f"validate returned nan after epoch {epoch}, which cannot be compared")
        if epoch == 0 or better(metric, history.metrics[history.best]):
            best, history.best = _copy(model), epoch
        history.losses.append(statistics.fmean(losses))
        history.metrics.append(metric)
        history.clipped.append(statistics.fmean(record.clipped for record in clipper.log))
        history.seconds.append(time.perf_counter() - start)
        clipper.log.clear()
        bar.set_postfix(loss=history.losses[-1], metric=metric)
        if path is not None:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"best": best, "history": asdict(history), "settings": settings, "random": _random_state()}
            save_checkpoint(path, state)
    bar.close()
    model.load_state_dict(best)
    model.eval()
    return history


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state whole or not at all; what a run killed in here leaves is hidden, and the next save deletes it."""
    with whole_file(path) as half, half.open("wb") as file:
        try:
            torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:  # "unexpected pos": torch hides that the disk is full
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        file.flush()
        os.fsync(file.fileno())  # or the new name may reach the disk before the contents


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read what :func:`fit` wrote, to the CPU; no code in the file is run.

    Raises:
        TypeError: ``path`` is neither a text nor a path.
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or something else.
    """
    require("path", path, str | Path, "a path")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        with zipfile.ZipFile(path) as file:  # torch.save writes a zip, whose checksums torch.load does not look at
            broken = file.testzip()
    except PermissionError:
        raise
    except Exception as error:  # a damaged archive may call itself encrypted, or compressed, or in another alphabet
        raise CheckpointError(f"{path} is damaged or no checkpoint ({error}); delete it to begin anew") from error
    if broken:
        raise CheckpointError(f"{path} is damaged in {broken}; delete it to begin anew")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        what = f"holds more than numbers, or not a state; delete it to begin anew: {error}"
        raise CheckpointError(f"{path} {what}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by this version of fit; pass another path, or delete it")
    return state


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _settings(parts: dict[str, Any], **others: object) -> dict[str, str]:
    """What was asked for: the optimizer's state holds its own settings, and would take them over in silence."""
    found = {name: type(part).__name__ for name, part in parts.items()} | others
    for number, group in enumerate(parts["optimizer"].param_groups):
        found |= {f"{key} of group {number}": value for key, value in group.items() if key != "params"}
    return {key: repr(value) for key, value in found.items()}


def _random_state() -> dict[str, Any]:
    """The global generators of PyTorch, Python and NumPy, in types that torch.load reads with weights_only=True."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    numpy = [kind, np.asarray(keys).tolist(), *rest]
    states = {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all(), "python": random.getstate()}
    return states | {"numpy": numpy}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
