"""Models with nothing wrong, in every size: what diagnose must not complain about. Not a test module itself."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from strategies import build
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.checkpoint import checkpoint

from lstm_utils import LSTMSpec, ReferenceLSTM
from lstm_utils.sequences import last_valid_step, masked_mean, run_packed, valid_mask

FORMS = {"tensor": torch.tensor, "list": list, "array": np.array, "int32": lambda n: torch.tensor(n, dtype=torch.int32)}

# What may stay unchecked, and when.
SINGLE = "whether samples mix, since the batch holds a single one"
NOTHING = "whether samples mix, since nothing in the result moved when one was changed"
UNTOLD = "samples and padding: pass batch_dim=0 or 1, the dimension that counts the samples"
HIDDEN = "which steps are read, since lstm ran where gradients are off"


@dataclass(frozen=True)
class World:
    """The sizes of a model and its batch, and what both are made of."""

    spec: LSTMSpec
    kind: type  # nn.LSTM or ReferenceLSTM
    lengths: tuple[int, ...]
    extra: int  # steps of padding behind the longest
    classes: int
    dtype: torch.dtype
    form: str  # in which lengths are told
    flag: bool  # chooses between two variants
    seed: int

    @property
    def size(self):
        return len(self.lengths)

    @property
    def total(self):
        return max(self.lengths) + self.extra

    @property
    def width(self):
        return self.spec.shapes(1).output[-1]

    @property
    def steps(self):
        return torch.tensor(self.lengths)

    @property
    def told(self):
        return {"batch_dim": 0 if self.spec.batch_first else 1}

    @property
    def told_lengths(self):
        return self.told | {"lengths": FORMS[self.form](self.lengths)}

    def turn(self, x):
        """From (N, T, …) to the layout of the LSTM, or back."""
        return x if self.spec.batch_first else x.transpose(0, 1)

    def normal(self, *shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=self.dtype)

    def x(self):
        """A padded batch in the layout of the LSTM, with noise in the padding."""
        return self.turn(self.normal(self.size, self.total, self.spec.input_size))

    def ids(self):
        """The same as token ids from 0 to 5, 0 in the padding; no two samples are alike."""
        ids = torch.randint(1, 6, (self.size, self.total), generator=torch.Generator().manual_seed(self.seed))
        ids[:, 0] = 1 + torch.arange(self.size)
        return self.turn(ids * self.mask())

    def mask(self):
        """(N, T)."""
        return valid_mask(self.steps, self.total, batch_first=True)

    def pack(self, x):
        return pack_padded_sequence(x, self.steps, self.spec.batch_first, enforce_sorted=False)

    def states(self):
        return tuple(self.normal(*shape) for shape in self.spec.shapes(1, self.size)[2:])

    def finals(self, h_n):
        return torch.cat([h_n[-2], h_n[-1]], dim=1) if self.spec.bidirectional else h_n[-1]

    def lstm(self, **changes):
        return build(LSTMSpec(**self.spec.as_dict() | changes), self.kind).to(self.dtype)

    def net(self, forward, **modules):
        modules = {"lstm": self.lstm(), "readout": nn.Linear(self.width, self.classes)} | modules
        return Net(forward, **modules).to(self.dtype)

    def plain(self, forward, **modules):
        """The cases have three forms: a model called with x alone …"""
        return self.net(forward, **modules), self.x(), self.told

    def padded(self, forward, **modules):
        """… with x alone, and diagnose is told the lengths …"""
        return self.net(forward, **modules), self.x(), self.told_lengths

    def packing(self, forward, **modules):
        """… or with x and the lengths."""
        return self.net(forward, **modules), (self.x(), self.steps), self.told_lengths

    def embedding(self):
        return nn.Embedding(6, self.spec.input_size, padding_idx=0)


class Net(nn.Module):
    """Modules by name, and a function of them and the batch."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function, self.carried = forward, None
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *batch, **named):
        return self.function(self, *batch, **named)


