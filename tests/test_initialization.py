"""Every block of every layer and direction, drawn as asked; and everything that would be drawn wrongly in silence."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import build, examples, specs
from torch import nn
from torch.nn.utils import parametrizations

from lstm_utils import ReferenceLSTM, diagnose
from lstm_utils.initialization import SCHEMES, forget_biases, gate_blocks, init_lstm_

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
kinds = st.sampled_from([nn.LSTM, ReferenceLSTM])


def weights(lstm):
    return {name: parameter.detach().clone() for name, parameter in lstm.named_parameters()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def is_semi_orthogonal(block, tolerance=1e-6):
    tall = block if block.shape[0] >= block.shape[1] else block.T
    return torch.allclose(tall.T @ tall, torch.eye(tall.shape[1], dtype=tall.dtype), atol=tolerance)


def blocks_of(lstm, kind):
    """Every block of the tensors of one kind, of all layers and directions."""
    for name, tensor in weights(lstm).items():
        if name.startswith(kind):
            yield from [tensor] if kind == "weight_hr" else gate_blocks(tensor).values()


# Weights -------------------------------------------------------------------------------------------------------------


@given(specs(), kinds, st.sampled_from(list(SCHEMES)), st.sampled_from(list(SCHEMES)), st.integers(0, 99))
@examples["some"]
def test_every_block_is_drawn_by_its_scheme_and_every_bias_is_zero(spec, kind, input, recurrent, seed):
    lstm = build(spec, kind, dtype=torch.float64)
    before = weights(lstm)
    returned = init_lstm_(lstm, input=input, recurrent=recurrent, forget_bias=0, generator=seeded(seed))
    assert returned is lstm
    for tensor_kind, scheme in (("weight_ih", input), ("weight_hh", recurrent), ("weight_hr", recurrent)):
        for block in blocks_of(lstm, tensor_kind):
            if scheme == "orthogonal":
                assert is_semi_orthogonal(block)
            elif scheme == "default":
                assert block.abs().max() <= 1 / math.sqrt(spec.hidden_size)
            elif scheme == "xavier_uniform":
                assert block.abs().max() <= math.sqrt(6 / sum(block.shape))
    after = weights(lstm)
    for name, tensor in after.items():
        if "bias" in name:
            assert not tensor.any()
        else:
            assert (tensor != before[name]).all()


@pytest.mark.parametrize("scheme", ["default", "xavier_uniform", "xavier_normal"])
def test_the_spread_of_each_block_is_that_of_the_gate_and_not_of_the_stack(scheme):
    hidden, width = 64, 192
    lstm = init_lstm_(nn.LSTM(width, hidden), input=scheme, generator=seeded())
    expected = 1 / math.sqrt(3 * hidden) if scheme == "default" else math.sqrt(2 / (width + hidden))
    for block in blocks_of(lstm, "weight_ih"):
        assert block.std().item() == pytest.approx(expected, rel=0.05)
        if scheme != "xavier_normal":
            assert block.abs().max().item() == pytest.approx(math.sqrt(3) * expected, rel=0.01)


def test_the_blocks_differ_between_gates_layers_and_directions():
    lstm = init_lstm_(nn.LSTM(8, 8, num_layers=2, bidirectional=True))
    blocks = [*blocks_of(lstm, "weight_hh"), *blocks_of(lstm, "weight_ih")]
    assert len(blocks) == 32
    assert len({block.abs().sum().item() for block in blocks}) == 32


def test_the_reference_gets_the_weights_of_the_module():
    arguments = {"input_size": 3, "hidden_size": 8, "num_layers": 2, "bidirectional": True, "proj_size": 5}
    one, two = (init_lstm_(kind(**arguments), generator=seeded(3)) for kind in (nn.LSTM, ReferenceLSTM))
    assert same(weights(one), weights(two))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_seed_gives_the_same_weights_in_every_precision(dtype):
    lstm = init_lstm_(nn.LSTM(3, 8, dtype=dtype), generator=seeded())
    wide = init_lstm_(nn.LSTM(3, 8), generator=seeded())
    assert same(weights(lstm), weights(wide.to(dtype)))


def test_double_precision_is_orthogonal_to_double_precision():
    lstm = init_lstm_(nn.LSTM(3, 8, dtype=torch.float64))
    assert all(is_semi_orthogonal(block, 1e-14) for block in blocks_of(lstm, "weight_hh"))


def test_a_generator_repeats_itself_and_leaves_the_global_one_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    lstm = nn.LSTM(3, 8)
    torch.set_rng_state(state)
    one = weights(init_lstm_(lstm, generator=seeded(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(one, weights(init_lstm_(lstm, generator=seeded(1))))
    assert not same(one, weights(init_lstm_(lstm, generator=seeded(2))))


def test_without_a_generator_the_global_seed_decides():
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(weights(init_lstm_(nn.LSTM(3, 8))))
    assert same(*drawn)


def test_the_parameters_stay_the_ones_that_the_optimizer_has():
    lstm = nn.LSTM(3, 8)
    before = list(lstm.parameters())
    addresses = [parameter.data_ptr() for parameter in before]
    init_lstm_(lstm)
    assert all(one is two for one, two in zip(lstm.parameters(), before, strict=True))
    assert [parameter.data_ptr() for parameter in lstm.parameters()] == addresses
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in before)


def test_by_default_inputs_are_uniform_states_orthogonal_and_memories_start_open():
    lstm = init_lstm_(nn.LSTM(192, 64), generator=seeded())
    same_again = {"input": "xavier_uniform", "recurrent": "orthogonal", "forget_bias": 1}
    assert same(weights(lstm), weights(init_lstm_(nn.LSTM(192, 64), **same_again, generator=seeded())))


def test_numbers_are_drawn_where_the_generator_is_whatever_the_default_device():
    lstm = nn.LSTM(3, 4)
    with torch.device("meta"):
        init_lstm_(lstm, generator=seeded())
    assert same(weights(lstm), weights(init_lstm_(nn.LSTM(3, 4), generator=seeded())))


# The forget bias -----------------------------------------------------------------------------------------------------


@given(specs(bias=True), kinds, st.floats(-5, 5, width=32))
@examples["some"]
def test_the_gate_sees_the_bias_that_was_asked_in_every_layer_and_direction(spec, kind, value):
    lstm = init_lstm_(build(spec, kind), forget_bias=value)
    found = forget_biases(lstm)
    assert len(found) == spec.num_layers * spec.num_directions
    assert all(torch.equal(bias, torch.full((spec.hidden_size,), value)) for bias in found.values())
    for name, tensor in weights(lstm).items():
        if name.startswith("bias_hh"):
            assert not tensor.any()
        elif name.startswith("bias_ih"):
            assert not any(gate_blocks(tensor)[gate].any() for gate in "igo")


def test_the_gate_itself_opens_as_far_as_the_bias_says():
    lstm = init_lstm_(nn.LSTM(3, 4), forget_bias=2.0)
    c_0 = torch.ones(1, 1, 4)
    with torch.no_grad():
        _, (_, c_n) = lstm(torch.zeros(1, 1, 3), (torch.zeros(1, 1, 4), c_0))  # i·g = 0.5·tanh(0) = 0
    assert torch.allclose(c_n, torch.full((1, 1, 4), 2.0).sigmoid())


@given(specs(bias=True), st.floats(2, 1e4), st.integers(0, 99))
@examples["some"]
def test_chrono_draws_time_scales_up_to_the_lag_and_the_opposite_input_bias(spec, max_lag, seed):
    lstm = init_lstm_(build(spec), forget_bias="chrono", max_lag=max_lag, generator=seeded(seed))
    for place, bias in forget_biases(lstm).items():
        scale = 1 / (1 - bias.double().sigmoid())  # steps
        assert scale.min() >= 2 * (1 - 1e-4)
        assert scale.max() <= max_lag * (1 + 1e-2)
        own = gate_blocks(dict(lstm.named_parameters())[f"bias_ih_{place}"].detach())
        assert torch.equal(own["i"], -bias)
        assert not own["g"].any()
        assert not own["o"].any()


def test_chrono_spreads_the_time_scales_evenly():
    lstm = init_lstm_(nn.LSTM(1, 4000), input="default", recurrent="default", forget_bias="chrono", max_lag=101)
    scales = 1 / (1 - forget_biases(lstm)["l0"].sigmoid())
    shares = torch.histc(scales, 11, 2, 101) / 4000
    assert torch.allclose(shares, torch.full((11,), 1 / 11), atol=0.03)


def test_chrono_reaches_the_lag_and_not_beyond_and_repeats_itself():
    drawn = [
        init_lstm_(nn.LSTM(1, 1000), recurrent="default", forget_bias="chrono", max_lag=9, generator=seeded(seed))
        for seed in (1, 1, 2)
    ]
    one, two, three = (forget_biases(lstm)["l0"] for lstm in drawn)
    assert (one.exp().min().item(), one.exp().max().item()) == pytest.approx((1, 8), rel=0.02)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    least = init_lstm_(nn.LSTM(1, 4), forget_bias="chrono", max_lag=2)
    assert forget_biases(least)["l0"].tolist() == [0] * 4  # every unit remembers for two steps
    most = init_lstm_(nn.LSTM(1, 4), forget_bias="chrono", max_lag=2**63)
    assert forget_biases(most)["l0"].isfinite().all()


def test_the_diagnosis_has_nothing_to_say_about_it():
    lstm = init_lstm_(nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True))
    assert "P17" not in [finding.pitfall for finding in diagnose(lstm, torch.randn(2, 5, 3), batch_dim=0).findings]


def test_forget_biases_adds_the_two_vectors_and_detaches():
    lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    found = forget_biases(lstm)
    assert list(found) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    for place, bias in found.items():
        both = getattr(lstm, f"bias_ih_{place}") + getattr(lstm, f"bias_hh_{place}")
        assert torch.equal(bias, both[4:8])
        assert not bias.requires_grad


def test_without_biases_the_forget_bias_is_zero():
    lstm = nn.LSTM(3, 4, bias=False)
    assert not forget_biases(init_lstm_(lstm, forget_bias=0))["l0"].any()


# Blocks --------------------------------------------------------------------------------------------------------------


def test_blocks_are_views_in_pytorchs_order():
    stacked = torch.arange(8.0)
    blocks = gate_blocks(stacked)
    assert {gate: block.tolist() for gate, block in blocks.items()} == {
        "i": [0, 1],
        "f": [2, 3],
        "g": [4, 5],
        "o": [6, 7],
    }
    blocks["f"].zero_()
    assert stacked.tolist() == [0, 1, 0, 0, 4, 5, 6, 7]


@pytest.mark.parametrize("shape", [(), (0,), (3,), (6, 4)])
def test_what_has_no_four_gates_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected 4H rows, H for each gate, got the shape \("):
        gate_blocks(torch.zeros(shape))


# What is refused, and changes nothing --------------------------------------------------------------------------------

KNOWN = "'default', 'xavier_uniform', 'xavier_normal', 'orthogonal'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input": "xavier"}, f"^input must be one of {KNOWN}, got 'xavier'$"),
        ({"recurrent": None}, f"^recurrent must be one of {KNOWN}, got None$"),
        ({"recurrent": []}, r"^recurrent must be one of .*, got \[\]$"),
        ({"forget_bias": "one"}, "^forget_bias must be a number or 'chrono', got 'one'$"),
        ({"forget_bias": None}, "^forget_bias must be a finite number or 'chrono', got None$"),
        ({"forget_bias": True}, "^forget_bias must be a finite number or 'chrono', got True$"),
        ({"forget_bias": math.nan}, "^forget_bias must be a finite number or 'chrono', got nan$"),
        ({"forget_bias": -math.inf}, "^forget_bias must be a finite number or 'chrono', got -inf$"),
        ({"forget_bias": "chrono"}, "needs max_lag, a number of steps of at least 2, got None$"),
        ({"forget_bias": "chrono", "max_lag": 1}, "at least 2, got 1$"),
        ({"forget_bias": "chrono", "max_lag": math.inf}, "at least 2, got inf$"),
        ({"forget_bias": "chrono", "max_lag": 2**63 + 1}, "at least 2, got 9223372036854775809$"),
        ({"forget_bias": -4e38}, r"^forget_bias must be at most 3.40282e\+38 in the weights' dtype, got -4e\+38$"),
        ({"forget_bias": "chrono", "max_lag": "100"}, "at least 2, got '100'$"),
        ({"max_lag": 100}, "^max_lag=100 goes with forget_bias='chrono' alone, got forget_bias=1.0$"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_and_nothing_changes(arguments, message):
    lstm = nn.LSTM(3, 4)
    before, state = weights(lstm), torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        init_lstm_(lstm, **arguments)
    assert same(weights(lstm), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("arguments", [{}, {"forget_bias": "chrono", "max_lag": 9}, {"forget_bias": -1}])
def test_a_forget_bias_without_biases_is_refused(arguments):
    lstm = nn.LSTM(3, 4, bias=False)
    before = weights(lstm)
    wanted = "pass 0, or build it with bias=True"
    with pytest.raises(
        ValueError, match=rf"^an LSTM with bias=False has no bias to write forget_bias=.* to; {wanted}$"
    ):
        init_lstm_(lstm, **arguments)
    assert same(weights(lstm), before)


@pytest.mark.parametrize("value", [nn.GRU(3, 4), nn.Sequential(nn.LSTM(3, 4)), nn.LSTM, None])
def test_what_is_no_lstm_is_refused(value):
    for function in (init_lstm_, forget_biases):
        with pytest.raises(
            TypeError, match=rf"^expected an nn.LSTM or .* of model.modules\(\), got {type(value).__name__}$"
        ):
            function(value)


def test_a_parametrization_is_refused_since_writing_to_its_result_would_do_nothing():
    lstm = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    lstm = parametrizations.weight_norm(lstm, "weight_ih_l0")
    own = r"bias_ih_l0, bias_hh_l0, parametrizations.*"
    message = (
        rf"^weight_ih_l0, weight_hh_l0 is no parameter of this .*LSTM, whose parameters are {own}; initialize before"
    )
    for function in (init_lstm_, forget_biases):
        with pytest.raises(ValueError, match=rf"{message} a parametrization such as weight_norm is applied$"):
            function(lstm)


def test_the_largest_number_of_the_dtype_can_be_written():
    lstm = nn.LSTM(3, 4, dtype=torch.float16)
    assert forget_biases(init_lstm_(lstm, forget_bias=-65504))["l0"].tolist() == [-65504] * 4


def test_numbers_of_numpy_are_numbers():
    lstm = init_lstm_(nn.LSTM(3, 4), forget_bias=np.float32(1.5))
    assert forget_biases(lstm)["l0"].tolist() == [1.5] * 4
    init_lstm_(lstm, forget_bias="chrono", max_lag=np.int64(20))
