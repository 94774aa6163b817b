"""Models that more than one chapter trains: so far a classifier of sequences of different lengths."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lstm_utils.initialization import init_lstm_
from lstm_utils.sequences import masked_mean, run_packed, valid_mask
from lstm_utils.spec import LSTMSpec

Pooling = Literal["last", "mean", "max"]


class SequenceClassifier(nn.Module):
    """Embedding, LSTM over the packed batch, one vector a sequence, linear layer.

    The LSTM is initialized by :func:`~lstm_utils.initialization.init_lstm_` with its defaults. What stands in the
    padding has no influence on the result.

    Args:
        num_symbols: rows of the embedding; symbol 0 is the padding.
        num_classes: width of the result.
        embedding_size: features of a symbol.
        hidden_size: of the LSTM, as are num_layers, bidirectional and proj_size.
        num_layers: stacked layers.
        bidirectional: two directions, which together are twice as wide.
        proj_size: width of the projected hidden state, 0 for none.
        dropout: of the embedding, between layers, and before the linear layer.
        pooling: how one vector is made of all steps, see :func:`pool`.

    Raises:
        ValueError: the pooling is unknown, or from :class:`~lstm_utils.spec.LSTMSpec`.
    """

    def __init__(
        self,
        num_symbols: int,
        num_classes: int,
        *,
        embedding_size: int = 32,
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = True,
        proj_size: int = 0,
        dropout: float = 0.0,
        pooling: Pooling = "last",
    ) -> None:
        super().__init__()
        spec = LSTMSpec(
            embedding_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,  # between layers, so with one nn.LSTM only warns
            bidirectional=bidirectional,
            proj_size=proj_size,
        )
        self.pooling = _known(pooling)
        self.embedding = nn.Embedding(num_symbols, embedding_size, padding_idx=0)
        self.lstm = init_lstm_(spec.build())
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(spec.num_directions * spec.hidden_width, num_classes)

    def forward(self, symbols: Tensor, lengths: Tensor) -> Tensor:
        """Scores of the classes, before softmax.

        Args:
            symbols: (N, T), integers from 0 to num_symbols - 1, padded on the right.
            lengths: (N,), integers from 1 to T.

        Returns:
            (N, num_classes).
        """
        output = self.steps(symbols, lengths)
        pooled = pool(output, lengths, self.pooling, bidirectional=self.lstm.bidirectional)
        scores: Tensor = self.readout(self.dropout(pooled))
        return scores

    def steps(self, symbols: Tensor, lengths: Tensor) -> Tensor:
        """The LSTM's output at every step, (N, T, D·H_out); zeros in the padding."""
        output, _ = run_packed(self.lstm, self.dropout(self.embedding(symbols)), lengths)
        return output


def pool(output: Tensor, lengths: Tensor, how: Pooling, *, bidirectional: bool) -> Tensor:
    """One vector for each sequence, of its real steps alone.

    Args:
        output: (N, T, D·H_out), from a run that padding cannot reach, such as ``run_packed``.
        lengths: (N,), integers from 1 to T.
        how: "last" takes each direction's last real step, "mean" and "max" go over all real steps.
        bidirectional: as the LSTM was built.

    Returns:
        (N, D·H_out).

    Raises:
        ValueError: ``how`` is unknown, or the lengths do not fit the output.
    """
    if _known(how) == "last":  # as last_valid_step, with a gather, which an exporter does not fix to this batch's size
        at = (lengths.to(output.device) - 1)[:, None, None].expand(-1, 1, output.shape[2])
        ends = output.gather(1, at)[:, 0]
        half = output.shape[2] // 2
        return torch.cat([ends[:, :half], output[:, 0, half:]], dim=1) if bidirectional else ends
    mask = valid_mask(lengths, output.shape[1], batch_first=True).to(output.device)
    if how == "mean":
        return masked_mean(output, mask, dim=1)
    return torch.where(mask[..., None], output, -math.inf).amax(1)


def _known(pooling: Pooling) -> Pooling:
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {', '.join(map(repr, get_args(Pooling)))}, got {pooling!r}")
    return pooling
