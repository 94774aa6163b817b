import copy
import itertools
import warnings
from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Call, build, calls, every_spec, examples, lengths, sizes, specs
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_utils import LSTMSpec, ReferenceLSTM, lstm_cell

KINDS = (nn.LSTM, ReferenceLSTM)
PACKED = ("sorted", "unsorted")
UNPACKED = ("unbatched", "batched")
seeds = st.integers(0, 2**32)

# Even one and the same product may differ in its last bit, since tensors start at other addresses.
assert_close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)


def pair(spec: LSTMSpec, dtype: torch.dtype = torch.float64) -> tuple[nn.LSTM, ReferenceLSTM]:
    """An nn.LSTM and the reference with its weights, which a strict load moves over."""
    original, reference = (build(spec, kind, dtype=dtype) for kind in KINDS)
    reference.load_state_dict(original.state_dict())
    return original, reference


def assert_same_results(
    call: Call, original: nn.Module, reference: nn.Module, dtype=torch.float64, **tolerance
) -> None:
    """Outputs, final states and every gradient, under the same seed."""
    expected, got = call.run(original, dtype, call.seed), call.run(reference, dtype, call.seed)
    assert type(got["output"]) is type(expected["output"])
    if isinstance(got["output"], PackedSequence):
        expected |= expected.pop("output")._asdict()
        got |= got.pop("output")._asdict()
    assert_close(got, expected, **tolerance)


@examples["many"]
@given(call=calls())
def test_outputs_and_gradients_equal_those_of_nn_lstm(call):
    original, reference = pair(call.spec)
    assert_same_results(call, original.eval(), reference.eval())


@examples["some"]
@given(call=calls())
def test_outputs_and_gradients_agree_in_float32(call):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN", UserWarning)
        original, reference = pair(call.spec, torch.float32)
        assert_same_results(call, original.eval(), reference.eval(), torch.float32, rtol=1e-4, atol=1e-5)


@examples["some"]
@given(call=calls(layouts=UNPACKED))
def test_outputs_lie_in_memory_as_those_of_nn_lstm(call):
    strides = {module(*call.tensors())[0].stride() for module in pair(call.spec)}
    assert len(strides) == 1


@examples["some"]
@given(call=calls(layouts=("unsorted",)))
def test_padding_is_never_read(call):
    reference = build(call.spec, ReferenceLSTM, dtype=torch.float64).eval()
    x, hx = call.tensors()
    time_first = x.detach().clone()
    time_first = time_first.transpose(0, 1) if call.spec.batch_first else time_first
    for row, length in enumerate(call.lengths):
        time_first[length:, row] = torch.nan
    poisoned = time_first.transpose(0, 1) if call.spec.batch_first else time_first
    assert_close(reference(call.pack(poisoned), hx)[0].data, reference(call.pack(x), hx)[0].data)


@examples["some"]
@given(spec=every_spec, seed=seeds)
def test_the_same_seed_draws_the_same_parameters(spec, seed):
    modules, states = [], []
    for kind in KINDS:
        torch.manual_seed(seed)
        modules.append(build(spec, kind, dtype=torch.float64))
        states.append(torch.get_rng_state())
    names, references = zip(*modules[1].named_parameters(), strict=True)
    assert names == tuple(name for name, _ in modules[0].named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(modules[0].parameters(), references, strict=True))
    assert torch.equal(*states)  # and what is drawn next is the same too


@examples["some"]
@given(spec=every_spec)
def test_state_dicts_load_strictly_in_both_directions(spec):
    for source, target in itertools.permutations(KINDS):
        source, target = build(spec, source), build(spec, target)
        assert list(source.state_dict()) == list(target.state_dict())
        target.load_state_dict(source.state_dict(), strict=True)
        assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@examples["some"]
@given(spec=every_spec)
def test_all_weights_groups_by_layer_and_direction(spec):
    def grouped(module):
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        return [[names[id(parameter)] for parameter in group] for group in module.all_weights]

    original, reference = pair(spec)
    assert grouped(reference) == grouped(original)