@st.composite
def worlds(draw, *needs):
    flags = {name: st.booleans() for name in ("bias", "batch_first", "bidirectional")}
    drawn = draw(st.fixed_dictionaries({"num_layers": st.integers(1, 3)} | flags))
    drawn |= {"bidirectional": False} if "one way" in needs else {"bidirectional": True} if "two ways" in needs else {}
    hidden, deep = draw(st.integers(1, 5)), drawn["num_layers"] > 1
    drawn |= {"proj_size": draw(st.integers(0, hidden - 1)), "dropout": draw(st.sampled_from([0.0, 0.5])) * deep}
    lengths = tuple(draw(st.lists(st.integers(1, 5), min_size=2 if "two samples" in needs else 1, max_size=5)))
    extra = draw(st.integers(0, 2))
    return World(
        LSTMSpec(draw(st.integers(1, 5)), hidden, **drawn),
        draw(st.sampled_from([nn.LSTM, nn.LSTM, ReferenceLSTM])),
        lengths,
        extra,
        draw(st.sampled_from([1, 2, 3, len(lengths), max(lengths), max(lengths) + extra])),
        # In float32 what a sample does may drown in rounding, after many narrow layers.
        torch.float64 if deep or "precise" in needs else draw(st.sampled_from([torch.float32, torch.float64])),
        draw(st.sampled_from(sorted(FORMS))),
        draw(st.booleans()),
        draw(st.integers(0, 99)),
    )


# name: what its world needs, and a function of it: a model, a batch, what diagnose is told, and what it cannot check
HEALTHY = {}


def healthy(*needs):
    def add(function):
        HEALTHY[function.__name__] = needs, function
        return function

    return add


# Bare LSTMs --------------------------------------------------------------------------------------------------------


@healthy()
def bare(w):
    return w.lstm(), w.x(), w.told


@healthy()
def not_told(w):
    return w.lstm(), w.x(), {}, {UNTOLD}


@healthy()
def packed(w):
    lengths = torch.tensor(sorted(w.lengths, reverse=True)) if w.flag else w.steps
    return w.lstm(), pack_padded_sequence(w.x(), lengths, w.spec.batch_first, enforce_sorted=w.flag), {}


@healthy()
def unbatched(w):
    states = tuple(state[:, 0] for state in w.states())
    x = w.normal(w.total, w.spec.input_size)
    return w.lstm(), (x, states) if w.flag else x, {}, {UNTOLD}


@healthy()
def states(w):
    return w.lstm(), (w.pack(w.x()), w.states()) if w.flag else (w.x(), w.states()), {} if w.flag else w.told


@healthy()
def state_of_an_encoder(w):
    return w.lstm(), (w.x(), w.lstm()(w.x())[1]), w.told


@healthy()
def forget_bias(w):
    lstm, rows = w.lstm(), slice(w.spec.hidden_size, 2 * w.spec.hidden_size)
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            if "bias_ih" in name:
                parameter[rows] = 0.5 if w.flag else 1.0
            elif "bias_hh" in name:
                parameter[rows] = 0.5 if w.flag else 0.0
    return lstm, w.x(), w.told


# One result for each sample ------------------------------------------------------------------------------------------


@healthy()
def final_state(w):
    return w.packing(lambda m, x, n: m.readout(w.finals(run_packed(m.lstm, x, n)[1][0])))


@healthy()
def final_state_of_full_lengths(w):
    model, x, told = w.plain(lambda m, x: m.readout(w.finals(m.lstm(x)[1][0])))
    return model, x, told | {"loss": nn.CrossEntropyLoss(), "target": torch.arange(w.size) % w.classes}


@healthy()
def one_score(w):
    readout = nn.Linear(w.width, 1)
    return w.packing(lambda m, x, n: m.readout(w.finals(run_packed(m.lstm, x, n)[1][0])).squeeze(1), readout=readout)


@healthy()
def behind_a_relu(w):
    return *w.packing(lambda m, x, n: m.readout(w.finals(run_packed(m.lstm, x, n)[1][0])).relu()), {NOTHING}


@healthy("one way")
def last_step(w):
    flags = {"batch_first": w.spec.batch_first, "bidirectional": False}
    return w.padded(lambda m, x: m.readout(last_valid_step(m.lstm(x)[0], w.steps, **flags)))


@healthy()
def last_step_packed(w):
    flags = {"batch_first": w.spec.batch_first, "bidirectional": w.spec.bidirectional}
    return w.packing(lambda m, x, n: m.readout(last_valid_step(run_packed(m.lstm, x, n)[0], n, **flags)))


@healthy("one way")
def mean(w):
    return w.padded(lambda m, x: m.readout(masked_mean(w.turn(m.lstm(x)[0]), w.mask(), 1)))


@healthy()
def mean_packed(w):
    return w.packing(lambda m, x, n: m.readout(masked_mean(w.turn(run_packed(m.lstm, x, n)[0]), w.mask(), 1)))


