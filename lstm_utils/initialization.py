"""Initial weights of an LSTM, gate by gate: every layer, both directions, projections, and one forget bias.

``nn.LSTM`` stacks its four gates in one tensor. An initializer that is handed the whole of it takes four matrices for
one: Xavier's bound comes out too small, and no gate's block of an orthogonal matrix is orthogonal itself. Here each
block is drawn on its own.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Literal, TypeGuard, TypeVar

import torch
from torch import Generator, Tensor, nn

from lstm_utils.arguments import one_of, require, require_tensor
from lstm_utils.reference import ReferenceLSTM
from lstm_utils.spec import LSTMSpec

AnyLSTM = TypeVar("AnyLSTM", nn.LSTM, ReferenceLSTM)

# How a block (rows, columns) is filled, given the bound of nn.LSTM's own initialization, 1/√H.
SCHEMES: dict[str, Callable[[Tensor, float, Generator | None], Tensor]] = {
    "default": lambda block, bound, generator: nn.init.uniform_(block, -bound, bound, generator),
    "xavier_uniform": lambda block, _, generator: nn.init.xavier_uniform_(block, generator=generator),
    "xavier_normal": lambda block, _, generator: nn.init.xavier_normal_(block, generator=generator),
    "orthogonal": lambda block, _, generator: nn.init.orthogonal_(block, generator=generator),
}


def init_lstm_(
    lstm: AnyLSTM,
    *,
    input: str = "xavier_uniform",
    recurrent: str = "orthogonal",
    forget_bias: float | Literal["chrono"] = 1.0,
    max_lag: float | None = None,
    generator: Generator | None = None,
) -> AnyLSTM:
    """Draw new weights for an LSTM in place: all layers and directions, one block a gate.

    Every bias becomes zero, but for the forget gate's, which is written to ``bias_ih`` alone: the gate adds ``bias_hh``
    to it, which stays zero. Numbers are drawn on the generator's device, in float32 at least, so that a seed
    gives the same weights wherever, and in whatever precision, the module is.

    Args:
        lstm: an ``nn.LSTM`` or ``ReferenceLSTM``; of a model that holds one, that part.
        input: how the four blocks (H, I_l) of each ``weight_ih`` are drawn: "default" (uniform within ±1/√H),
            "xavier_uniform", "xavier_normal" or "orthogonal".
        recurrent: the same for the blocks (H, H_out) of ``weight_hh``, and for ``weight_hr`` (P, H), which is part of
            the way from h to h. What is not square becomes semi-orthogonal.
        forget_bias: the forget gate's bias, as the gate sees it. "chrono" draws one for each unit, log(u) with u
            uniform between 1 and ``max_lag`` - 1, and gives the input gate its negative: the units' memories then last
            from 2 to ``max_lag`` steps. An LSTM with ``bias=False`` can only have 0.
        max_lag: how many steps the memory has to reach back, at least 2; with "chrono" alone.
        generator: where the random numbers come from; PyTorch's own by default.

    Returns:
        the same module.

    Raises:
        TypeError: ``lstm`` or ``generator`` is something else.
        ValueError: a name is unknown, a number is out of range or too large for the weights' dtype, a parameter has
            been replaced by a parametrization, or there is no bias to write to. Nothing has been changed then.

    Source: Glorot and Bengio (2010) for Xavier; Saxe et al. (2014) for orthogonal weights; Gers et al. (2000) and
    Jozefowicz et al. (2015) for the forget bias; Tallec and Ollivier (2018) for chrono.
    """
    spec = _checked(lstm)
    for argument, name in (("input", input), ("recurrent", recurrent)):
        one_of(argument, name, SCHEMES)
    if generator is not None:
        require("generator", generator, Generator, "a torch.Generator")
    _check_bias(spec, forget_bias, max_lag, min(torch.finfo(p.dtype).max for p in lstm.parameters()))
    bound = 1 / math.sqrt(spec.hidden_size)
    device = "cpu" if generator is None else generator.device
    parameters, drawn = dict(lstm.named_parameters()), {}
    for name, shape in spec.parameter_shapes().items():
        dtype = torch.promote_types(parameters[name].dtype, torch.float32)  # no QR in half precision
        new = drawn[name] = torch.zeros(shape, dtype=dtype, device=device)
        if name.startswith("weight_hr"):
            SCHEMES[recurrent](new, bound, generator)
        elif name.startswith("weight"):
            for block in gate_blocks(new).values():
                SCHEMES[input if name.startswith("weight_ih") else recurrent](block, bound, generator)
        elif name.startswith("bias_ih"):
            gates = gate_blocks(new)
            if max_lag is None:
                gates["f"].fill_(float(forget_bias))
            else:
                gates["f"].uniform_(1, max_lag - 1, generator=generator).log_()
                gates["i"].copy_(-gates["f"])
    with torch.no_grad():  # and only now, when nothing can fail any more, touch the module
        for name, new in drawn.items():
            parameters[name].copy_(new)
    return lstm


def gate_blocks(stacked: Tensor) -> dict[str, Tensor]:
    """The rows of each gate in a stacked tensor, by the names i, f, g and o.

    Args:
        stacked: (4H, ...): ``weight_ih``, ``weight_hh``, a bias, or the gradient of one of them.

    Returns:
        four views (H, ...), in the order in which PyTorch stacks them.

    Raises:
        TypeError: it is no tensor.
        ValueError: the rows are no multiple of four, as those of ``weight_hr`` need not be.
    """
    require_tensor("stacked", stacked)
    if stacked.dim() == 0 or len(stacked) % 4 or not len(stacked):
        raise ValueError(f"expected 4H rows, H for each gate, got the shape {tuple(stacked.shape)}")
    return dict(zip(("i", "f", "g", "o"), stacked.chunk(4), strict=True))


def forget_biases(lstm: nn.LSTM | ReferenceLSTM) -> dict[str, Tensor]:
    """The forget gate's bias as the gate sees it, ``b_ih + b_hh``, for each layer and direction.

    Returns:
        "l0", "l0_reverse", "l1", … → (H,), detached; zeros with ``bias=False``.

    Raises:
        TypeError: ``lstm`` is something else.
        ValueError: a parameter has been replaced by a parametrization.
    """
    spec = _checked(lstm)
    parameters, found = dict(lstm.named_parameters()), {}
    for name, weight in parameters.items():
        if name.startswith("weight_hh_"):
            place = name.removeprefix("weight_hh_")
            stacked = torch.zeros_like(weight[:, 0])
            for kind in ("bias_ih", "bias_hh") if spec.bias else ():
                stacked = stacked + parameters[f"{kind}_{place}"]
            found[place] = gate_blocks(stacked)["f"].detach()
    return found


def _checked(lstm: nn.LSTM | ReferenceLSTM) -> LSTMSpec:
    """The specification of a module whose parameters are its own."""
    if not isinstance(lstm, nn.LSTM | ReferenceLSTM):
        raise TypeError(f"expected an nn.LSTM or a ReferenceLSTM, such as one of model.modules(), got {_kind(lstm)}")
    spec = lstm.spec if isinstance(lstm, ReferenceLSTM) else LSTMSpec.from_module(lstm)
    own = dict(lstm.named_parameters())
    if missing := [name for name in spec.parameter_shapes() if name not in own]:
        raise ValueError(
            f"{', '.join(missing)} is no parameter of this {_kind(lstm)}, whose parameters are {', '.join(own)}; "
            "initialize before a parametrization such as weight_norm is applied"
        )
    return spec


def _kind(value: object) -> str:
    return type(value).__name__


def _check_bias(spec: LSTMSpec, forget_bias: float | str, max_lag: float | None, most: float) -> None:
    """Refuse a forget bias that cannot be written as it was asked."""
    if isinstance(forget_bias, str):
        if forget_bias != "chrono":
            raise ValueError(f"forget_bias must be a number or 'chrono', got {forget_bias!r}")
        if not _is_number(max_lag) or not 2 <= max_lag <= 2**63:  # what is drawn with has to fit
            raise ValueError(f"forget_bias='chrono' needs max_lag, a number of steps of at least 2, got {max_lag!r}")
    elif not _is_number(forget_bias):
        raise ValueError(f"forget_bias must be a finite number or 'chrono', got {forget_bias!r}")
    elif abs(forget_bias) > most:
        raise ValueError(f"forget_bias must be at most {most:g} in the weights' dtype, got {forget_bias!r}")
    elif max_lag is not None:
        raise ValueError(f"max_lag={max_lag!r} goes with forget_bias='chrono' alone, got forget_bias={forget_bias!r}")
    if not spec.bias and forget_bias != 0:
        raise ValueError(
            f"an LSTM with bias=False has no bias to write forget_bias={forget_bias!r} to; pass 0, or build it with "
            "bias=True"
        )


def _is_number(value: float | None) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return isinstance(value, numbers.Rational) or math.isfinite(value)  # an int may be too large for a float
