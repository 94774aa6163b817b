"""One mask for all steps, or for all of a pass: means kept, evaluation untouched, every layout, weights that load."""

import copy
import io
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import build, specs
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_utils.regularization import LockedDropout, WeightDrop
from lstm_utils.sequences import run_packed

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_locked_mask_holds_for_all_steps_and_differs_between_sequences(batch_first):
    x = torch.ones((8, 20, 64) if batch_first else (20, 8, 64))
    y = LockedDropout(0.25, batch_first=batch_first)(x)
    by_step = y.transpose(0, 1) if batch_first else y  # (T, N, F)
    assert torch.equal(by_step, by_step[:1].expand_as(by_step))
    assert not torch.equal(by_step[0, 0], by_step[0, 1])
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])


def test_one_sequence_alone_has_one_mask():
    y = LockedDropout(0.5, batch_first=True)(torch.ones(20, 64))
    assert torch.equal(y, y[:1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 2.0}


def test_packed_sequences_have_one_mask_each():
    lengths = torch.tensor([3, 7, 1])
    packed = pack_padded_sequence(torch.ones(3, 7, 64), lengths, batch_first=True, enforce_sorted=False)
    dropped = LockedDropout(0.25)(packed)
    y, found = pad_packed_sequence(dropped, batch_first=True)  # (N, T, F)
    assert torch.equal(found, lengths)
    assert dropped.data.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    for row, n in enumerate(lengths):
        assert torch.equal(y[row, :n], y[row, :1].expand(n, -1))
    assert not torch.equal(y[0, 0], y[1, 0])
    nn.LSTM(64, 3, batch_first=True)(dropped)


def test_a_locked_mask_keeps_the_mean_and_its_features_get_no_gradient():
    x = torch.ones(4000, 2, 8, requires_grad=True)
    y = LockedDropout(0.3, batch_first=True)(x)
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_no_features_are_dropped_in_evaluation_or_at_zero(p, training):
    x = torch.randn(5, 4, 3)
    module = LockedDropout(p).train(training)
    assert module(x) is x


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4, 5)])
def test_other_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(T, N, F\), \(T, F\) or a PackedSequence, got a tensor of shape"):
        LockedDropout()(torch.ones(shape))
    with pytest.raises(ValueError, match=r"expected \(N, T, F\)"):
        LockedDropout(batch_first=True)(torch.ones(shape))


@pytest.mark.parametrize("x", [torch.ones(3, 2, 4).long(), pack_padded_sequence(torch.ones(3, 2, 4).long(), [3, 1])])
def test_integers_are_refused_with_what_to_do(x):
    with pytest.raises(TypeError, match=r"^x must hold floats, .* got torch\.int64; drop after the embedding$"):
        LockedDropout()(x)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(p):
    for make in (LockedDropout, lambda p: WeightDrop(nn.LSTM(2, 3), p)):
        with pytest.raises(ValueError, match=f"p must lie between 0 and 1, got {p}"):
            make(p)


def test_something_else_than_an_lstm_is_refused():
    with pytest.raises(TypeError, match=r"must be an nn\.LSTM, got GRU"):
        WeightDrop(nn.GRU(2, 3))


@given(specs(), st.integers(0, 99))
def test_dropped_weights_are_those_of_an_lstm_that_has_them(spec, seed):
    lstm = build(spec, nn.LSTM, dtype=torch.float64)
    lstm.dropout = 0.0  # between layers it would draw from the same generator
    x = torch.randn(4, 3, spec.input_size, dtype=torch.float64)
    other = copy.deepcopy(lstm)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if name.startswith("weight_hh"):
                weight.copy_(nn.functional.dropout(weight, 0.4))
    torch.manual_seed(seed)
    output, (h_n, c_n) = WeightDrop(lstm, 0.4)(x)
    expected, (h, c) = other(x)
    for one, two in ((output, expected), (h_n, h), (c_n, c)):
        assert torch.allclose(one, two)


def test_two_passes_differ_in_training_and_are_the_lstm_itself_in_evaluation():
    lstm, x = nn.LSTM(3, 5, num_layers=2), torch.randn(6, 2, 3)
    wrapper = WeightDrop(lstm, 0.5)
    assert not torch.equal(wrapper(x)[0], wrapper(x)[0])
    hx = (torch.randn(2, 2, 5), torch.randn(2, 2, 5))
    wrapper.eval()
    assert torch.equal(wrapper(x, hx)[0], lstm(x, hx)[0])
    unchanged = WeightDrop(lstm, 0.0).train()
    assert torch.equal(unchanged(x)[0], lstm(x)[0])


def test_the_mean_of_the_dropped_weights_is_the_weight():
    wrapper, seen = WeightDrop(nn.LSTM(2, 3), 0.5), []
    before = wrapper.lstm.weight_hh_l0.detach().clone()
    wrapper.lstm.register_forward_pre_hook(lambda module, _: seen.append(module.weight_hh_l0.detach().clone()))
    for _ in range(2000):
        wrapper(torch.zeros(1, 1, 2))
    mean = torch.stack(seen).mean(0)
    assert torch.allclose(mean, before, atol=0.06)
    assert torch.equal(wrapper.lstm.weight_hh_l0, before)


def test_packed_sequences_run_through():
    wrapper, x = WeightDrop(nn.LSTM(3, 4, batch_first=True), 0.5), torch.randn(3, 6, 3)
    output, (h_n, _) = run_packed(wrapper, x, [6, 2, 4])
    assert output.shape == (3, 6, 4)
    assert torch.equal(output[1, 1], h_n[0, 1])


def test_weights_train_load_copy_and_pickle():
    wrapper, x = WeightDrop(nn.LSTM(3, 4), 0.5), torch.randn(6, 2, 3)
    plain = nn.LSTM(3, 4)
    before = {name: weight.detach().clone() for name, weight in wrapper.named_parameters()}
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapper(x)[0].square().sum().backward()
    optimizer.step()
    dropped = wrapper.lstm.weight_hh_l0.grad == 0
    assert 0 < dropped.sum() < dropped.numel()
    assert all(not torch.equal(weight, before[name]) for name, weight in wrapper.named_parameters())
    plain.load_state_dict(wrapper.lstm.state_dict())
    another = WeightDrop(nn.LSTM(3, 4), 0.5)
    another.load_state_dict(wrapper.state_dict())
    file = io.BytesIO()
    torch.save(wrapper, file)
    file.seek(0)
    for same in (plain, another, copy.deepcopy(wrapper), torch.load(file, weights_only=False)):
        assert torch.equal(same.eval()(x)[0], wrapper.eval()(x)[0])


def test_half_is_dropped_by_default():
    assert LockedDropout().p == WeightDrop(nn.LSTM(2, 3)).p == 0.5


def test_both_say_what_they_are():
    assert repr(LockedDropout(0.3)) == "LockedDropout(p=0.3, batch_first=False)"
    assert "p=0.4" in repr(WeightDrop(nn.LSTM(2, 3), 0.4))
