"""Checkpointed runs against plain autograd in float64, what they keep, and what truncation cuts."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Call, build, calls, specs
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_utils.checkpointing import checkpointed_lstm, truncated_bptt
from lstm_utils.measure import saved_bytes

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
some = settings(max_examples=60, deadline=None, derandomize=True)


class Checkpointed(nn.Module):
    """A module whose forward is the checkpointed one, so that ``Call.run`` can take its gradients."""

    def __init__(self, lstm, **how):
        super().__init__()
        self.lstm, self.how = lstm, how

    def forward(self, x, hx=None):
        return checkpointed_lstm(self.lstm, x, hx, **self.how)


def assert_same_run(call: Call, lstm, **how):
    """Results and the gradients of everything, the packed order included."""
    plain, found = call.run(lstm), call.run(Checkpointed(lstm, **how))
    for (name, one), other in zip(plain.items(), found.values(), strict=True):
        assert type(one) is type(other), name
        for a, b in zip(*((t if isinstance(t, PackedSequence) else (t,)) for t in (one, other)), strict=True):
            assert (a is None) == (b is None), name
            if a is not None:
                torch.testing.assert_close(b, a, msg=lambda text, name=name: f"{name}: {text}")


def segments_of(call: Call):
    return st.none() | st.integers(1, max(call.lengths))


@given(st.data(), calls(specs(dropout=0.0, bidirectional=False)))
@some
def test_segments_in_time_change_no_result_and_no_gradient(data, call):
    assert_same_run(call, build(call.spec, dtype=torch.float64), segments=data.draw(segments_of(call)))


@given(st.data(), calls(specs(dropout=0.0), layouts=("unbatched", "batched")))
@some
def test_layer_by_layer_changes_none_either_in_two_directions(data, call):
    lstm = build(call.spec, dtype=torch.float64)
    assert_same_run(call, lstm, segments=data.draw(segments_of(call)), per_layer=True)


@given(st.data(), calls(specs(dropout=0.0, bidirectional=False)))
@some
def test_a_readout_in_the_segments_is_one_of_the_output(data, call):
    lstm = build(call.spec, dtype=torch.float64)
    readout = nn.Linear(call.spec.proj_size or call.spec.hidden_size, 3, dtype=torch.float64)
    how = {"segments": data.draw(segments_of(call)), "per_layer": not call.packed and data.draw(st.booleans())}

    def gradients(inside):
        x, hx = call.tensors()
        output, _ = checkpointed_lstm(lstm, call.pack(x), hx, **how, readout=readout if inside else None)
        output = output.data if isinstance(output, PackedSequence) else output
        output = output if inside else readout(output)
        return output, *torch.autograd.grad(output.square().sum(), [*lstm.parameters(), *readout.parameters(), x])

    torch.testing.assert_close(gradients(inside=True), gradients(inside=False))


def test_time_is_cut_where_the_rows_come_first():
    lstm, x = nn.LSTM(2, 3, batch_first=True), torch.randn(2, 5, 2)
    torch.testing.assert_close(checkpointed_lstm(lstm, x, segments=5), lstm(x))


def test_about_root_t_segments_are_the_default():
    lstm, seen = nn.LSTM(2, 3), []
    lstm.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    checkpointed_lstm(lstm, torch.randn(50, 1, 2))
    assert seen == [8, *[7] * 6]
    seen.clear()
    checkpointed_lstm(lstm, torch.randn(2, 1, 2))
    assert seen == [2]


def test_parameters_are_shared_and_not_copied():
    lstm = nn.LSTM(2, 3, num_layers=2, bidirectional=True)
    before = {name: (parameter, parameter.data_ptr()) for name, parameter in lstm.named_parameters()}
    checkpointed_lstm(lstm, torch.randn(5, 2, 2), per_layer=True)[0].sum().backward()
    assert all(lstm.get_parameter(name) is old for name, (old, _) in before.items())
    assert all(old.data_ptr() == address for old, address in before.values())
    assert all(parameter.grad is not None for parameter in lstm.parameters())


# Dropout -------------------------------------------------------------------------------------------------------------


def dropping(**how):
    lstm = nn.LSTM(2, 4, num_layers=3, dropout=0.5, dtype=torch.float64, batch_first=how.pop("batch_first", False))
    x = torch.randn(6, 5, 2, dtype=torch.float64)

    def run():
        torch.manual_seed(7)
        return checkpointed_lstm(lstm, x, **how)[0]

    return lstm, x, run


@pytest.mark.parametrize("how", [{}, {"per_layer": True}, {"readout": nn.Dropout(0.5)}], ids=["time", "layer", "read"])
def test_the_recomputation_uses_the_masks_of_the_forward_pass(how):
    lstm, _, run = dropping(segments=3, **how)
    output = run()
    torch.manual_seed(99)  # whatever was drawn in between
    torch.rand(3)
    (found,) = torch.autograd.grad(output.square().sum(), lstm.weight_hh_l1)
    step = torch.zeros_like(found)
    step[1, 2] = 1e-6
    losses = []
    for sign in (1, -1):  # the same masks, by the seed, and another weight
        with torch.no_grad():
            lstm.weight_hh_l1.add_(sign * step)
            losses.append(run().square().sum().item())
            lstm.weight_hh_l1.sub_(sign * step)
    assert found[1, 2].item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4)
    assert found[1, 2].item() != 0


def test_backward_leaves_the_random_numbers_after_it_alone():
    _, _, run = dropping(segments=3)
    output = run()
    expected = torch.get_rng_state()
    output.sum().backward()
    assert torch.equal(torch.get_rng_state(), expected)


def test_layer_by_layer_draws_the_masks_of_the_plain_run_and_segments_draw_others():
    lstm, x, by_layer = dropping(per_layer=True, segments=2)
    torch.manual_seed(7)
    plain = lstm(x)[0]
    torch.testing.assert_close(by_layer(), plain)
    torch.manual_seed(7)
    assert not torch.allclose(checkpointed_lstm(lstm, x, segments=2)[0], plain)
    torch.manual_seed(7)
    torch.testing.assert_close(checkpointed_lstm(lstm, x, segments=1)[0], plain)


def test_in_eval_mode_dropout_is_off():
    lstm, x, run = dropping(per_layer=True)
    lstm.eval()
    torch.testing.assert_close(run(), lstm(x)[0])


def test_the_random_state_is_kept_where_something_may_draw_from_it_alone(monkeypatch):
    kept, state = [], torch.get_rng_state()
    monkeypatch.setattr(torch, "get_rng_state", lambda: kept.append(1) or state)
    x, plain, dropping = torch.randn(6, 5, 2), nn.LSTM(2, 4, 2), nn.LSTM(2, 4, 2, dropout=0.5)
    for lstm in (plain, dropping.eval()):
        checkpointed_lstm(lstm, x, segments=3)
    assert not kept
    checkpointed_lstm(dropping.train(), x, segments=3)
    checkpointed_lstm(plain, x, segments=3, readout=nn.Dropout())
    assert len(kept) == 6


# Memory --------------------------------------------------------------------------------------------------------------

T, N, H = 256, 4, 32
STATES = 2 * N * H * 4  # bytes of one h and one c


def kept(layers=1, steps=T, **how):
    """Bytes kept by the segmented run; by the plain one when there is nothing in ``how``."""
    lstm, readout, x = nn.LSTM(8, H, layers), nn.Linear(H, 1), torch.randn(steps, N, 8)
    outside = how.pop("outside", False)
    read = {"readout": readout} if how and not outside else {}

    def call():
        output = checkpointed_lstm(lstm, x, **how, **read)[0] if how else lstm(x)[0]
        return (output if read else readout(output)).sum()

    return saved_bytes(call, [x, *lstm.parameters(), *readout.parameters()])


def test_a_plain_run_keeps_gates_and_states_of_every_step():
    assert kept() > T * N * H * 4 * 6
    assert kept(steps=2 * T) == pytest.approx(2 * kept(), rel=0.05)
    assert kept(layers=3) == pytest.approx(3 * kept(), rel=0.05)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("segments", [2, 7, 16, 64, T])
def test_a_segmented_run_keeps_the_states_between_segments_alone(layers, segments):
    assert kept(layers, segments=segments) == (segments - 1) * layers * STATES


def test_one_segment_keeps_nothing_and_recomputes_all():
    assert kept(segments=1) == 0


def test_with_the_default_what_is_kept_and_what_a_segment_recomputes_grow_with_the_root_of_t():
    sizes = [kept(segments=None, steps=steps) + kept(steps=round(math.sqrt(steps))) for steps in (64, 256, 1024)]
    assert [b / a for a, b in pairwise(sizes)] == pytest.approx([2, 2], rel=0.15)
    assert kept(steps=1024) / sizes[-1] > 20


def test_a_readout_outside_keeps_the_whole_output():
    assert kept(segments=16, outside=True) - kept(segments=16) == T * N * H * 4


def test_layer_by_layer_keeps_the_output_of_every_layer_but_the_last():
    assert kept(3, segments=1, per_layer=True) == 2 * T * N * H * 4
    assert kept(3, segments=16, per_layer=True) == 2 * T * N * H * 4 + 3 * 15 * STATES


# Truncation ----------------------------------------------------------------------------------------------------------


@given(calls(specs(dropout=0.0, bidirectional=False), layouts=("unbatched", "batched")), st.integers(1, 7))
@some
def test_windows_carry_the_state_and_join_to_the_plain_output(call, length):
    lstm, (x, hx) = build(call.spec, dtype=torch.float64), call.tensors()
    time = 1 if call.spec.batch_first and call.layout == "batched" else 0
    chunks = list(truncated_bptt(lstm, x, length, hx))
    output, states = lstm(x, hx)
    torch.testing.assert_close(torch.cat([chunk.output for chunk in chunks], time), output)
    torch.testing.assert_close(chunks[-1].state, states)
    assert not any(part.requires_grad for chunk in chunks for part in chunk.state)
    steps = [step for chunk in chunks for step in range(*chunk.steps.indices(10**6))]
    assert steps == list(range(max(call.lengths)))
    for chunk in chunks:
        (gradient,) = torch.autograd.grad(chunk.output.sum(), x, retain_graph=True)
        reached = gradient.movedim(time, 0).flatten(1).any(1).nonzero().flatten().tolist()
        assert set(reached) <= set(steps[chunk.steps])


@pytest.mark.parametrize(("length", "steps"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (2**70, [3])])
def test_a_window_has_as_many_steps_as_were_asked_for(length, steps):
    assert [len(chunk.output) for chunk in truncated_bptt(nn.LSTM(2, 3), torch.randn(3, 1, 2), length)] == steps


def test_a_window_of_t_steps_has_the_whole_gradient_that_of_the_states_included():
    lstm, x, hx = nn.LSTM(2, 3), torch.randn(5, 2, 2), tuple(torch.randn(2, 1, 2, 3, requires_grad=True).unbind())
    leaves = [*lstm.parameters(), *hx]
    (chunk,) = truncated_bptt(lstm, x, 5, hx)
    found = torch.autograd.grad(chunk.output.sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad(lstm(x, hx)[0].sum(), leaves))


def test_weights_may_move_between_windows():
    lstm, x = nn.LSTM(2, 3), torch.randn(6, 2, 2)
    optimizer = torch.optim.SGD(lstm.parameters(), lr=1)
    before = lstm(x)[0]
    for chunk in truncated_bptt(lstm, x, 2):
        optimizer.zero_grad()
        chunk.output.sum().backward()
        optimizer.step()
    assert not torch.allclose(chunk.output, before[4:])


# What is refused -----------------------------------------------------------------------------------------------------

PADDED = torch.randn(5, 2, 2)
PACKED = pack_padded_sequence(PADDED, torch.tensor([5, 3]))


@pytest.mark.parametrize(
    ("arguments", "x", "how", "message"),
    [
        ({}, PADDED, {"segments": 0}, r"^segments must be an integer from 1 to T = 5, got 0$"),
        ({}, PADDED, {"segments": 6}, r"from 1 to T = 5, got 6$"),
        ({"batch_first": True}, PADDED, {"segments": 3}, r"from 1 to T = 2, got 3$"),
        ({}, PADDED[0], {"segments": 3}, r"from 1 to T = 2, got 3$"),
        ({}, PACKED, {"segments": 6}, r"from 1 to T = 5, got 6$"),
        ({}, PADDED, {"segments": True}, r"from 1 to T = 5, got True$"),
        ({}, PADDED, {"segments": 2.0}, r"from 1 to T = 5, got 2\.0$"),
        (
            {"bidirectional": True},
            PADDED,
            {},
            r"^a bidirectional LSTM cannot be cut in time, since its reverse direction begins at the last step; "
            r"pass per_layer=True, which cuts each direction of each layer$",
        ),
        (
            {"bidirectional": True},
            PADDED,
            {"per_layer": True, "readout": nn.Linear(6, 1)},
            r"^readout cannot be applied in a segment of a bidirectional LSTM, where the other direction is missing; "
            r"apply it to the output$",
        ),
        (
            {},
            PACKED,
            {"per_layer": True},
            r"^per_layer=True does not take a PackedSequence; leave it out, or for two directions batch sequences of "
            r"equal length$",
        ),
        ({"bidirectional": True}, PACKED, {"per_layer": True}, r"per_layer=True does not take a PackedSequence"),
        ({}, PADDED[None], {}, "2D or 3D, got 4D"),
    ],
)
def test_what_cannot_be_cut_is_refused(arguments, x, how, message):
    with pytest.raises(ValueError, match=message):
        checkpointed_lstm(nn.LSTM(2, 3, **arguments), x, **how)


def test_what_is_no_input_is_refused():
    with pytest.raises(TypeError, match=r"^x must be a tensor or a PackedSequence, got \[1\] of type list$"):
        checkpointed_lstm(nn.LSTM(2, 3), [1])


@pytest.mark.parametrize("function", [checkpointed_lstm, lambda lstm, x: truncated_bptt(lstm, x, 2)])
def test_another_module_is_refused(function):
    with pytest.raises(TypeError, match=r"^expected an nn\.LSTM, .* got GRU$"):
        function(nn.GRU(2, 3), PADDED)


@pytest.mark.parametrize(
    ("arguments", "x", "length", "error", "message"),
    [
        ({}, PADDED, 0, ValueError, "^length must be an integer of at least 1, got 0$"),
        ({}, PADDED, 2.0, ValueError, r"got 2\.0$"),
        ({}, PADDED, True, ValueError, "got True$"),
        (
            {"bidirectional": True},
            PADDED,
            2,
            ValueError,
            "^truncated_bptt needs one direction: the reverse one would have to begin at the last step$",
        ),
        ({}, PACKED, 2, TypeError, "needs a padded tensor, got PackedSequence"),
    ],
)
def test_what_cannot_be_truncated_is_refused_before_the_first_window(arguments, x, length, error, message):
    with pytest.raises(error, match=message):
        truncated_bptt(nn.LSTM(2, 3, **arguments), x, length)


def test_states_of_two_layers_are_refused_before_the_first_window():
    states = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)
    with pytest.raises(ValueError, match=r"h_0 must have shape \(1, 2, 3\).* got \(2, 2, 3\)"):
        truncated_bptt(nn.LSTM(2, 3), PADDED, 2, states)
