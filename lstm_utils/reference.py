"""``nn.LSTM`` written out to be read, and a drop-in for it: same arguments, parameter names, calls and gradients."""

from __future__ import annotations

import math
import warnings
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_utils.spec import LSTMSpec

States = tuple[Tensor, Tensor]


def lstm_cell(x_gates: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor, weight_hr: Tensor | None = None) -> States:
    """One step of an LSTM, for a batch of N rows.

    Args:
        x_gates: (N, 4H), the input's share of the four gates, ``W_ih x + b_ih + b_hh``, stacked i, f, g, o.
        h: (N, H), the hidden state before the step; (N, P) with a projection.
        c: (N, H), the cell state before the step.
        weight_hh: (4H, H), or (4H, P) with a projection.
        weight_hr: (P, H), the projection, or None.

    Returns:
        h and c after the step, shaped as they came.

    Source: Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000) and the projection of
    Sak et al. (2014), in PyTorch's gate order.
    """
    i, f, g, o = (x_gates + h @ weight_hh.T).chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    if weight_hr is not None:
        h = h @ weight_hr.T
    return h, c


class ReferenceLSTM(nn.Module):
    """A readable ``nn.LSTM``: same constructor, ``state_dict`` keys, attributes, forward and output types.

    Takes what ``nn.LSTM`` takes: 2-D (unbatched), 3-D or packed input, initial states or none, layers, directions,
    projection, dropout between layers; ``torch.autocast`` alone is not followed. The input's share of the gates is
    computed for all steps at once, so that the loop over time holds only what depends on the step before.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size: see ``LSTMSpec``.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: from ``LSTMSpec``, on arguments that ``nn.LSTM`` cannot use.
    """

    mode = "LSTM"
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.spec = LSTMSpec(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        for name, value in self.spec.as_dict().items():
            setattr(self, name, value)
        if self.dropout and self.num_layers == 1:
            warnings.warn(f"dropout={dropout} acts between layers, and num_layers=1 has no between", stacklevel=2)
        for name, shape in self.spec.parameter_shapes().items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(−1/√H, 1/√H), in the order in which ``nn.LSTM`` draws them."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing: only cuDNN has a flat copy of the weights. Here so that callers of ``nn.LSTM`` need no change."""

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """Parameters by layer and direction, as ``nn.LSTM.all_weights`` groups them."""
        parameters = list(self.parameters())
        size = len(parameters) // (self.num_layers * self.spec.num_directions)
        return [parameters[at : at + size] for at in range(0, len(parameters), size)]

    def extra_repr(self) -> str:
        """The arguments, in the constructor's spelling."""
        return ", ".join(f"{name}={value!r}" for name, value in self.spec.as_dict().items())

    @overload
    def forward(self, input: Tensor, hx: States | None = None) -> tuple[Tensor, States]: ...

    @overload
    def forward(self, input: PackedSequence, hx: States | None = None) -> tuple[PackedSequence, States]: ...

    def forward(
        self, input: Tensor | PackedSequence, hx: States | None = None
    ) -> tuple[Tensor | PackedSequence, States]:
        """Run over a whole sequence.

        Args:
            input: (T, I), (T, N, I), (N, T, I) with ``batch_first``, or a ``PackedSequence``.
            hx: (h_0, c_0), shaped as the results (h_n, c_n); zeros when left out.

        Returns:
            output, of the input's type, and (h_n, c_n): shapes as ``self.spec.shapes`` gives them.

        Raises:
            ValueError: the input is neither 2-D nor 3-D, or its dtype is not the weights'.
            RuntimeError: the input has no steps, or its width or a state's shape does not fit.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"expected a 2-D (unbatched) or 3-D input, got shape {tuple(input.shape)}")
        batched = input.dim() == 3
        time_first = input.transpose(0, 1) if batched and self.batch_first else input
        self._check(input, len(time_first), time_first.shape[1] if batched else None, hx)
        if not batched:
            time_first = input.unsqueeze(1)
            hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        output, (h_n, c_n) = self._forward_layers(time_first, hx, valid=None)
        if not batched:
            return output.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return output.transpose(0, 1) if self.batch_first else output, (h_n, c_n)

    def _forward_packed(self, packed: PackedSequence, hx: States | None) -> tuple[PackedSequence, States]:
        """Pad, run with a mask of the valid steps, pack again. Rows stay in the packing's own, sorted order."""
        self._check(packed.data, len(packed.batch_sizes), int(packed.batch_sizes[0]), hx)
        padded, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
        valid = torch.arange(len(padded))[:, None] < lengths
        if hx is not None and packed.sorted_indices is not None:
            hx = (hx[0].index_select(1, packed.sorted_indices), hx[1].index_select(1, packed.sorted_indices))
        output, (h_n, c_n) = self._forward_layers(padded, hx, valid.to(padded.device))
        data = pack_padded_sequence(output, lengths).data
        if packed.unsorted_indices is not None:
            h_n, c_n = h_n.index_select(1, packed.unsorted_indices), c_n.index_select(1, packed.unsorted_indices)
        repacked = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return repacked, (h_n, c_n)

    def _forward_layers(self, x: Tensor, hx: States | None, valid: Tensor | None) -> tuple[Tensor, States]:
        """Stack the layers on x of shape (T, N, I); ``valid`` (T, N) marks the steps that are not padding."""
        expected = self.spec.shapes(len(x), x.shape[1])
        h_0, c_0 = (x.new_zeros(expected.h_n), x.new_zeros(expected.c_n)) if hx is None else hx
        finals = []
        for layer in range(self.num_layers):
            halves = []
            for direction in range(self.spec.num_directions):
                at = layer * self.spec.num_directions + direction
                half, final = self._run(x, (h_0[at], c_0[at]), layer, reverse=direction == 1, valid=valid)
                halves.append(half)
                finals.append(final)
            x = torch.cat(halves, dim=2)
            if layer < self.num_layers - 1:
                x = self._drop(x, valid)
        h_n, c_n = (torch.stack(states) for states in zip(*finals, strict=True))
        return x, (h_n, c_n)

    def _drop(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Dropout on what the next layer reads; drawn for the valid steps alone, as ``nn.LSTM`` draws it."""
        if valid is None:
            return nn.functional.dropout(x, self.dropout, self.training)
        dropped = nn.functional.dropout(x[valid], self.dropout, self.training)
        return x.masked_scatter(valid[:, :, None], dropped)

    def _run(self, x: Tensor, state: States, layer: int, reverse: bool, valid: Tensor | None) -> tuple[Tensor, States]:
        """One layer in one direction over time: outputs (T, N, H_out) and the final (h, c)."""
        suffix = f"_l{layer}" + ("_reverse" if reverse else "")
        bias = getattr(self, f"bias_ih{suffix}") + getattr(self, f"bias_hh{suffix}") if self.bias else None
        weight_hh = getattr(self, f"weight_hh{suffix}")
        weight_hr = getattr(self, f"weight_hr{suffix}") if self.proj_size else None
        x_gates = nn.functional.linear(x, getattr(self, f"weight_ih{suffix}"), bias).unbind()  # every step at once
        h, c = state
        outputs = [h] * len(x)
        for t in reversed(range(len(x))) if reverse else range(len(x)):
            h_new, c_new = lstm_cell(x_gates[t], h, c, weight_hh, weight_hr)
            if valid is None:
                h, c = h_new, c_new
            else:  # a padded step leaves the state as it was
                h, c = torch.where(valid[t, :, None], h_new, h), torch.where(valid[t, :, None], c_new, c)
            outputs[t] = h
        return torch.stack(outputs), (h, c)

    def _check(self, x: Tensor, seq_len: int, batch_size: int | None, hx: States | None) -> None:
        """Refuse an input (..., I) or states that do not fit; ``batch_size`` is None for the unbatched input."""
        if x.dtype != (dtype := next(self.parameters()).dtype):
            raise ValueError(f"the input is {x.dtype} and the weights are {dtype}; convert one of them with .to()")
        if x.shape[-1] != self.input_size:
            raise RuntimeError(f"the input has {x.shape[-1]} features a step, and input_size is {self.input_size}")
        if seq_len == 0:
            raise RuntimeError(f"the input has no steps: its shape is {tuple(x.shape)}")
        expected = self.spec.shapes(seq_len, batch_size)
        if hx is None:
            return
        for name, state, shape in (("h_0", hx[0], expected.h_n), ("c_0", hx[1], expected.c_n)):
            if (got := tuple(state.shape)) != shape:
                raise RuntimeError(f"{name} must have shape {shape} (batch_first never moves it), got {got}")
