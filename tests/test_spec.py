import time
import warnings
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import ARGUMENTS, NOTABLE, arguments, build, examples, lengths, specs, tampered_arguments
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lstm_utils import LSTMSpec, ReferenceLSTM

batch_sizes = st.one_of(st.none(), st.integers(0, 5))


@examples["many"]
@given(spec=specs())
def test_parameter_shapes_have_the_names_order_and_shapes_of_named_parameters(spec):
    module = build(spec, device="meta")
    expected = [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]
    assert list(spec.parameter_shapes().items()) == expected


@examples["many"]
@given(spec=specs())
def test_num_parameters_counts_every_scalar(spec):
    assert spec.num_parameters() == sum(parameter.numel() for parameter in build(spec, device="meta").parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@examples["some"]
@given(spec=specs())
def test_nbytes_are_those_of_the_parameters(spec, dtype):
    parameters = build(spec, device="meta", dtype=dtype).parameters()
    assert spec.nbytes(dtype) == sum(parameter.numel() * parameter.element_size() for parameter in parameters)


@examples["many"]
@given(spec=specs(), seq_len=lengths, batch_size=batch_sizes)
def test_shapes_are_those_of_a_forward_call(spec, seq_len, batch_size):
    shapes = spec.shapes(seq_len, batch_size)
    output, (h_n, c_n) = build(spec, dtype=torch.float64)(torch.zeros(shapes.input, dtype=torch.float64))
    assert shapes[1:] == (output.shape, h_n.shape, c_n.shape)


@examples["some"]
@given(spec=specs(), seq_len=lengths, batch_size=batch_sizes)
def test_initial_states_have_the_shapes_of_the_final_ones(spec, seq_len, batch_size):
    shapes = spec.shapes(seq_len, batch_size)
    x, h_0, c_0 = (torch.zeros(shape, dtype=torch.float64) for shape in (shapes.input, shapes.h_n, shapes.c_n))
    assert build(spec, dtype=torch.float64)(x, (h_0, c_0))[0].shape == shapes.output


@pytest.mark.parametrize(("name", "least"), [("seq_len", 1), ("batch_size", 0)])
@pytest.mark.parametrize("value", [-1, 2.0, "2", True])
def test_shapes_and_flops_refuse_sizes_that_no_call_has(name, value, least):
    sizes = {"seq_len": 5, "batch_size": 3, name: value}
    for method in (LSTMSpec(2, 3).shapes, LSTMSpec(2, 3).flops):
        with pytest.raises(ValueError, match=f"{name} must be an int of at least {least}, got {value!r}"):
            method(**sizes)


@pytest.mark.parametrize("value", [0, None])
def test_a_call_has_at_least_one_step(value):
    with pytest.raises(ValueError, match=f"seq_len must be an int of at least 1, got {value}"):
        LSTMSpec(2, 3).shapes(value)


def test_a_deep_stack_is_described_in_a_few_lines():
    text = LSTMSpec(2, 3, num_layers=10**9).describe()
    assert "weight_ih_l7" in text
    assert "weight_ih_l8" not in text
    assert "… and 999,999,992 more layers, each with the shapes of layer 7" in text
    assert "more layers" not in LSTMSpec(2, 3, num_layers=8).describe()
    assert "… and 1 more layers" in LSTMSpec(2, 3, num_layers=9).describe()


def test_a_layer_reads_as_many_features_as_its_weights_have_columns():
    spec = LSTMSpec(2, 6, 3, bidirectional=True, proj_size=4)
    read = [spec.layer_input_size(layer) for layer in range(3)]
    assert read == [spec.build().get_parameter(f"weight_ih_l{layer}").shape[1] for layer in range(3)]
    with pytest.raises(ValueError, match=r"^layer must be an integer from 0 to 2, got 3$"):
        spec.layer_input_size(3)


def test_one_sequence_is_what_flops_counts_by_default():
    assert LSTMSpec(2, 3).flops(7) == LSTMSpec(2, 3).flops(7, 1)


@pytest.mark.parametrize("kind", [nn.LSTM, ReferenceLSTM])
@examples["some"]
@given(spec=specs())
def test_a_spec_survives_being_built_and_read_back(spec, kind):
    assert LSTMSpec.from_module(build(spec, kind, device="meta")) == spec


@pytest.mark.parametrize("module", [nn.GRUCell(2, 3), nn.Linear(2, 3), None])
def test_from_module_refuses_what_has_no_such_attributes(module):
    with pytest.raises(TypeError, match=f"expected an nn.LSTM .* got {type(module).__name__}"):
        LSTMSpec.from_module(module)


def test_build_passes_device_and_dtype_on():
    weight = LSTMSpec(2, 3).build(device="meta", dtype=torch.bfloat16).weight_ih_l0
    assert (weight.device.type, weight.dtype) == ("meta", torch.bfloat16)


def accepted_by_torch(drawn: dict[str, Any]) -> nn.LSTM | None:
    """The nn.LSTM of these arguments, if it can be constructed and then called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = nn.LSTM(**drawn)
            module(torch.zeros(2, 3, int(module.input_size)))
        except Exception:  # whatever torch raises, it refuses
            return None
        return module


def accepted_here(drawn: dict[str, Any]) -> LSTMSpec | str:
    """The specification of these arguments, or the message that refuses them."""
    try:
        return LSTMSpec(**drawn)
    except (TypeError, ValueError) as error:
        return str(error)


@examples["many"]
@given(drawn=arguments())
def test_valid_arguments_are_accepted_and_normalised(drawn):
    spec = LSTMSpec(**drawn)
    assert {name: getattr(spec, name) for name in drawn} == drawn
    assert {name: type(value).__name__ for name, value in spec.as_dict().items()} == LSTMSpec.__annotations__


def assert_accepted_alike(drawn: dict[str, Any]) -> None:
    """Both take the arguments and agree on the parameters, or the message here quotes an argument and its value."""
    module, spec = accepted_by_torch(drawn), accepted_here(drawn)
    if module is None:
        assert isinstance(spec, str), f"nn.LSTM refuses what is accepted: {drawn}"
        name = spec.partition(" ")[0]
        assert name in drawn
        assert repr(drawn[name]) in spec
    else:
        assert spec == LSTMSpec.from_module(module), f"nn.LSTM accepts what is refused: {drawn}"
        assert spec.parameter_shapes() == {name: tuple(p.shape) for name, p in module.named_parameters()}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("value", NOTABLE, ids=lambda value: f"{type(value).__name__} {value}")
def test_every_argument_takes_the_types_that_nn_lstm_takes(name, value):
    assert_accepted_alike({"input_size": 4, "hidden_size": 3, name: value})
    assert_accepted_alike({"input_size": 4, "hidden_size": 3, "num_layers": 2, name: value})


@examples["many"]
@given(drawn=tampered_arguments())
def test_a_spec_accepts_what_nn_lstm_accepts_and_quotes_what_it_refuses(drawn):
    assert_accepted_alike(drawn)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("input_size", 100.0, TypeError, "input_size must be an int, got 100.0 of type float"),
        ("input_size", np.int64(2), TypeError, "input_size must be an int, got np.int64(2) of type int64"),
        ("hidden_size", 0, ValueError, "hidden_size must be at least 1, got 0"),
        ("num_layers", True, TypeError, "num_layers must be an int, got True of type bool"),
        ("bias", 1, TypeError, "bias must be True or False, got 1 of type int"),
        ("dropout", "0.5", TypeError, "dropout must be a number from 0 to 1, got '0.5'"),
        ("dropout", float("nan"), ValueError, "dropout must lie from 0 to 1, got nan"),
        ("bidirectional", 1, TypeError, "bidirectional must be True or False, got 1 of type int"),
        ("proj_size", -1, ValueError, "proj_size must be at least 0, got -1"),
        (
            "proj_size",
            8,
            ValueError,
            "proj_size must be smaller than hidden_size (8), got 8; 0 means no projection",
        ),
    ],
)
def test_messages_say_what_was_received_and_what_would_be_accepted(name, value, error, message):
    with pytest.raises(error) as caught:
        LSTMSpec(**{"input_size": 4, "hidden_size": 8, name: value})
    assert str(caught.value) == message


@pytest.mark.parametrize("kind", [nn.LSTM, ReferenceLSTM])
@examples["some"]
@given(spec=specs(), seq_len=lengths, batch_size=batch_sizes)
def test_flops_are_those_that_torch_counts(spec, seq_len, batch_size, kind):
    # In float64: a float32 nn.LSTM without projection runs in one oneDNN kernel, which torch counts as nothing.
    module = build(spec, kind, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(spec.shapes(seq_len, batch_size).input, dtype=torch.float64))
    assert spec.flops(seq_len, 1 if batch_size is None else batch_size) == counter.get_total_flops()


@pytest.mark.parametrize(
    "spec",
    [
        LSTMSpec(10**6, 300_000, num_layers=2, bidirectional=True, proj_size=1_000),
        LSTMSpec(3, 4, num_layers=10**12),
        LSTMSpec(10**30, 10**30, bias=False),
    ],
    ids=["wide", "deep", "beyond 64 bits"],
)
def test_a_trillion_parameters_are_counted_exactly_and_at_once(spec):
    def seconds() -> float:
        start = time.perf_counter()
        LSTMSpec(**spec.as_dict()).num_parameters()
        return time.perf_counter() - start

    directions, width = 1 + spec.bidirectional, spec.proj_size or spec.hidden_size
    inputs = spec.input_size + (spec.num_layers - 1) * directions * width
    rest = 4 * spec.hidden_size * (width + 2 * spec.bias) + spec.proj_size * spec.hidden_size
    expected = directions * (4 * spec.hidden_size * inputs + spec.num_layers * rest)
    assert spec.num_parameters() == expected >= 10**12
    assert min(seconds() for _ in range(20)) < 1e-3


@examples["some"]
@given(drawn=arguments())
def test_specs_are_values(drawn):
    spec, twin = LSTMSpec(**drawn), LSTMSpec(**drawn)
    assert spec == twin
    assert len({spec, twin}) == 1
    assert spec != LSTMSpec(**drawn | {"input_size": spec.input_size + 1})


def test_specs_are_frozen():
    spec = LSTMSpec(2, 3)
    with pytest.raises(FrozenInstanceError):
        spec.hidden_size = 4


DESCRIPTION = """\
nn.LSTM(input_size=100, hidden_size=64, num_layers=2)

  input  (20, 32, 100)
  output (20, 32, 64)
  h_n    (2, 32, 64)
  c_n    (2, 32, 64)

  weight_ih_l0  (256, 100)            25,600
  weight_hh_l0  (256, 64)             16,384
  bias_ih_l0    (256,)                   256
  bias_hh_l0    (256,)                   256
  weight_ih_l1  (256, 64)             16,384
  weight_hh_l1  (256, 64)             16,384
  bias_ih_l1    (256,)                   256
  bias_hh_l1    (256,)                   256

  parameters  75,776
  memory      296 KiB as float32
  training    1.156 MiB with gradients and Adam's two moments
  forward     95,682,560 FLOPs in matrix products"""


def test_describe_prints_shapes_tensors_totals_and_memory():
    assert LSTMSpec(100, 64, 2).describe() == DESCRIPTION


def test_describe_names_every_argument_that_is_not_the_default():
    spec = LSTMSpec(2, 3, 4, bias=False, batch_first=True, dropout=0.5, bidirectional=True, proj_size=1)
    first = spec.describe().partition("\n")[0]
    assert eval(first, {"nn": nn}).extra_repr() == spec.build().extra_repr()
    assert LSTMSpec(2, 3).describe().startswith("nn.LSTM(input_size=2, hidden_size=3)\n")
    assert LSTMSpec(1, 1).describe().startswith("nn.LSTM(input_size=1, hidden_size=1)\n")


def test_describe_follows_lengths_batch_and_dtype():
    text = LSTMSpec(2, 3).describe(seq_len=7, batch_size=None, dtype=torch.float64)
    assert "  input  (7, 2)\n" in text
    assert "  h_n    (1, 3)\n" in text
    assert "672 B as float64" in text  # 84 parameters of 8 bytes
    assert f"{7 * 2 * (12 * 2 + 12 * 3)} FLOPs" in text


@pytest.mark.parametrize(
    ("hidden_size", "memory"),
    [
        (1, "32 B"),
        (127, "254 KiB"),
        (10**4, "1.49 GiB"),
        (10**6, "14.55 TiB"),
        (10**8, "142.1 PiB"),
        (3 * 10**8, "1,279 PiB"),
        (10**170, "1.421e+326 PiB"),  # more than a float can hold
    ],
)
def test_memory_is_given_in_the_largest_fitting_unit(hidden_size, memory):
    spec = LSTMSpec(1, hidden_size, bias=False)  # 4 · H · (1 + H) parameters of 4 bytes
    assert f"  memory      {memory} as float32\n" in spec.describe()
