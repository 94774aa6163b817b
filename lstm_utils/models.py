"""Models to take home: a classifier of sequences of different lengths, and a stack with residual connections."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_utils.arguments import at_least, check_states, one_of, require_even, require_flag, share
from lstm_utils.initialization import init_lstm_
from lstm_utils.reference import States
from lstm_utils.sequences import masked_mean, run_packed, steps_of, valid_mask
from lstm_utils.spec import LSTMSpec

Pooling = Literal["last", "mean", "max"]
Norm = Literal["none", "pre", "post"]
Steps = Tensor | PackedSequence


class SequenceClassifier(nn.Module):
    """Embedding, LSTM over the packed batch, one vector a sequence, linear layer.

    The LSTM is initialized by :func:`~lstm_utils.initialization.init_lstm_` with its defaults. What stands in the
    padding has no influence on the result.

    Args:
        num_symbols: rows of the embedding; symbol 0 is the padding.
        num_classes: width of the result.
        embedding_size: features of a symbol.
        hidden_size: of the LSTM, H.
        num_layers: of the LSTM.
        bidirectional: whether the LSTM reads in both directions.
        proj_size: width of the LSTM's hidden state when it is projected; 0 for no projection.
        dropout: of the embedding, between layers, and before the linear layer.
        pooling: how one vector is made of all steps, see :func:`pool`.

    Raises:
        TypeError, ValueError: a number is none or out of range, or the pooling is unknown.
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
        at_least("num_symbols", num_symbols, 1)
        at_least("num_classes", num_classes, 1)
        one_of("pooling", pooling, get_args(Pooling))
        share("dropout", dropout)
        spec = LSTMSpec(
            embedding_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers != 1 else 0.0,  # with one layer nn.LSTM only warns
            bidirectional=bidirectional,
            proj_size=proj_size,
        )
        self.pooling = pooling
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
        TypeError, ValueError: ``how`` is unknown, ``bidirectional`` no bool, or the output or the lengths are of
            another kind, or do not fit.
    """
    require_flag("bidirectional", bidirectional)
    _, lengths = steps_of(output, lengths, batch_first=True)
    require_even(output.shape[2] if bidirectional else 0)
    if (
        one_of("how", how, get_args(Pooling)) == "last"
    ):  # as last_valid_step, with a gather, which an exporter does not fix to this batch's size
        at = (lengths.to(output.device) - 1)[:, None, None].expand(-1, 1, output.shape[2])
        ends = output.gather(1, at)[:, 0]
        half = output.shape[2] // 2
        return torch.cat([ends[:, :half], output[:, 0, half:]], dim=1) if bidirectional else ends
    mask = valid_mask(lengths, output.shape[1], batch_first=True).to(output.device)
    if how == "mean":
        return masked_mean(output, mask, dim=1)
    return torch.where(mask[..., None], output, -math.inf).amax(1)


class ResidualLSTM(nn.Module):
    """A stack of LSTM layers with residual connections: a drop-in for ``nn.LSTM`` in arguments and shapes.

    Every layer but the first adds its output to its input, x + LSTM(x). The first has no such connection, whatever
    its input's width. With ``norm="pre"`` the layers above the first compute x + LSTM(LN(x)), with "post" every layer
    is followed by a layer normalization, LN(x + LSTM(x)), the top one included; the module's input is never normalized.
    Dropout acts, as in ``nn.LSTM``, on what every layer but the last puts out, before it is added.

    ``residual=False, norm="none"`` computes what ``nn.LSTM`` does. Otherwise ``output`` and ``h_n`` part: ``output``
    holds the sums, ``h_n`` the layers' own states, which the next chunk of a sequence needs. Read the sequence's end
    from ``output``, with :func:`~lstm_utils.sequences.last_valid_step`, not from ``h_n[-1]``.

    Args:
        input_size: features of a step, I. It and the next seven are those of ``nn.LSTM``.
        hidden_size: of every layer, H, as are bias and proj_size; num_layers, L, says how many.
        batch_first: whether input and output are (N, T, width).
        dropout: probability of zeroing an element between layers.
        bidirectional: two directions in each layer; the sum is over both, D·H_out wide.
        residual: whether the layers above the first add their input.
        norm: where layer normalization stands: "none", "pre" or "post".

    Attributes:
        layers: L modules of type ``nn.LSTM``, each of one layer; ``init_lstm_`` takes them one by one.
        norms: the L-1 ("pre") or L ("post") layer normalizations.

    Raises:
        ValueError, TypeError: a wrong ``norm`` or ``residual``, or from :class:`~lstm_utils.spec.LSTMSpec`.

    Source: He et al. (2016) for the connection, Wu et al. (2016) in stacks of LSTMs; Ba et al. (2016) for the norm.
    """

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
        *,
        residual: bool = True,
        norm: Norm = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        spec = LSTMSpec(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        require_flag("residual", residual)
        one_of("norm", norm, get_args(Norm))
        self.__dict__.update(spec.as_dict())  # batch_first and the like, which those who take an nn.LSTM read
        self.spec, self.residual, self.norm = spec, residual, norm
        width = spec.num_directions * spec.hidden_width
        if norm != "none" and width == 1:
            raise ValueError(f"norm={norm!r} needs an output of at least 2 features: normalized, a single one is 0")
        inputs = map(spec.layer_input_size, range(spec.num_layers))
        ones = (replace(spec, input_size=width, num_layers=1, dropout=0.0) for width in inputs)
        self.layers = nn.ModuleList(one.build(device, dtype) for one in ones)
        count = {"none": 0, "pre": spec.num_layers - 1, "post": spec.num_layers}[norm]
        self.norms = nn.ModuleList(nn.LayerNorm(width, device=device, dtype=dtype) for _ in range(count))

    @classmethod
    def from_lstm(cls, lstm: nn.LSTM, *, residual: bool = True, norm: Norm = "none") -> ResidualLSTM:
        """A stack with a copy of an ``nn.LSTM``'s weights, on its device, and in its training or evaluation mode."""
        weights = lstm.state_dict()
        like = {"device": weights["weight_ih_l0"].device, "dtype": weights["weight_ih_l0"].dtype}
        stack = cls(**LSTMSpec.from_module(lstm).as_dict(), residual=residual, norm=norm, **like)
        for number, layer in enumerate(stack.layers):
            layer.load_state_dict({name: weights[name.replace("_l0", f"_l{number}")] for name in layer.state_dict()})
        return stack.train(lstm.training)

    def forward(self, input: Steps, hx: States | None = None) -> tuple[Steps, States]:
        """Run the stack, from zeros or from given states.

        Args:
            input: (T, N, I), with ``batch_first`` (N, T, I), unbatched (T, I), or packed.
            hx: (h_0, c_0), of shapes (D·L, N, H_out) and (D·L, N, H), without N for unbatched input.

        Returns:
            output, packed if the input was, else with D·H_out in place of I; and (h_n, c_n), shaped as (h_0, c_0).

        Raises:
            ValueError, RuntimeError: a state has another shape, or the layers do not take the input.
        """
        check_states(self, input, hx)
        states: list[States] | list[None] = [None] * self.spec.num_layers
        if hx is not None:
            states = list(zip(*(torch.split(state, self.spec.num_directions) for state in hx), strict=True))
        x, finals = input, []
        for number, layer in enumerate(self.layers):
            read = _map(self.norms[number - 1], x) if self.norm == "pre" and number else x
            y, final = layer(read, states[number])
            finals.append(final)
            if self.training and self.spec.dropout and layer is not self.layers[-1]:
                y = _map(partial(nn.functional.dropout, p=self.spec.dropout), y)
            if self.residual and number:
                y = _map(partial(torch.add, _data(x)), y)
            x = _map(self.norms[number], y) if self.norm == "post" else y
        h_n, c_n = (torch.cat(parts) for parts in zip(*finals, strict=True))
        return x, (h_n, c_n)


def _data(x: Steps) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x


def _map(function: Callable[[Tensor], Tensor], x: Steps) -> Steps:
    """Apply to each step what changes neither their number nor their order: to the data alone, if packed."""
    return x._replace(data=function(x.data)) if isinstance(x, PackedSequence) else function(x)
