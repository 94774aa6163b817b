"""The work of an LSTM is counted from its arguments, and the limits are applied to it as the model says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import specs

from lstm_utils import LSTMSpec, roofline
from lstm_utils.roofline import (
    Roofline,
    Work,
    has_bfloat16,
    input_work,
    lstm_work,
    measure_roofline,
    recurrent_work,
)

ROOF = Roofline({"float32": 100.0, "bfloat16": None}, bandwidth=10.0, cache_bandwidth=50.0, cache_bytes=1)


@given(specs(), st.integers(1, 50), st.integers(1, 9))
def test_the_parts_do_what_the_whole_does(spec, seq_len, batch_size):
    whole = lstm_work(spec, seq_len, batch_size)
    parts = input_work(spec, seq_len, batch_size) + recurrent_work(spec, seq_len, batch_size)
    assert whole == parts
    assert whole.flops == spec.flops(seq_len, batch_size)


@given(specs(), st.integers(1, 50), st.integers(1, 9))
def test_the_recurrent_product_does_half_an_operation_a_byte_and_sequence(spec, seq_len, batch_size):
    assert recurrent_work(spec, seq_len, batch_size).intensity == batch_size / 2
    assert recurrent_work(spec, seq_len, batch_size, "bfloat16").intensity == batch_size
    assert recurrent_work(spec, seq_len, batch_size, "int8").intensity == 2 * batch_size


def test_counted_by_hand():
    # One layer: W_ih 12 × 2, W_hh 12 × 3; input and output are 2 and 3 wide.
    spec = LSTMSpec(2, 3)
    assert recurrent_work(spec, 5, 7) == Work(flops=2 * 36 * 35, nbytes=4 * 36 * 5)
    assert input_work(spec, 5, 7) == Work(flops=2 * 24 * 35, nbytes=4 * 24 + 4 * (2 + 3) * 35)
    assert input_work(spec, 5, 7, "int8").nbytes == 24 + 4 * (2 + 3) * 35


def test_counted_by_hand_with_layers_directions_and_a_projection():
    spec = LSTMSpec(2, 3, num_layers=2, bidirectional=True, proj_size=1)
    # W_hh 12 × 1 and W_hr 1 × 3 in each of four; W_ih 12 × 2 in each of two, and both layers write and read 2·1.
    assert recurrent_work(spec, 1).nbytes == 4 * 4 * (12 + 3)
    assert input_work(spec, 1).nbytes == 4 * 4 * 24 + 4 * (2 + 2 + 2 + 2)


@pytest.mark.parametrize("count", [recurrent_work, input_work, lstm_work])
def test_an_unknown_precision_is_refused(count):
    with pytest.raises(ValueError, match=r"^precision must be one of 'float32', 'bfloat16', 'int8', got 'float16'$"):
        count(LSTMSpec(2, 3), 4, 1, "float16")


def test_the_lower_of_two_limits_holds():
    assert ROOF.ridge() == 2
    assert [ROOF.attainable(intensity) for intensity in (0.5, 2, 4)] == [25, 100, 100]
    assert [ROOF.binds(Work(flops, 10)) for flops in (10, 20, 30)] == ["bandwidth", "compute", "compute"]
    assert [ROOF.least_seconds(Work(flops, 10)) for flops in (10, 20, 40)] == [0.2, 0.2, 0.4]


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_without_a_peak_the_bandwidth_is_the_only_limit(precision):
    assert ROOF.attainable(1000, precision) == 50_000
    assert ROOF.binds(Work(10_000, 10), precision) == "bandwidth"
    with pytest.raises(ValueError, match=rf"^no peak was measured in {precision}; there is one in float32$"):
        ROOF.ridge(precision)


def test_the_limits_of_this_machine():
    roof = measure_roofline(memory_bytes=2**22, rounds=2, cache_bytes=100)
    assert roof.cache_bytes == 100
    assert all(math.isfinite(x) and x > 1e6 for x in (roof.gemm_flops["float32"], roof.bandwidth, roof.cache_bandwidth))
    assert set(roof.gemm_flops) == {"float32", "bfloat16"}


def test_bfloat16_is_measured_where_the_hardware_has_it(monkeypatch):
    monkeypatch.setattr(roofline, "_gemm", lambda _device, size, precision, *_: size * (2 if "b" in precision else 1))
    monkeypatch.setattr(roofline, "_bandwidth", lambda _device, nbytes, *_: nbytes)
    for there, expected in ((True, 2048), (False, None)):
        monkeypatch.setattr(roofline, "has_bfloat16", lambda _, there=there: there)
        assert measure_roofline("cpu").gemm_flops == {"float32": 1024, "bfloat16": expected}
    assert measure_roofline("cuda").gemm_flops["float32"] == 4096  # a GPU gets larger products


def test_bfloat16_is_looked_up(monkeypatch):
    for abilities, there in (({}, False), ({"avx512_bf16": False}, False), ({"amx_bf16": True}, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda abilities=abilities: abilities)
        assert has_bfloat16() is there
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert has_bfloat16("cuda")
    assert not has_bfloat16("mps")
