"""What ``nn.LSTM`` has no argument for: one dropout mask for all time steps, and dropout of the recurrent weights.

The ``dropout`` of ``nn.LSTM`` acts between layers, with a new mask at every step, and never on the recurrence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_utils.arguments import require, require_flag, share
from lstm_utils.reference import States


class LockedDropout(nn.Module):
    """Dropout of features with one mask for each sequence, the same at every time step.

    For the input or the output of an ``nn.LSTM``. Kept features are multiplied by 1/(1-p), so the mean stays. In
    evaluation mode the module does nothing.

    Args:
        p: share of the features that is dropped, 0 to 1.
        batch_first: the layout of three-dimensional input, as the LSTM was built.

    Raises:
        TypeError: ``batch_first`` is no bool.
        ValueError: ``p`` is no number from 0 to 1.

    Source: Gal and Ghahramani, A Theoretically Grounded Application of Dropout in Recurrent Neural Networks, 2016.
    """

    def __init__(self, p: float = 0.5, *, batch_first: bool = False) -> None:
        super().__init__()
        self.p = share("p", p)
        require_flag("batch_first", batch_first)
        self.batch_first = batch_first

    def forward(self, x: Tensor | PackedSequence) -> Tensor | PackedSequence:
        """Drop features.

        Args:
            x: (N, T, F) with ``batch_first``, else (T, N, F); unbatched (T, F); or packed sequences of F features.

        Returns:
            the same kind and shape.

        Raises:
            TypeError: it is neither a tensor nor packed, or holds no floats.
            ValueError: the tensor has neither two nor three dimensions.
        """
        require("x", x, Tensor | PackedSequence, "a tensor or a PackedSequence")
        if not (x.data if isinstance(x, PackedSequence) else x).is_floating_point():
            got = x.data.dtype if isinstance(x, PackedSequence) else x.dtype
            raise TypeError(f"x must hold floats, which can be scaled by 1/(1-p), got {got}; drop after the embedding")
        if not self.training or self.p == 0:
            return x
        if isinstance(x, PackedSequence):  # its rows are those of step 0, then of step 1, ..., the longest ones first
            rows = torch.cat([torch.arange(int(n)) for n in x.batch_sizes]).to(x.data.device)
            masks = nn.functional.dropout(x.data.new_ones(int(x.batch_sizes[0]), x.data.shape[1]), self.p)  # (N, F)
            return x._replace(data=x.data * masks[rows])
        if x.dim() not in (2, 3):
            layout = "(N, T, F)" if self.batch_first else "(T, N, F)"
            raise ValueError(f"expected {layout}, (T, F) or a PackedSequence, got a tensor of shape {tuple(x.shape)}")
        shape = list(x.shape)
        shape[1 if self.batch_first and x.dim() == 3 else 0] = 1
        return x * nn.functional.dropout(x.new_ones(shape), self.p)

    def extra_repr(self) -> str:
        """Its settings."""
        return f"p={self.p}, batch_first={self.batch_first}"


class WeightDrop(nn.Module):
    """An ``nn.LSTM`` that drops elements of its recurrent weights while it trains (DropConnect).

    One mask is drawn for each forward pass and each ``weight_hh``; it holds for all steps and all sequences, so the
    state itself is never dropped, and PyTorch's own kernel runs the steps. Parameters and state_dict of the LSTM stay
    as they are, under the prefix ``lstm.``; ``wrapper.lstm`` is the trained ``nn.LSTM``, ready to use without this
    class. In evaluation mode the wrapper only passes on.

    On a GPU PyTorch copies the weights into one block again for each pass, since the dropped ones are new tensors.

    Args:
        lstm: any ``nn.LSTM``.
        p: share of the elements of each ``weight_hh`` that is dropped, 0 to 1.

    Raises:
        TypeError: ``lstm`` is something else.
        ValueError: ``p`` is no number from 0 to 1.

    Source: Merity, Keskar and Socher, Regularizing and Optimizing LSTM Language Models, 2018.
    """

    def __init__(self, lstm: nn.LSTM, p: float = 0.5) -> None:
        super().__init__()
        if not isinstance(lstm, nn.LSTM):
            raise TypeError(f"lstm must be an nn.LSTM, got {type(lstm).__name__}; of a model, pass the LSTM in it")
        self.lstm = lstm
        self.p = share("p", p)

    @property
    def batch_first(self) -> bool:
        """As the LSTM was built, so that helpers such as ``run_packed`` can ask."""
        return self.lstm.batch_first

    def forward(self, x: Tensor | PackedSequence, hx: States | None = None) -> tuple[Tensor | PackedSequence, States]:
        """Run the LSTM, in training with some recurrent weights at zero; arguments and result are those of nn.LSTM."""
        dropped = {}
        if self.training:
            weights = self.lstm.named_parameters()
            dropped = {
                name: nn.functional.dropout(weight, self.p) for name, weight in weights if name.startswith("weight_hh")
            }
        output, states = torch.func.functional_call(self.lstm, dropped, (x, hx))
        return output, states

    def extra_repr(self) -> str:
        """Its setting."""
        return f"p={self.p}"
