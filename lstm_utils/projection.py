"""The same LSTM without ``proj_size``, for whatever does not know projections, such as ONNX."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_utils.arguments import require_lstm
from lstm_utils.reference import States
from lstm_utils.spec import LSTMSpec


class FoldedProjection(nn.Module):
    """An ``nn.LSTM`` with ``proj_size`` as one without it, and the same results up to rounding.

    With h = W_hr·m, where m = o ⊙ tanh(c) is H wide, every matrix that reads h can read m instead: W_hh becomes
    W_hh·W_hr, and the W_ih of the next layer likewise. Output and h_n are projected at the end. What the projection
    saved is lost: 4H·H numbers in the recurrent matrix of a layer, in place of 4H·P + P·H.

    Args:
        lstm: its weights are copied, and its arguments are attributes here too; ``forward`` takes and returns what
            its own does.

    Raises:
        TypeError: ``lstm`` is something else.
        ValueError: it has no projection.
    """

    batch_first: bool
    down: Tensor
    up: Tensor
    top: Tensor

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        require_lstm("lstm", lstm)
        if not lstm.proj_size:
            raise ValueError(f"{lstm} has no projection to fold")
        spec = LSTMSpec.from_module(lstm)
        for name, value in spec.as_dict().items():  # a model that asks its LSTM for them finds them
            setattr(self, name, value)
        weights = {name: parameter.detach() for name, parameter in lstm.named_parameters()}
        self.lstm = replace(spec, proj_size=0).build(weights["weight_ih_l0"].device, weights["weight_ih_l0"].dtype)
        folds = {name[9:]: weights.pop(name) for name in list(weights) if "weight_hr" in name}  # "_l0" → (P, H)
        matrices, directions = list(folds.values()), spec.num_directions
        for row, (suffix, fold) in enumerate(folds.items()):
            weights[f"weight_hh{suffix}"] = weights[f"weight_hh{suffix}"] @ fold
            if first := row - row % directions:  # a layer above the first reads every direction of the one below
                below = _block_diag(matrices[first - directions : first])
                weights[f"weight_ih{suffix}"] = weights[f"weight_ih{suffix}"] @ below
        self.lstm.load_state_dict(weights)
        self.train(lstm.training)
        self.register_buffer("down", torch.stack([matrix.T for matrix in matrices]))  # (D·L, H, P), as the rows of h_n
        wide = torch.promote_types(self.down.dtype, torch.float32)  # torch has no pseudo-inverse in half precision
        up = torch.linalg.pinv(self.down.to(wide)).to(self.down.dtype)
        self.register_buffer("up", up)  # (D·L, P, H): an m with W_hr·m = h_0
        self.register_buffer("top", _block_diag(list(self.down[-directions:])))  # (D·H, D·P)

    def forward(self, input: Any, hx: States | None = None) -> tuple[Any, States]:
        """As ``nn.LSTM.forward``, padded, unbatched or packed.

        Raises:
            ValueError, RuntimeError: as there, or where ``hx`` has other layers or widths.
        """
        if hx is not None:
            hx = torch.stack([h @ up for h, up in zip(hx[0], self.up, strict=True)]), hx[1]
        output, (m, c) = self.lstm(input, hx)
        if isinstance(output, PackedSequence):  # padded for the product: an ONNX exporter knows nothing else in between
            padded, lengths = pad_packed_sequence(PackedSequence(output.data, output.batch_sizes))
            data, sizes, *_ = pack_padded_sequence(padded @ self.top, lengths)
            output = PackedSequence(data, sizes, output.sorted_indices, output.unsorted_indices)
        else:
            output = output @ self.top
        return output, (torch.stack([part @ down for part, down in zip(m, self.down, strict=True)]), c)


def _block_diag(blocks: list[Tensor]) -> Tensor:
    joined: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return joined
