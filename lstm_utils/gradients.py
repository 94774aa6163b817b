"""Gradients before the optimizer sees them: their norms, and clipping that keeps a log and does not fail in silence.

The arithmetic is that of ``torch.nn.utils.clip_grad_norm_``. What that lets pass is refused here: parameters from an
exhausted generator, gradients that do not exist, a threshold that erases or reverses them, and values that are not
finite, one of which spoils all the others.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lstm_utils.arguments import require_module


class NonFiniteGradientError(ArithmeticError):
    """A gradient, or the norm of several together, is infinite or not a number."""


@dataclass(frozen=True)
class ClipRecord:
    """What one call of :meth:`GradientClipper.clip` found and did.

    Args:
        norms: Euclidean norm of each parameter's gradient before clipping, by the parameter's name.
        totals: that of all gradients of a group together, by the group's name ("" when there is one group).
        scales: what the gradients of each group were multiplied by: 1.0 if left alone, 0.0 if discarded.
        nonfinite: the parameters whose gradient's norm is infinite or not a number.
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
        TypeError: ``module`` is something else.
        RuntimeError: no parameter has a gradient, as before the first ``backward()``.
    """
    require_module("module", module)
    parameters = dict(module.named_parameters())
    gradients = {name: _numbers(parameter.grad) for name, parameter in parameters.items() if parameter.grad is not None}
    if not gradients:
        raise RuntimeError(f"none of the {len(parameters)} parameters has a gradient; call loss.backward() first")
    norms = [_norm(values) for values in gradients.values()]
    together = torch.stack([norm.to(norms[0].device) for norm in norms])  # one wait for the device, not one for each
    found = dict(zip(gradients, together.tolist(), strict=True))
    for name, norm in found.items():
        if math.isinf(norm) and math.isfinite(largest := gradients[name].abs().max().item()):  # its square is not
            found[name] = largest * _norm(gradients[name] / largest).item()
    return found


def _numbers(gradient: Tensor) -> Tensor:
    """Real ones that are all there: torch has no maximum of a sparse tensor, nor one of complex numbers."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.view_as_real(values) if values.is_complex() else values


def _norm(values: Tensor) -> Tensor:
    """In float64, where there is one: the square of 1e20 fits into no float32, nor that of 300 into a float16."""
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    norm: Tensor = torch.linalg.vector_norm(values, dtype=dtype)
    return norm


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
        log: a :class:`ClipRecord` for each call, the oldest first. It grows; ``log.clear()`` empties it.

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
            if isinstance(threshold, int) and threshold > 2**1023:  # no float is as large
                raise ValueError(f"max_norm must fit into a float, got {threshold!r}; math.inf logs alone")
            if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or not threshold > 0:
                argument = f"max_norm[{name!r}]" if name else "max_norm"
                raise ValueError(f"{argument} must be a positive number, or math.inf to log alone, got {threshold!r}")
        self.nonfinite = nonfinite
        self.log: list[ClipRecord] = []
        self._groups()  # a group that fits nothing is refused now, not in the first step

    @torch.no_grad()
    def clip(self) -> bool:
        """Clip in place, and append to the log.

        Returns:
            whether there is a step to take: False when the gradients were discarded under ``nonfinite="skip"``.

        Raises:
            RuntimeError: no parameter has a gradient.
            NonFiniteGradientError: under ``nonfinite="raise"``; the gradients are untouched, and the log has a record.
        """
        norms = gradient_norms(self.module)
        totals = {
            group: math.hypot(*found)
            for group, parameters in self._groups().items()
            if (found := [norms[name] for name in parameters if name in norms])
        }
        if bad := tuple(name for name, norm in norms.items() if not math.isfinite(norm)):
            self.log.append(ClipRecord(norms, totals, dict.fromkeys(totals, 0.0), bad))
            if self.nonfinite == "raise":
                seen = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
                raise NonFiniteGradientError(
                    f"the norm of the gradient of {seen} is not finite in call {len(self.log)}; "
                    "skip such steps with nonfinite='skip', or look for what divides by 0 in the loss"
                )
            self.module.zero_grad(set_to_none=True)
            return False
        # 1e-6 as in torch, where it keeps a norm of 0 from dividing. Multiplied here, since torch's own call wants the
        # norm as a tensor, which on Apple's GPUs would be float32 and may overflow.
        scales = {group: min(1.0, float(self.max_norm[group]) / (total + 1e-6)) for group, total in totals.items()}
        for group, parameters in self._groups().items():
            for parameter in parameters.values():
                if parameter.grad is not None and scales[group] < 1:
                    parameter.grad.mul_(scales[group])
        self.log.append(ClipRecord(norms, totals, scales, ()))
        return True

    def _groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """The parameters of each group, by name."""
        groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name in self.max_norm}
        for name, parameter in self.module.named_parameters():
            fitting = [group for group in groups if not group or f"{name}.".startswith(f"{group}.")]
            if len(fitting) != 1:
                fits = f"fits the groups {fitting}" if fitting else f"fits no group of {list(groups)}"
                raise ValueError(f"every parameter must fit one group, and {name!r} {fits}")
            groups[fitting[0]][name] = parameter
        if empty := [group for group, parameters in groups.items() if not parameters]:
            children = [name for name, _ in self.module.named_children()]
            raise ValueError(f"the groups {empty} have no parameters; the module's children are {children}")
        return groups
