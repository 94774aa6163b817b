"""The work of an LSTM is counted from its arguments, and the limits are applied to it as the model says."""

import math
from types import SimpleNamespace

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


@given(specs(), st.integers(1, 50), st.integers(1, 9), st.sampled_from(list(roofline.DTYPES)))
def test_the_parts_do_what_the_whole_does(spec, seq_len, batch_size, precision):
    whole = lstm_work(spec, seq_len, batch_size, precision)
    parts = input_work(spec, seq_len, batch_size, precision) + recurrent_work(spec, seq_len, batch_size, precision)
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


def test_operations_and_bytes_are_added():
    assert Work(1, 20) + Work(300, 4000) == Work(301, 4020)


@pytest.mark.parametrize("count", [recurrent_work, input_work, lstm_work])
def test_without_a_batch_size_one_sequence_runs_in_float32(count):
    assert count(LSTMSpec(2, 3), 5) == count(LSTMSpec(2, 3), 5, 1, "float32")


@pytest.mark.parametrize("count", [recurrent_work, input_work, lstm_work])
def test_an_unknown_precision_is_refused(count):
    with pytest.raises(ValueError, match=r"^precision must be one of 'float32', 'bfloat16', 'int8', got 'float16'$"):
        count(LSTMSpec(2, 3), 4, 1, "float16")


def test_the_lower_of_two_limits_holds():
    assert ROOF.ridge() == 2
    assert [ROOF.attainable(intensity) for intensity in (0.5, 2, 4)] == [25, 100, 100]
    assert [ROOF.binds(Work(flops, 10)) for flops in (10, 20, 30)] == ["bandwidth", "compute", "compute"]
    assert [ROOF.least_seconds(Work(flops, 10)) for flops in (10, 20, 40)] == [0.2, 0.2, 0.4]


def test_every_precision_has_its_own_peak():
    roof = Roofline({"float32": 100.0, "bfloat16": None, "int8": 400.0}, 10.0, cache_bandwidth=50.0, cache_bytes=1)
    assert [roof.binds(Work(40, 10), precision) for precision in ("float32", "int8")] == ["compute", "bandwidth"]
    assert roof.binds(Work(100, 10), "int8") == "compute"
    assert [roof.least_seconds(Work(1000, 10), precision) for precision in ("float32", "int8")] == [10, 2.5]
    with pytest.raises(ValueError, match=r"^no peak was measured in bfloat16; there is one in float32, int8$"):
        roof.ridge("bfloat16")


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


@pytest.fixture
def timed(monkeypatch):
    """What is timed, in place of the timing: statement, tensors, threads, rounds; each takes half a second."""
    calls = []
    monkeypatch.setattr(roofline, "_best", lambda *call: calls.append(call) or 0.5)
    return calls


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(("device", "sizes"), [("cpu", [256, 512, 1024]), ("meta", [1024, 2048, 4096])])
def test_the_best_product_counts_in_bfloat16_too_where_the_hardware_has_it(there, device, sizes, timed, monkeypatch):
    monkeypatch.setattr(roofline, "has_bfloat16", lambda _: there)
    roof = measure_roofline(device, num_threads=3, cache_bytes=12, memory_bytes=12, rounds=7)
    best = 2 * sizes[-1] ** 3 / 0.5  # a multiplication and an addition for each pair
    assert roof.gemm_flops == {"float32": best, "bfloat16": best if there else None}
    products = [(tensors["a"].dtype, len(tensors["a"]), *how) for _, tensors, *how in timed if "c" in tensors]
    dtypes = [torch.float32, *[torch.bfloat16] * there]
    assert products == [(dtype, size, 3, 7) for dtype in dtypes for size in sizes]
    held = [value for _, names, *_ in timed for value in names.values() if isinstance(value, torch.Tensor)]
    assert {tensor.device.type for tensor in held} == {device}


@pytest.mark.parametrize("there", [True, False])
def test_on_a_cpu_the_product_of_onednn_counts_where_it_is_the_faster_one(there, monkeypatch):
    tried = []

    def best(statement, names, *how):
        tried.append((statement, names.get("x", names.get("a")).is_mkldnn, *how))
        return 0.25 if "x" in names else 0.5

    monkeypatch.setattr(roofline, "_best", best)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: there)
    cpu = torch.device("cpu")
    assert roofline._gemm(cpu, 4, "float32", 3, 7) == 2 * 4**3 / (0.25 if there else 0.5)
    assert roofline._gemm(cpu, 4, "bfloat16", 3, 7) == 2 * 4**3 / 0.5  # torch.mm is oneDNN's there
    mm = ("torch.mm(a, b, out=c)", False, 3, 7)
    assert tried == [mm, *[("linear(x, w)", True, 3, 7)] * there, mm]


def test_the_product_of_onednn_is_the_same_product():
    names = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(roofline, "_best", lambda _, given, *__: names.update(given) or 1.0)
        roofline._gemm(torch.device("cpu"), 4, "float32", 1, 1)
    assert ("linear" in names) == torch.backends.mkldnn.is_available()
    if "linear" in names:
        found = names["linear"](names["x"], names["w"]).to_dense()
        torch.testing.assert_close(found, names["a"] @ names["b"].T)


def test_memory_takes_fewer_rounds_than_a_cache_and_a_small_array_more_passes(timed):
    measure_roofline("meta", memory_bytes=2**23, cache_bytes=1200)
    measure_roofline("meta", memory_bytes=4, cache_bytes=4, rounds=3)  # six numbers have a half and a third
    shapes = [(*tensors["w"].shape, *how) for _, tensors, *how in timed if "w" in tensors]  # passes, numbers
    assert shapes == [(1, 2**21, 1, 5), (2**22 // 1200, 300, 1, 15), *[(2**20, 6, 1, 3)] * 2]


@pytest.mark.parametrize("way", ["w", "a", "p"], ids=["read", "copy", "triad"])
def test_every_number_that_is_read_or_written_counts_four_bytes(way, monkeypatch):
    moved = []

    def best(_, tensors, *__):
        moved.extend(4 * tensor.numel() for tensor in tensors.values() if way in tensors)
        return 0.5 if way in tensors else math.inf

    monkeypatch.setattr(roofline, "_best", best)
    assert roofline._bandwidth(torch.device("cpu"), 1200, 1, 1) == sum(moved) / 0.5


@pytest.mark.parametrize(("first", "calls"), [(0.0005, 4), (1.0, 1)])
def test_the_fastest_of_rounds_of_two_milliseconds_counts(first, calls, monkeypatch):
    numbers, seconds = [], iter([first, 0.3, 0.1, 0.2])

    def timeit(number):
        numbers.append(number)
        return SimpleNamespace(mean=next(seconds))

    monkeypatch.setattr(roofline, "Timer", lambda *_, **__: SimpleNamespace(timeit=timeit))
    assert roofline._best("pass", {}, 1, rounds=3) == 0.1
    assert numbers == [1, calls, calls, calls]


def test_the_statement_is_run_with_its_names_and_threads():
    seen = set()
    roofline._best("seen.add(torch.get_num_threads())", {"seen": seen}, num_threads=2, rounds=1)
    assert seen == {2}


def test_bfloat16_is_looked_up(monkeypatch):
    for abilities, there in (({"amx_bf16": True}, True), ({"avx512_bf16": False}, False), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda abilities=abilities: abilities)
        assert has_bfloat16() is there
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert has_bfloat16("cuda")
    assert not has_bfloat16("mps")