@examples["some"]
@given(spec=every_spec)
def test_attributes_and_repr_give_the_arguments(spec):
    original, reference = pair(spec)
    for name in spec.as_dict():
        assert getattr(reference, name) == getattr(original, name)
    assert LSTMSpec(**eval(repr(reference), {"ReferenceLSTM": dict})) == reference.spec == spec


# Dropout ---------------------------------------------------------------------------------------------------------


@examples["some"]
@given(call=calls(specs(num_layers=3)))
def test_the_same_seed_drops_the_same_elements(call):
    assert_same_results(call, *pair(call.spec))


@examples["some"]
@given(call=calls(specs(num_layers=3, dropout=1.0)))
def test_dropout_of_one_hands_zeros_to_the_next_layer(call):
    original, reference = pair(call.spec)
    assert_same_results(call, original, reference)
    assert not call.run(reference)["gradient of weight_ih_l1"].any()


@examples["some"]
@given(call=calls(specs(num_layers=2, dropout=0.5)), other_seed=seeds)
def test_evaluation_drops_nothing(call, other_seed):
    _, reference = pair(call.spec)
    plain = build(LSTMSpec(**call.spec.as_dict() | {"dropout": 0.0}), ReferenceLSTM, dtype=torch.float64)
    plain.load_state_dict(reference.state_dict())
    expected = call.run(plain)["h_n"]
    assert_close(call.run(reference.eval(), seed=other_seed)["h_n"], expected)


@pytest.mark.parametrize("layout", [*UNPACKED, *PACKED])
def test_dropout_acts_between_layers_and_only_there(layout):
    call = Call(LSTMSpec(3, 8, 3, dropout=0.5), layout, (5,) if layout == "unbatched" else (5, 4, 2), True, 0)
    _, reference = pair(call.spec)
    kept = []

    def dropout(x, p, training):
        kept.append((x.shape[-1], p, training))
        return x

    expected = call.run(reference.eval())["h_n"]
    assert not torch.allclose(call.run(reference.train())["h_n"], expected)
    with mock.patch.object(nn.functional, "dropout", dropout):
        assert_close(call.run(reference)["h_n"], expected)
    assert kept == [(8, 0.5, True)] * 2


@pytest.mark.parametrize(("layers", "dropout", "warned"), [(1, 0.5, True), (1, 0.0, False), (2, 0.5, False)])
def test_dropout_warns_where_it_acts_nowhere(layers, dropout, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ReferenceLSTM(2, 3, layers, dropout=dropout)
    message = f"dropout={dropout} acts between layers, and num_layers=1 has no between"
    assert [str(warning.message) for warning in caught] == [message] * warned


def test_dropout_in_a_single_layer_warns_and_points_at_the_caller():
    with pytest.warns(UserWarning, match=r"dropout=0.5 acts between layers, and num_layers=1 has no between") as caught:
        ReferenceLSTM(2, 3, dropout=0.5)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        nn.LSTM(2, 3, dropout=0.5)


# What surrounds a module -----------------------------------------------------------------------------------------


def other_weights(call: Call) -> dict[str, torch.Tensor]:
    """Weights for the call's module: plain tensors rather than parameters, as torch.func passes them."""
    generator = torch.Generator().manual_seed(call.seed)
    shapes = call.spec.parameter_shapes()
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


@examples["some"]
@given(call=calls(specs(dropout=0.0)))
def test_functional_call_uses_the_weights_it_is_given(call):
    weights = other_weights(call)
    called, loaded = pair(call.spec)[1], pair(call.spec)[1]
    loaded.load_state_dict(weights)
    x, hx = call.tensors()
    expected = loaded(call.pack(x), hx)
    assert_close(torch.func.functional_call(called, weights, (call.pack(x), hx)), expected)


@examples["some"]
@given(call=calls(specs(dropout=0.0), layouts=UNPACKED))  # nn.LSTM cannot differentiate a packed call this way either
def test_functional_gradients_equal_those_of_nn_lstm(call):
    x, hx = call.tensors()
    original, reference = (
        torch.func.grad(lambda weights, m=module: torch.func.functional_call(m, weights, (x, hx))[1][0].square().sum())
        for module in pair(call.spec)
    )
    weights = other_weights(call)
    assert_close(reference(weights), original(weights))


def test_a_deep_copy_is_equal_and_independent():
    _, reference = pair(LSTMSpec(3, 4, 2, bidirectional=True, proj_size=2))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = reference(x)[0]
    twin = copy.deepcopy(reference)
    assert_close(twin(x)[0], expected)
    nn.init.zeros_(twin.weight_ih_l0)
    assert not torch.allclose(twin(x)[0], expected)
    assert_close(reference(x)[0], expected)


def test_flatten_parameters_changes_nothing():
    _, reference = pair(LSTMSpec(3, 4))
    before = copy.deepcopy(reference)
    reference.flatten_parameters()
    assert list(map(id, reference.parameters())) == [id(p) for group in reference.all_weights for p in group]
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), before.parameters(), strict=True))


