"""A folded projection against the LSTM that has it, in float64: results, states, packing, and what it costs."""

import pytest
import torch
from hypothesis import given, settings
from strategies import build, calls, specs
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from lstm_utils.projection import FoldedProjection
from lstm_utils.spec import LSTMSpec

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
some = settings(max_examples=30, deadline=None, derandomize=True)
projected = specs(dropout=0.0).filter(lambda spec: spec.proj_size > 0)


@given(calls(projected))
@some
def test_results_are_those_of_the_projected_lstm(call):
    lstm = build(call.spec, dtype=torch.float64)
    x, hx = call.tensors()
    (output, states), (folded, folded_states) = (module(call.pack(x), hx) for module in (lstm, FoldedProjection(lstm)))
    assert isinstance(folded, PackedSequence) == isinstance(output, PackedSequence)
    for one, other in zip(output, folded, strict=True) if isinstance(output, PackedSequence) else [(output, folded)]:
        torch.testing.assert_close(other, one)
    torch.testing.assert_close(folded_states, states)


def test_a_state_that_came_out_goes_in_again():
    lstm = nn.LSTM(3, 8, 2, proj_size=2, dtype=torch.float64)
    folded, x = FoldedProjection(lstm), torch.randn(7, 2, 3, dtype=torch.float64)
    _, states = folded(x[:3])
    torch.testing.assert_close(folded(x[3:], states)[0], lstm(x)[0][3:])


def test_arguments_mode_and_type_are_those_of_the_lstm():
    lstm = nn.LSTM(3, 8, 2, proj_size=2, bidirectional=True, batch_first=True, bias=False).half().eval()
    folded = FoldedProjection(lstm.float())
    assert LSTMSpec.from_module(folded) == LSTMSpec.from_module(lstm)
    assert not folded.training
    assert {tensor.dtype for tensor in folded.state_dict().values()} == {torch.float32}
    assert FoldedProjection(lstm.train().double()).training


def test_weights_are_copies_of_the_plain_size():
    lstm = nn.LSTM(3, 8, proj_size=2)
    folded = FoldedProjection(lstm)
    shapes = LSTMSpec(3, 8).parameter_shapes()
    assert {name: tuple(p.shape) for name, p in folded.lstm.named_parameters()} == shapes
    assert folded.lstm.weight_ih_l0.data_ptr() != lstm.weight_ih_l0.data_ptr()


def test_in_half_precision_the_way_up_is_half_too():
    folded = FoldedProjection(nn.LSTM(3, 8, proj_size=2).half())
    assert {tensor.dtype for tensor in folded.state_dict().values()} == {torch.float16}
    torch.testing.assert_close(folded.down[0].T @ folded.up[0].T, torch.eye(2).half(), atol=0.01, rtol=0)


def test_the_device_is_that_of_the_lstm():
    lstm, x = nn.LSTM(3, 8, 2, proj_size=2, dtype=torch.float64), torch.randn(7, 2, 3, dtype=torch.float64)
    with torch.device("meta"):
        folded = FoldedProjection(lstm)
    torch.testing.assert_close(folded(x), lstm(x))


def test_a_state_of_more_layers_is_refused():
    folded, states = FoldedProjection(nn.LSTM(3, 8, 2, proj_size=2)), (torch.zeros(3, 1, 2), torch.zeros(2, 1, 8))
    with pytest.raises(ValueError, match="shorter"):
        folded(torch.zeros(4, 1, 3), states)


def test_without_a_projection_there_is_nothing_to_fold():
    with pytest.raises(ValueError, match=r"LSTM\(2, 3\) has no projection to fold"):
        FoldedProjection(nn.LSTM(2, 3))