@healthy()
def sum_packed(w):
    def forward(m, x, _):
        output, _ = pad_packed_sequence(m.lstm(w.pack(x))[0], w.spec.batch_first)
        return m.readout(w.turn(output).sum(1))  # zeros do no harm

    return w.packing(forward)


def maximum(w, m, output):
    pooled = w.turn(output).masked_fill(~w.mask()[..., None], -torch.inf).amax(1)
    return m.readout(pooled) if w.flag else pooled


@healthy("one way")
def maxima(w):
    return w.padded(lambda m, x: maximum(w, m, m.lstm(x)[0]))


@healthy()
def maxima_packed(w):
    return w.packing(lambda m, x, n: maximum(w, m, run_packed(m.lstm, x, n)[0]))


def attend(w, m, output):
    output = w.turn(output)
    weights = m.energy(output).masked_fill(~w.mask()[..., None], -torch.inf if w.flag else -1e9).softmax(1)
    return m.readout((weights * output).sum(1)), weights


@healthy("one way")
def attention(w):
    return w.padded(lambda m, x: attend(w, m, m.lstm(x)[0]), energy=nn.Linear(w.width, 1))


@healthy()
def attention_packed(w):
    return w.packing(lambda m, x, n: attend(w, m, run_packed(m.lstm, x, n)[0]), energy=nn.Linear(w.width, 1))


@healthy()
def batch_norm_and_dropout(w):
    norm = nn.Sequential(nn.BatchNorm1d(w.width), nn.Dropout(0.5))
    return w.packing(lambda m, x, n: m.readout(m.norm(w.finals(run_packed(m.lstm, x, n)[1][0]))), norm=norm)


@healthy("two samples")
def table_of_pairs(w):
    def forward(m, x, n):
        final = w.finals(run_packed(m.lstm, x, n)[1][0])
        return final @ final.T

    return w.packing(forward)


# One result for each step --------------------------------------------------------------------------------------------


@healthy("one way")
def tagger(w):
    return w.padded(lambda m, x: m.readout(m.lstm(input=x)[0]))


@healthy()
def tagger_packed(w):
    return w.packing(lambda m, x, n: m.readout(run_packed(m.lstm, x, n)[0]))


@healthy("one way")
def tagger_behind_a_relu(w):
    return *w.padded(lambda m, x: m.readout(m.lstm(x)[0]).relu()), {NOTHING}


@healthy("one way")
def tagger_with_one_score(w):
    return w.padded(lambda m, x: m.readout(m.lstm(x)[0]).squeeze(-1), readout=nn.Linear(w.width, 1))


@healthy("one way")
def tagger_for_cross_entropy(w):
    """(N, C, T)."""
    model, x, told = w.padded(lambda m, x: w.turn(m.readout(m.lstm(x)[0])).transpose(1, 2))
    target = torch.arange(w.size * w.total).view(w.size, w.total) % w.classes
    return model, x, told | {"loss": nn.CrossEntropyLoss(), "target": target}


@healthy()
def tagger_flattened(w):
    """(N·T, C), or (T·N, C)."""
    model, batch, told = w.packing(lambda m, x, n: m.readout(run_packed(m.lstm, x, n)[0]).flatten(0, 1))
    loss = nn.functional.cross_entropy if w.flag else nn.CrossEntropyLoss()
    return model, batch, told | {"loss": loss, "target": torch.arange(w.size * w.total) % w.classes}


@healthy("one way")
def tagger_flattened_unpacked(w):
    return w.padded(lambda m, x: m.readout(m.lstm(x)[0]).flatten(0, 1))


@healthy()
def tagger_for_ctc(w):
    """(T, N, C), as nn.CTCLoss expects it."""
    readout = nn.Linear(w.width, w.classes + 1)
    scores = lambda m, x, n: w.turn(m.readout(run_packed(m.lstm, x, n)[0])).transpose(0, 1)  # noqa: E731
    return w.packing(lambda m, x, n: scores(m, x, n).log_softmax(-1), readout=readout)


@healthy()
def self_attention(w):
    def forward(m, x, n):
        output = w.turn(run_packed(m.lstm, x, n)[0])
        weights = (output @ output.transpose(1, 2)).masked_fill(~w.mask()[:, None], -torch.inf).softmax(2)
        return {"scores": m.readout(weights @ output), "weights": weights}

    return w.packing(forward)


@healthy()
def list_with_an_entry_for_each_step(w):
    return w.plain(lambda m, x: [m.readout(step) for step in w.turn(m.lstm(x)[0]).unbind(1)])