def test_device_and_dtype_reach_the_parameters():
    reference = ReferenceLSTM(2, 3, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in reference.parameters()} == {("meta", torch.bfloat16)}


# The cell --------------------------------------------------------------------------------------------------------


@examples["some"]
@given(input_size=sizes, hidden_size=sizes, bias=st.booleans(), rows=st.integers(1, 4), steps=lengths, seed=seeds)
def test_a_loop_of_cells_equals_lstm_cell(input_size, hidden_size, bias, rows, steps, seed):
    torch.manual_seed(seed)
    cell = nn.LSTMCell(input_size, hidden_size, bias, dtype=torch.float64)
    x = torch.randn(steps, rows, input_size, dtype=torch.float64)
    expected = got = torch.randn(2, rows, hidden_size, dtype=torch.float64).unbind()
    for x_t in x:
        expected = cell(x_t, expected)
        x_gates = x_t @ cell.weight_ih.T + (cell.bias_ih + cell.bias_hh if bias else 0)
        got = lstm_cell(x_gates, *got, cell.weight_hh)
        assert_close(got, expected, atol=1e-12)


# Refusals --------------------------------------------------------------------------------------------------------


def states(*shapes, dtype=torch.float64):
    return tuple(torch.zeros(shape, dtype=dtype) for shape in shapes)


