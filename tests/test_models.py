"""The classifier: padding without influence, pooling against a loop, sizes, and what it refuses."""

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lstm_utils.diagnose import diagnose
from lstm_utils.initialization import forget_biases
from lstm_utils.models import SequenceClassifier, pool
from lstm_utils.onnx_export import export_onnx
from lstm_utils.spec import LSTMSpec

some = settings(max_examples=40, deadline=None, derandomize=True)
POOLINGS = ["last", "mean", "max"]


def words(lengths, num_symbols=9, seed=0):
    """Symbols 1 to num_symbols - 1, padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(1, num_symbols, (len(lengths), max(lengths)), generator=generator)
    steps = torch.tensor(lengths)
    return symbols * (torch.arange(max(lengths)) < steps[:, None]), steps


def build(pooling="max", **how):
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_size": 6} | how
    return SequenceClassifier(9, 3, pooling=pooling, **sizes).double().eval()


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.sampled_from(POOLINGS),
    st.booleans(),
    st.integers(1, 2),
    st.sampled_from([0, 5]),
)
@some
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_a_word_has_the_same_scores_alone_and_in_any_batch(lengths, pooling, bidirectional, num_layers, proj_size):
    model = build(pooling, bidirectional=bidirectional, num_layers=num_layers, proj_size=proj_size)
    symbols, steps = words(lengths)
    with torch.no_grad():
        scores = model(symbols, steps)
        for row, length in enumerate(lengths):
            alone = model(symbols[row : row + 1, :length], steps[row : row + 1])
            torch.testing.assert_close(scores[row : row + 1], alone)
        other = torch.where(symbols == 0, 7, symbols)
        torch.testing.assert_close(model(other, steps), scores)
        wider = nn.functional.pad(symbols, (0, 3), value=5)
        torch.testing.assert_close(model(wider, steps), scores)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans())
@some
def test_pooling_is_what_a_loop_over_the_rows_gives(lengths, bidirectional):
    generator = torch.Generator().manual_seed(1)
    output = torch.randn(len(lengths), max(lengths) + 1, 8, generator=generator) - 5  # negative, so that no 0 wins
    for how in POOLINGS:
        found = pool(output, torch.tensor(lengths), how, bidirectional=bidirectional)
        rows = []
        for row, length in zip(output, lengths, strict=True):
            real = row[:length]
            last = torch.cat([real[-1, :4], real[0, 4:]]) if bidirectional else real[-1]
            rows.append({"last": last, "mean": real.mean(0), "max": real.amax(0)}[how])
        torch.testing.assert_close(found, torch.stack(rows))


@pytest.mark.parametrize("how", POOLINGS)
def test_no_gradient_and_no_nan_comes_out_of_the_padding(how):
    output = torch.randn(2, 4, 6, requires_grad=True)
    spoiled = torch.where(torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]])[..., None] == 1, torch.nan, output)
    pooled = pool(spoiled, torch.tensor([4, 2]), how, bidirectional=True)
    (gradient,) = torch.autograd.grad(pooled.sum(), output)
    assert pooled.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient[1, 2:].eq(0).all()
    assert gradient[1, :2].ne(0).any()


def test_the_sizes_are_those_that_were_asked_for():
    model = build(hidden_size=10, num_layers=2, proj_size=6, embedding_size=5, dropout=0.3)
    assert LSTMSpec.from_module(model.lstm) == LSTMSpec(5, 10, 2, True, True, 0.3, True, 6)
    assert (model.embedding.num_embeddings, model.readout.in_features, model.readout.out_features) == (9, 12, 3)
    assert model.embedding.weight[0].eq(0).all()
    assert all(bias.eq(1).all() for bias in forget_biases(model.lstm).values())


def test_the_steps_are_the_output_of_the_lstm_with_zeros_behind():
    model = build(bidirectional=False)
    symbols, steps = words([3, 5])
    output = model.steps(symbols, steps)
    assert output.shape == (2, 5, 6)
    assert output[0, 3:].eq(0).all()
    torch.testing.assert_close(output[1:], model.lstm(model.embedding(symbols[1:]))[0])


@pytest.mark.filterwarnings("error")
def test_dropout_acts_in_training_alone_and_warns_of_nothing():
    model = build(dropout=0.5)
    symbols, steps = words([4, 4, 2])
    assert torch.equal(model(symbols, steps), model(symbols, steps))
    model.train()
    assert not torch.equal(model(symbols, steps), model(symbols, steps))
    assert model.lstm.dropout == 0
    assert build(dropout=0.5, num_layers=2).lstm.dropout == 0.5


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_diagnosis_finds_nothing(pooling):
    model = build(pooling).float()
    symbols, steps = words([5, 3, 2, 4, 5, 1])
    found = diagnose(model, (symbols, steps), lengths=steps)
    assert not found.findings, str(found)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("how", [{}, {"num_layers": 2}, {"bidirectional": False}], ids=["one", "two layers", "one way"])
def test_an_exported_model_takes_any_batch_and_any_lengths(pooling, how, tmp_path):
    model = build(pooling, **how).float()
    report = export_onnx(
        model, words([5, 3, 2]), tmp_path / "a.onnx", dynamic=[("N", "T"), "lengths"], output_names=["scores"]
    )
    assert dict(report.inputs) == {"symbols": ("N", "T"), "lengths": ("N",)}
    session = onnxruntime.InferenceSession(report.path)
    for lengths in ([4], [1, 7, 7, 2], [3, 3]):
        symbols, steps = words(lengths, seed=1)
        (found,) = session.run(None, {"symbols": symbols.numpy(), "lengths": steps.numpy()})
        torch.testing.assert_close(torch.tensor(found), model(symbols, steps))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="pooling must be one of 'last', 'mean', 'max', got 'sum'"):
        build("sum")
    with pytest.raises(ValueError, match="pooling must be one of"):
        pool(torch.zeros(1, 1, 2), torch.tensor([1]), "first", bidirectional=False)
    with pytest.raises(ValueError, match="hidden_size must be at least 1"):
        build(hidden_size=0)
    with pytest.raises(ValueError, match="at most T = 3"):
        build()(torch.ones(1, 3, dtype=torch.long), torch.tensor([4]))