@healthy()
def everything_returned(w):
    return w.packing(lambda m, x, n: (m.readout((states := run_packed(m.lstm, x, n))[0]), states))


@healthy()
def packed_result(w):
    return w.packing(lambda m, x, _: m.lstm(w.pack(x))[0])


# Other batches -------------------------------------------------------------------------------------------------------


@healthy()
def packed_batch(w):
    model = w.net(lambda m, packed: w.finals(m.lstm(packed)[1][0]))
    return model, w.pack(w.x()), {"lengths": w.steps} if w.flag else {}


@healthy()
def packed_ids(w):
    def forward(m, packed):
        return w.finals(m.lstm(PackedSequence(m.embedding(packed.data), *packed[1:]))[1][0])

    return w.net(forward, embedding=w.embedding()), w.pack(w.ids()), {}


@healthy()
def ids(w):
    def forward(m, ids):
        lengths = (w.turn(ids) != 0).sum(1)
        return m.readout(w.finals(run_packed(m.lstm, m.embedding(ids), lengths)[1][0]))

    return w.net(forward, embedding=w.embedding()), w.ids(), w.told_lengths


@healthy()
def mapping(w):
    def forward(m, *, input_ids, lengths):
        return {"logits": m.readout(run_packed(m.lstm, m.embedding(input_ids), lengths)[0])}

    return w.net(forward, embedding=w.embedding()), {"input_ids": w.ids(), "lengths": w.steps}, w.told_lengths


@healthy()
def nan_in_the_padding(w):
    model, (x, steps), told = tagger_packed(w)
    return model, (w.turn(w.turn(x).masked_fill(~w.mask()[..., None], torch.nan)), steps), told


@healthy()
def images(w):
    """(N, 1, 3, 2·T): a convolution makes the steps."""

    def forward(m, images, n):
        frames = m.conv(images).squeeze(2).transpose(1, 2)  # (N, T, I)
        return w.turn(m.readout(run_packed(m.lstm, w.turn(frames), n)[0]))

    model = w.net(forward, conv=nn.Conv2d(1, w.spec.input_size, (3, 2), stride=(1, 2)))
    return model, (w.normal(w.size, 1, 3, 2 * w.total), w.steps), w.told_lengths | {"batch_dim": 0}


@healthy()
def features_first(w):
    """(N, 2) beside the sequences: the first tensor with samples has no steps."""
    assume(max(w.lengths) > 2)  # shorter ones could be those of two steps
    model = w.net(lambda m, _, x, n: w.turn(m.readout(run_packed(m.lstm, x, n)[0])))
    told = w.told_lengths | {"batch_dim": 0}
    unclear = {NOTHING} if w.size > 1 else set()
    return model, (w.normal(w.size, 2), w.x(), w.steps), told, unclear


# Other ways to call --------------------------------------------------------------------------------------------------


@healthy()
def stateful(w):
    def forward(m, x):
        output, state = m.lstm(x, m.carried)
        m.carried = tuple(s.detach() for s in state)
        return m.readout(output)

    model, x, told = w.plain(forward)
    if w.flag:
        model(x)
    return model, x, told


@healthy()
def learned_state(w):
    def forward(m, x):
        hx = tuple(state.expand(-1, w.size, -1).contiguous() for state in (m.h_0, m.c_0))
        return m.readout(w.finals(m.lstm(x, hx)[1][0]))

    h_0, c_0 = (nn.Parameter(torch.randn(shape)) for shape in w.spec.shapes(1, 1)[2:])
    return w.plain(forward, h_0=h_0, c_0=c_0)


@healthy("precise")
def two_modules(w):
    second = w.lstm(input_size=w.width)
    if w.flag:
        return w.plain(lambda m, x: m.readout(m.second(m.lstm(x)[0])[0]), second=second)
    return w.packing(lambda m, x, _: m.readout(w.finals(m.second(m.lstm(w.pack(x))[0])[1][0])), second=second)


@healthy("two samples")
def encoder_and_decoder(w):
    def forward(m, x, n, y):
        return m.readout(m.decoder(y, run_packed(m.lstm, x, n)[1])[0])

    y = w.turn(w.normal(w.size, 3, w.spec.input_size))
    result = tuple(w.turn(torch.empty(w.size, 3, w.classes)).shape)
    unclear = {
        f"padding in the input of decoder, {(w.size, 3, w.spec.input_size)}",
        f"padding, in a result of shape {result}",
    }
    return w.net(forward, decoder=w.lstm()), (w.x(), w.steps, y), w.told_lengths, unclear