def x(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


def packed(enforce_sorted, **changes):
    return pack_padded_sequence(
        x(5, 2, changes.pop("width", 3), **changes), torch.tensor([5, 2]), False, enforce_sorted
    )


DTYPE = r"the input is torch.float32 and the weights are torch.float64; convert one of them with .to\(\)"
WIDTH = "the input has 2 features a step, and input_size is 3"
EMPTY = r"the input has no steps: its shape is \(0, "
REFUSED = {  # on a float64 LSTM(3, 4, num_layers=2, proj_size=1): input, hx, error, message, whether nn.LSTM agrees
    "1-D input": (x(3), None, ValueError, r"2-D \(unbatched\) or 3-D input, got shape \(3,\)", True),
    "4-D input": (x(1, 5, 2, 3), None, ValueError, r"3-D input, got shape \(1, 5, 2, 3\)", True),
    "dtype": (x(5, 2, 3, dtype=torch.float32), None, ValueError, DTYPE, True),
    "dtype, packed": (packed(True, dtype=torch.float32), None, ValueError, DTYPE, False),
    "width": (x(5, 7, 2), None, RuntimeError, WIDTH, True),
    "width, unbatched": (x(5, 2), None, RuntimeError, WIDTH, True),
    "width, packed": (packed(False, width=2), None, RuntimeError, WIDTH, True),
    "no steps": (x(0, 2, 3), None, RuntimeError, EMPTY, True),
    "no steps, unbatched": (x(0, 3), None, RuntimeError, EMPTY, True),
    "h_0 as c_0": (
        x(5, 2, 3),
        states((2, 2, 4), (2, 2, 4)),
        RuntimeError,
        r"h_0 must have shape \(2, 2, 1\) \(batch_first never moves it\), got \(2, 2, 4\)",
        True,
    ),
    "c_0 as h_0": (
        x(5, 2, 3),
        states((2, 2, 1), (2, 2, 1)),
        RuntimeError,
        r"c_0 must have shape \(2, 2, 4\) .* got \(2, 2, 1\)",
        True,
    ),
    "h_0 of too many rows": (
        x(5, 2, 3),
        states((2, 3, 1), (2, 2, 4)),
        RuntimeError,
        r"\(2, 2, 1\) .* got \(2, 3, 1\)",
        True,
    ),
    "2-D states, batched": (x(5, 2, 3), states((2, 1), (2, 4)), RuntimeError, r"\(2, 2, 1\) .* got \(2, 1\)", True),
    "3-D states, unbatched": (
        x(5, 3),
        states((2, 1, 1), (2, 1, 4)),
        RuntimeError,
        r"\(2, 1\) .* got \(2, 1, 1\)",
        True,
    ),
    "h_0 of too many rows, sorted": (
        packed(True),
        states((2, 3, 1), (2, 3, 4)),
        RuntimeError,
        r"h_0 must have shape \(2, 2, 1\) .* got \(2, 3, 1\)",
        True,
    ),
    "h_0 of too many rows, unsorted": (  # nn.LSTM picks two rows and carries on
        packed(False),
        states((2, 3, 1), (2, 3, 4)),
        RuntimeError,
        r"h_0 must have shape \(2, 2, 1\) .* got \(2, 3, 1\)",
        False,
    ),
    "h_0 of too few rows, unsorted": (
        packed(False),
        states((2, 1, 1), (2, 1, 4)),
        RuntimeError,
        r"h_0 must have shape \(2, 2, 1\) .* got \(2, 1, 1\)",
        True,
    ),
}


@pytest.mark.parametrize(("input", "hx", "error", "message", "as_torch"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_with_its_shape(input, hx, error, message, as_torch):
    original, reference = pair(LSTMSpec(3, 4, num_layers=2, proj_size=1))
    with pytest.raises(error, match=message):
        reference(input, hx)
    if as_torch:
        with pytest.raises(error):
            original(input, hx)


def test_states_are_never_batch_first():
    _, reference = pair(LSTMSpec(3, 4, batch_first=True))
    with pytest.raises(RuntimeError, match=r"h_0 must have shape \(1, 2, 4\) .* got \(2, 1, 4\)"):
        reference(x(2, 5, 3), states((2, 1, 4), (2, 1, 4)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hidden_size": 0}, ValueError, "hidden_size must be at least 1, got 0"),
        ({"bidirectional": 1}, TypeError, "bidirectional must be True or False, got 1 of type int"),
        ({"proj_size": 4}, ValueError, r"proj_size must be smaller than hidden_size \(4\), got 4"),
    ],
)
def test_arguments_are_refused_as_by_the_spec(arguments, error, message):
    with pytest.raises(error, match=message):
        ReferenceLSTM(**{"input_size": 3, "hidden_size": 4} | arguments)


def test_a_batch_of_no_rows_is_computed_as_by_torch():
    for output, (h_n, c_n) in (module(x(5, 0, 3)) for module in pair(LSTMSpec(3, 4, num_layers=2, proj_size=1))):
        assert [tuple(tensor.shape) for tensor in (output, h_n, c_n)] == [(5, 0, 1), (2, 0, 1), (2, 0, 4)]


def test_two_sizes_are_enough_and_mean_what_they_mean_to_torch():
    original = nn.LSTM(3, 4)
    assert ReferenceLSTM(3, 4).spec.as_dict() == {name: getattr(original, name) for name in LSTMSpec(3, 4).as_dict()}


def test_it_says_what_it_is_as_torch_does():
    original, reference = pair(LSTMSpec(3, 4))
    assert reference.mode == original.mode == "LSTM"
