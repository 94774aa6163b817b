"""Gradients before the optimizer sees them: their norms, and clipping that keeps a log and does not fail in silence.

``torch.nn.utils`` does the arithmetic. What its ``clip_grad_norm_`` lets pass is refused here: parameters from an
exhausted generator, gradients that do not exist, a threshold that erases or reverses them, and values that are not
finite, one of which spoils all the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


class NonFiniteGradientError(ArithmeticError):
    """A gradient, or the norm of several together, is infinite or not a number."""


@dataclass(frozen=True)
class ClipRecord:
    """What one call of :meth:`GradientClipper.clip` found and did.

    Args:
        norms: Euclidean norm of each parameter's gradient before clipping, by the parameter's name.
        totals: that of all gradients of a group together, by the group's name ("" when there is one group).
        scales: what the gradients of each group were multiplied by: 1.0 if left alone, 0.0 if discarded.
        nonfinite: the parameters whose norm is infinite or not a number; or, when only a group's norm is, all of it.
    """

    norms: Mapping[str, float]
    totals: Mapping[str, float]
    scales: Mapping[str, float]
    nonfinite: tuple[str, ...]

    @property
    def norm(self) -> float:
        """The norm of all gradients together, before clipping."""
        return math.hypot(*self.totals.values())

    @property
    def clipped(self) -> bool:
        """Whether a group was made smaller; a discarded step counts."""
        return any(scale < 1 for scale in self.scales.values())


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """The Euclidean norm of each parameter's gradient, by the parameter's name; a parameter without one is left out.

    Raises:
        RuntimeError: no parameter has a gradient, as before the first ``backward()``.
    """
    parameters = dict(module.named_parameters())
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    if not gradients:
        raise RuntimeError(f"none of the {len(parameters)} parameters has a gradient; call loss.backward() first")
    wide = torch.promote_types  # the norm of float16 numbers seldom fits into a float16
    return {
        name: float(torch.linalg.vector_norm(gradient, dtype=wide(gradient.dtype, torch.float32)))
        for name, gradient in gradients.items()
    }


class GradientClipper:
    """Clips a module's gradients by norm and remembers what it saw.

    Call :meth:`clip` between ``loss.backward()`` and ``optimizer.step()``. With a ``GradScaler``, call
    ``scaler.unscale_(optimizer)`` first: the threshold is meant for the gradients, not for their scaled copies.

    Args:
        module: its parameters are looked up on every call, so that none can be missed or used up.
        max_norm: the largest Euclidean norm that all gradients may have together; ``math.inf`` logs and never clips.
            A mapping gives each group its own: ``{"lstm": 1.0, "readout": 5.0}`` goes by the submodule at the
            beginning of a parameter's name, and must cover every parameter once.
        nonfinite: ``"raise"`` raises and leaves the gradients as they are; ``"skip"`` sets them to None, so that
            ``optimizer.step()`` changes nothing. A ``GradScaler`` provokes such steps, and skips them too.

    Attributes:
        log: a :class:`ClipRecord` for each call, the oldest first.

    Raises:
        TypeError: ``module`` is something else, such as ``module.parameters()``.
        ValueError: a threshold is not positive, the groups do not cover the parameters once, or the policy is unknown.

    Source: Pascanu, Mikolov and Bengio (2013), "On the difficulty of training recurrent neural networks".
    """

    def __init__(
        self,
        module: nn.Module,
        max_norm: float | Mapping[str, float],
        *,
        nonfinite: Literal["raise", "skip"] = "raise",
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"expected a module, whose parameters can be looked up again, got {type(module).__name__}")
        if nonfinite not in ("raise", "skip"):
            raise ValueError(f"nonfinite must be 'raise' or 'skip', got {nonfinite!r}")
        self.module = module
        self.max_norm = dict(max_norm) if isinstance(max_norm, Mapping) else {"": max_norm}
        for name, threshold in self.max_norm.items():
            if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold > 0:
                argument = f"max_norm[{name!r}]" if name else "max_norm"
                raise ValueError(f"{argument} must be a positive number, or math.inf to log alone, got {threshold!r}")
        self.nonfinite = nonfinite
        self.log: list[ClipRecord] = []
        self._groups()  # a group that fits nothing is refused now, not in the first step

    def clip(self) -> bool:
        """Clip in place, and append to the log.

        Returns:
            whether there is a step to take: False when the gradients were discarded under ``nonfinite="skip"``.

        Raises:
            RuntimeError: no parameter has a gradient.
            NonFiniteGradientError: under ``nonfinite="raise"``; the gradients are untouched, and the log has a record.
        """
        norms = gradient_norms(self.module)
        groups = {name: group for name, group in self._groups().items() if any(p.grad is not None for p in group)}
        tensors = {
            name: get_total_norm([p.grad for p in group if p.grad is not None]) for name, group in groups.items()
        }
        totals = {name: float(total) for name, total in tensors.items()}
        bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
        # Each norm can be finite and the sum of their squares too large for the dtype: torch would scale all to 0.
        bad = bad or [f"{name}.*" if name else "*" for name, total in totals.items() if not math.isfinite(total)]
        if bad:
            self.log.append(ClipRecord(norms, totals, dict.fromkeys(groups, 0.0), tuple(bad)))
            if self.nonfinite == "raise":
                seen = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
                raise NonFiniteGradientError(
                    f"the norm of the gradient of {seen} is not finite in call {len(self.log)}; "
                    "skip such steps with nonfinite='skip', or look for what divides by 0 in the loss"
                )
            self.module.zero_grad(set_to_none=True)
            return False
        for name, group in groups.items():
            clip_grads_with_norm_(group, self.max_norm[name], tensors[name])
        # 1e-6 as in torch, where it keeps a norm of 0 from dividing
        scales = {name: min(1.0, self.max_norm[name] / (total + 1e-6)) for name, total in totals.items()}
        self.log.append(ClipRecord(norms, totals, scales, ()))
        return True

    def _groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each group."""
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in self.max_norm}
        for name, parameter in self.module.named_parameters():
            fitting = [group for group in groups if not group or f"{name}.".startswith(f"{group}.")]
            if len(fitting) != 1:
                fits = f"fits the groups {fitting}" if fitting else f"fits no group of {list(groups)}"
                raise ValueError(f"every parameter must fit one group, and {name!r} {fits}")
            groups[fitting[0]].append(parameter)
        if empty := [group for group, parameters in groups.items() if not parameters]:
            children = [name for name, _ in self.module.named_children()]
            raise ValueError(f"the groups {empty} have no parameters; the module's children are {children}")
        return groups