@healthy("precise")
def words_in_sentences(w):
    """(N, S, W, I), or ids (N, S, W); no padding."""

    def forward(m, x):
        words = (m.embedding(x) if w.flag else x).flatten(0, 1)  # (N·S, W, I)
        sentences = w.finals(m.lstm(w.turn(words))[1][0]).unflatten(0, (w.size, w.total))
        return m.readout(w.finals(m.second(w.turn(sentences))[1][0]))

    model = w.net(forward, second=w.lstm(input_size=w.width), embedding=w.embedding())
    x = w.normal(w.size, w.total, max(w.lengths), w.spec.input_size)
    if w.flag:
        x = x[..., 0].mul(9).long().remainder(6)
        x[:, 0, 0] = torch.arange(w.size)  # no two samples are alike
    return model, x, {"batch_dim": 0}


@healthy()
def reversed_by_hand(w):
    def forward(m, x, n):
        rows = [row[:length].flip(0) for row, length in zip(w.turn(x), n.tolist(), strict=True)]
        backward = w.turn(pad_sequence(rows, batch_first=True))
        both = run_packed(m.lstm, x, n), run_packed(m.second, backward, n)
        return m.readout(sum(w.finals(h_n) for _, (h_n, _) in both))

    return w.packing(forward, second=w.lstm())


@healthy()
def loop_over_samples(w):
    def forward(m, x, n):
        rows = [w.turn(x)[row, :length] for row, length in enumerate(n.tolist())]
        return m.readout(w.finals(torch.stack([m.lstm(row)[1][0] for row in rows], dim=1)))  # unbatched

    return w.packing(forward)


@healthy()
def loop_over_batches_of_one(w):
    def forward(m, ids, n):
        rows = [w.turn(ids)[row : row + 1, :length] for row, length in enumerate(n.tolist())]
        return m.readout(w.finals(torch.cat([m.lstm(w.turn(m.embedding(row)))[1][0] for row in rows], dim=1)))

    return w.net(forward, embedding=w.embedding()), (w.ids(), w.steps), w.told_lengths


@healthy("one way")
def loop_over_steps(w):
    def forward(m, x):
        state, scores = None, []
        for step in w.turn(x).split(1, dim=1):
            output, state = m.lstm(w.turn(step), state)
            scores.append(m.readout(w.turn(output).squeeze(1)))
        return scores if w.flag else torch.stack(scores, 1)

    return w.plain(forward)


@healthy()
def checkpointed(w):
    def forward(m, x):
        return m.readout(w.finals(checkpoint(lambda x: m.lstm(x)[1][0], x, use_reentrant=False)))

    return w.plain(forward)


@healthy()
def checkpointed_reentrant(w):
    """Sound where an input of the checkpoint asks for a gradient."""

    def forward(m, x):
        x = x if w.flag else m.embedding(x)
        return m.readout(w.finals(checkpoint(lambda x: m.lstm(x)[1][0], x, use_reentrant=True)))

    x = w.x().contiguous().requires_grad_() if w.flag else w.ids()
    return w.net(forward, embedding=w.embedding()), x, w.told, {HIDDEN}


@healthy()
def frozen(w):
    def forward(m, x):
        with torch.set_grad_enabled(w.flag):
            output, _ = m.lstm(x)
        return m.readout(output)

    model, x, told = w.plain(forward)
    model.lstm.requires_grad_(False)
    return model, x, told


@healthy()
def weight_norm(w):
    model, x, told = w.plain(lambda m, x: m.readout(w.finals(m.lstm(x)[1][0])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older one keeps a tensor that leads back into a graph
        (nn.utils.weight_norm if w.flag else nn.utils.parametrizations.weight_norm)(model.readout)
    return model, x, told


@healthy()
def keeps_what_it_saw(w):
    def forward(m, x):
        output, (h_n, _) = m.lstm(x)
        m.seen = [output, {"h_n": h_n}]
        return m.readout(w.finals(h_n))

    model, x, told = w.plain(forward)
    model(x)
    return model, x, told


@healthy()
def named_like_its_lstm(w):
    class LSTM(Net):
        pass

    modules = {"lstm": w.lstm(), "readout": nn.Linear(w.width, w.classes).to(w.dtype)}
    return LSTM(lambda m, x: m.readout(w.finals(m.lstm(x)[1][0])), **modules), w.x(), w.told
