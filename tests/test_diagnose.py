"""diagnose: every pitfall planted and found, and nothing found where nothing is wrong."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import specs
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from lstm_utils import LSTMSpec, ReferenceLSTM
from lstm_utils.ctc import diagnose_ctc
from lstm_utils.diagnose import diagnose
from lstm_utils.pitfalls import pitfalls
from lstm_utils.sequences import last_valid_step, run_packed

N, T, I, H, C = 4, 7, 10, 20, 3  # noqa: E741
LENGTHS = torch.tensor([7, 3, 5, 2])


def x(*shape):
    return torch.randn(*(shape or (N, T, I)), generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """An LSTM, and a function of (module, batch…) for everything else; its readout maps the width of h to C."""

    def __init__(self, forward, **lstm):
        super().__init__()
        self.lstm = nn.LSTM(I, H, **{"batch_first": True} | lstm)
        width = LSTMSpec.from_module(self.lstm).shapes(1, 1).output[-1]
        self.readout = nn.Linear(width, C)
        self.wide = nn.Linear(width, T)
        self.embedding = nn.Embedding(12, I)
        self.function = forward
        self.carried = None

    def forward(self, *batch):
        return self.function(self, *batch)


def states(*shape):
    return torch.zeros(*shape), torch.zeros(*shape)


def packed_output(m, x, lengths, **unpack):
    packed, _ = m.lstm(pack_padded_sequence(x, lengths, m.lstm.batch_first, enforce_sorted=False))
    return pad_packed_sequence(packed, m.lstm.batch_first, **unpack)[0]


def carry(m, x):
    output, m.carried = m.lstm(x, m.carried)
    return m.readout(output[:, -1])


def used_before():
    model = Net(carry)
    model(x())
    return model


def mask_before(m, x, lengths):
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    return m.readout(m.lstm(x * mask.unsqueeze(-1))[1][0][-1])


def broken_gradient(m, x):
    return m.readout(m.lstm(x)[0].sub(0).sum(1).mul(0).sqrt())


def forget(lstm, *names, value=1.0):
    with torch.no_grad():
        for name in names:
            getattr(lstm, name)[lstm.hidden_size : 2 * lstm.hidden_size] = value
    return lstm


def last(m, x):
    return m.readout(m.lstm(x)[0][:, -1])


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sequential = nn.Sequential(nn.LSTM(I, H, proj_size=5))
        return torch.ao.quantization.quantize_dynamic(sequential, {nn.LSTM}, dtype=torch.qint8)


def one_layer_with_dropout():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.LSTM(I, H, dropout=0.5)


SQUARE = x(N, N, I)
PACKED_EQUAL = PackedSequence(x(T * N, I + 1), torch.full((T,), N))
UNSORTED = pack_padded_sequence(x(T, N, I), LENGTHS, enforce_sorted=False)

# (pitfall, how it is planted): model, batch, and what else diagnose is told
PLANTED = {
    ("P01", "states batch first"): lambda: (nn.LSTM(I, H, batch_first=True), (x(), states(N, 1, H))),
    ("P01", "unbatched, states batched"): lambda: (nn.LSTM(I, H), (x(T, I), states(1, 1, H))),
    ("P01", "packed"): lambda: (nn.LSTM(I, H), (UNSORTED, states(N, 1, H))),
    ("P02", "bare"): lambda: (nn.LSTM(I, H), x(), {"batch_dim": 0}),
    ("P02", "by the lengths"): lambda: (nn.LSTM(I, H, 2), x(), {"lengths": [T] * N}),
    ("P02", "inside"): lambda: (Net(last, batch_first=False), x(), {"batch_dim": 0}),
    ("P02", "as many samples as steps"): lambda: (Net(last, batch_first=False), SQUARE, {"batch_dim": 0}),
    ("P02", "time first, batch_first=True"): lambda: (nn.LSTM(I, H, batch_first=True), x(T, N, I), {"batch_dim": 1}),
    ("P03", "output[:, -1]"): lambda: (Net(last, bidirectional=True), x(), {"batch_dim": 0}),
    ("P03", "not told the batch"): lambda: (Net(last, bidirectional=True), x()),
    ("P03", "output[:, 0]"): lambda: (Net(lambda m, x: m.readout(m.lstm(x)[0][:, 0]), bidirectional=True), x()),
    ("P03", "last valid step, packed"): lambda: (
        Net(lambda m, x, n: m.readout(packed_output(m, x, n)[range(N), n - 1]), bidirectional=True),
        (x(), LENGTHS),
        {"lengths": LENGTHS},
    ),
    ("P04", "unpacked"): lambda: (Net(last), x(), {"lengths": LENGTHS}),
    ("P04", "packed"): lambda: (
        Net(lambda m, x, n: m.readout(packed_output(m, x, n)[:, -1])),
        (x(), LENGTHS),
        {"lengths": LENGTHS},
    ),
    ("P04", "mean without a mask"): lambda: (
        Net(lambda m, x: m.readout(m.lstm(x)[0].mean(1))),
        x(),
        {"lengths": LENGTHS},
    ),
    ("P04", "from tokens, wide result"): lambda: (
        Net(lambda m, x: m.wide(m.lstm(m.embedding(x))[0][:, -1])),
        torch.arange(N * T).view(N, T) % 12,
        {"lengths": LENGTHS},
    ),
    ("P05", "unsorted"): lambda: (
        Net(lambda m, x, n: m.lstm(pack_padded_sequence(x, n, batch_first=True))[1][0][-1]),
        (x(), LENGTHS),
    ),
    ("P07", "carried"): lambda: (Net(carry), x(), {"batch_dim": 0}),
    ("P07", "carried from before"): lambda: (used_before(), x(), {"batch_dim": 0}),
    ("P07", "in the batch"): lambda: (nn.LSTM(I, H), (x(T, N, I), nn.LSTM(I, H)(x(T, N, I))[1])),
    ("P08", "another batch size"): lambda: (nn.LSTM(I, H), (x(T, N, I), states(1, N + 1, H))),
    ("P08", "one direction"): lambda: (nn.LSTM(I, H, bidirectional=True), (x(T, N, I), states(1, N, H))),
    ("P08", "packed, accepted by torch"): lambda: (nn.LSTM(I, H), (UNSORTED, states(1, N + 1, H))),
    ("P09", "h_n reshaped"): lambda: (
        Net(lambda m, x: m.readout(m.lstm(x)[1][0][-2:].reshape(N, -1)), bidirectional=True),
        x(),
        {"batch_dim": 0},
    ),
    ("P09", "input viewed"): lambda: (
        Net(lambda m, x: m.readout(m.lstm(x.view(T, N, I))[1][0][-1]), batch_first=False),
        x(),
        {"batch_dim": 0},
    ),
    ("P10", "lengths do not fit"): lambda: (
        Net(lambda m, x, n: m.lstm(pack_padded_sequence(x, n))[1][0][-1]),
        (x(), torch.tensor([7, 5, 3, 2])),
    ),
    ("P10", "a length above N"): lambda: (
        Net(lambda m, x, n: m.lstm(pack_padded_sequence(x, n, enforce_sorted=False))[1][0][-1]),
        (x(), LENGTHS),
        {"lengths": LENGTHS},
    ),
    ("P10", "no length above N"): lambda: (
        Net(lambda m, x, n: m.lstm(pack_padded_sequence(x, n, enforce_sorted=False))[1][0][-1]),
        (x(), LENGTHS.clamp(max=4)),
        {"lengths": LENGTHS.clamp(max=4)},
    ),
    ("P10", "lengths fit by accident"): lambda: (
        Net(lambda m, x, n: m.readout(m.lstm(pack_padded_sequence(x, n, enforce_sorted=False))[1][0][-1])),
        (SQUARE, torch.tensor([4, 3, 2, 4])),
        {"batch_dim": 0},
    ),
    ("P11", "time first"): lambda: (
        Net(lambda m, x, n: m.readout(packed_output(m, x, n, total_length=T).transpose(0, 1))),
        (x(), LENGTHS),
        {"lengths": LENGTHS},
    ),
    ("P11", "shrunk"): lambda: (
        Net(lambda m, x, n: m.readout(packed_output(m, x, n))),
        (x(), LENGTHS - 1),
        {"lengths": LENGTHS - 1},
    ),
    ("P12", "told"): lambda: (Net(last), x(), {"lengths": LENGTHS + 2}),
    ("P12", "packed"): lambda: (Net(lambda m, x, n: m.readout(packed_output(m, x, n)[:, -1])), (x(), LENGTHS + 2)),
    ("P13", "told"): lambda: (Net(last), x(), {"lengths": LENGTHS - 2}),
    ("P13", "packed"): lambda: (Net(lambda m, x, n: m.readout(packed_output(m, x, n)[:, -1])), (x(), LENGTHS - 2)),
    ("P14", "another T"): lambda: (
        Net(lambda m, x: m.readout(m.lstm(x)[0])),
        x(),
        {"loss": nn.CrossEntropyLoss(), "target": torch.ones(N, T, dtype=torch.int64)},
    ),
    ("P14", "as many steps as classes"): lambda: (
        Net(lambda m, x: m.wide(m.lstm(x)[0])),
        x(),
        {"loss": nn.functional.cross_entropy, "target": torch.ones(N, T, dtype=torch.int64)},
    ),
    ("P14", "everything ignored"): lambda: (
        Net(lambda m, x: m.readout(m.lstm(x)[0]).transpose(1, 2)),
        x(),
        {"loss": nn.CrossEntropyLoss(), "target": torch.full((N, T), -100)},
    ),
    ("P15", "Sequential"): lambda: (nn.Sequential(nn.LSTM(I, H), nn.Linear(H, C)), x(T, N, I)),
    ("P17", "both"): lambda: (forget(nn.LSTM(I, H), "bias_ih_l0", "bias_hh_l0"), x(T, N, I)),
    ("P17", "one layer"): lambda: (forget(nn.LSTM(I, H, 2), "bias_ih_l0"), x(T, N, I)),
    ("P18", "one layer"): lambda: (one_layer_with_dropout(), x(T, N, I)),
    ("P19", "bare"): lambda: (nn.LSTM(I, H), x(N, I), {"batch_dim": 0}),
    ("P19", "inside"): lambda: (Net(lambda m, x: m.readout(m.lstm(x)[0])), x(N, I), {"batch_dim": 0}),
    ("P20", "h_0 alone"): lambda: (nn.LSTM(I, H), (x(T, N, I), torch.zeros(1, N, H))),
    ("P20", "h_0 alone, two layers"): lambda: (nn.LSTM(I, H, 2), (x(T, N, I), torch.zeros(2, N, H))),
    ("P21", "both narrow"): lambda: (nn.LSTM(I, H, proj_size=5), (x(T, N, I), states(1, N, 5))),
    ("P21", "both wide"): lambda: (nn.LSTM(I, H, proj_size=5), (x(T, N, I), states(1, N, H))),
    ("P21", "packed"): lambda: (nn.LSTM(I, H, proj_size=5), (UNSORTED, states(1, N, H))),
    ("P23", "broken gradient"): lambda: (Net(broken_gradient), x(), {"batch_dim": 0}),
    ("P26", "in front of a readout"): lambda: (
        Net(lambda m, x: m.readout(checkpoint(lambda x: m.lstm(x)[0][:, -1], x, use_reentrant=True))),
        x(),
        {"batch_dim": 0},
    ),
    ("P26", "alone"): lambda: (
        Net(lambda m, x: checkpoint(lambda x: m.lstm(x)[0][:, -1], x, use_reentrant=True)),
        x(),
        {"batch_dim": 0},
    ),
    ("P29", "float64"): lambda: (nn.LSTM(I, H), x(T, N, I).double()),
    ("P29", "token ids"): lambda: (nn.LSTM(I, H), torch.ones(T, N, I, dtype=torch.int64)),
    ("P29", "packed float64"): lambda: (nn.LSTM(I, H), PackedSequence(UNSORTED.data.double(), *UNSORTED[1:])),
    ("P30", "width"): lambda: (nn.LSTM(I, H), x(T, N, I + 1)),
    ("P30", "four dimensions"): lambda: (nn.LSTM(I, H), x(T, N, 2, I)),
    ("P30", "packed, unchecked by torch"): lambda: (nn.LSTM(I, H), PACKED_EQUAL),
    ("P31", "quantized projection"): lambda: (quantized(), x(T, N, I)),
    ("P32", "h_n"): lambda: (Net(lambda m, x: m.readout(m.lstm(x)[1][0][-1])), x(), {"lengths": LENGTHS}),
    ("P32", "zeroed by a mask"): lambda: (Net(mask_before), (x(), LENGTHS), {"lengths": LENGTHS}),
    ("P32", "bare"): lambda: (nn.LSTM(I, H), x(T, N, I), {"lengths": LENGTHS}),
    ("P32", "reverse direction of valid steps"): lambda: (
        Net(lambda m, x: m.readout(m.lstm(x)[0]), bidirectional=True),
        x(),
        {"lengths": LENGTHS},
    ),
}


def planted(key):
    model, batch, *told = PLANTED[key]()
    return diagnose(model, batch, **(told[0] if told else {}))


@pytest.mark.parametrize("key", PLANTED, ids=" ".join)
def test_a_planted_pitfall_is_found(key):
    diagnosis = planted(key)
    assert diagnosis.ids == (key[0],), str(diagnosis)
