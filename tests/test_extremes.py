"""Valid and extreme input: empty, nan, infinite, huge, in half precision. What comes of it is right, or refused.

Right is what another computation gives: PyTorch's own ``nn.LSTM``, or Python's numbers, one at a time.
"""

from __future__ import annotations

import math
import statistics
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_utils import (
    FoldedProjection,
    GradientClipper,
    LengthBucketSampler,
    LSTMSpec,
    ReferenceLSTM,
    checkpointed_lstm,
    diagnose,
    diagnose_ctc,
    gradient_norms,
    init_lstm_,
    last_valid_step,
    lstm_cell,
    masked_mean,
    quantize_lstm,
    run_packed,
    saved_bytes,
    truncated_bptt,
    valid_mask,
)
from lstm_utils.datasets import split_of
from lstm_utils.gradients import NonFiniteGradientError
from lstm_utils.initialization import forget_biases
from lstm_utils.models import ResidualLSTM, pool
from lstm_utils.quantization import error_report
from lstm_utils.regularization import LockedDropout, WeightDrop
from lstm_utils.roofline import lstm_work, recurrent_work
from lstm_utils.spectrum import BANDS, FLOOR_DB, SAMPLE_RATE, log_mel

T, N, I, H = 5, 3, 2, 4  # noqa: E741
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def with_value(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """An input in which one feature of one row has this value, at a step in the middle."""
    x = torch.randn(T, N, I, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[2, 1, 0] = value
    return x


INPUTS = {
    "nan": with_value(math.nan),
    "inf": with_value(math.inf),
    "-inf": with_value(-math.inf),
    "huge": with_value(1e30),
    "tiny": with_value(1e-42),
    "float64": with_value(1e200, torch.float64),
    "float16": with_value(6e4, torch.float16),
    "bfloat16": with_value(1e38, torch.bfloat16),
    "no rows": torch.ones(T, 0, I),
    "one row and step": torch.ones(1, 1, I),
    "no steps": torch.ones(0, N, I),
    "nothing at all": torch.ones(0, 0, I),
}


def windows(lstm: nn.LSTM, x: Tensor) -> Any:
    chunks = list(truncated_bptt(lstm, x, 2))
    return torch.cat([chunk.output for chunk in chunks]), chunks[-1].state


# Other ways to compute what nn.LSTM computes.
WAYS = {
    "run_packed": lambda lstm, x: run_packed(lstm, x, [len(x)] * x.shape[1]),
    "checkpointed_lstm": lambda lstm, x: checkpointed_lstm(lstm, x, segments=min(2, len(x)) or None),
    "checkpointed_lstm by layer": lambda lstm, x: checkpointed_lstm(lstm, x, per_layer=True),
    "truncated_bptt": windows,
    "ReferenceLSTM": lambda lstm, x: reference(lstm)(x),
    "ResidualLSTM": lambda lstm, x: ResidualLSTM.from_lstm(lstm, residual=False)(x),
    "WeightDrop": lambda lstm, x: WeightDrop(lstm).eval()(x),
    "LockedDropout": lambda lstm, x: lstm(LockedDropout().eval()(x)),
    "FoldedProjection": lambda lstm, x: FoldedProjection(lstm)(x),
}


def reference(lstm: nn.LSTM) -> ReferenceLSTM:
    same = ReferenceLSTM(**LSTMSpec.from_module(lstm).as_dict()).to(lstm.weight_ih_l0.dtype)
    same.load_state_dict(lstm.state_dict())
    return same


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_what_pytorch_gives(way, kind):
    x = INPUTS[kind]
    torch.manual_seed(1)
    lstm = nn.LSTM(I, H, 2, proj_size=2 if way == "FoldedProjection" else 0).to(x.dtype)
    if not len(x) or (way == "run_packed" and not x.shape[1]):
        words = (
            r"no steps|larger than 0|must be at least 1|at most T = 0|one integer for each sequence|larger than zero"
        )
        with pytest.raises((ValueError, RuntimeError), match=words):
            WAYS[way](lstm, x)
        return
    output, states = lstm(x)
    found, found_states = WAYS[way](lstm, x)
    for got, wanted in zip((found, *found_states), (output, *states), strict=True):
        tolerance = TOLERANCE[x.dtype]
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance, equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_one_row_does_not_reach_another(value):
    """In all ways at once, through ReferenceLSTM: only what comes after the value, in its own row, may have changed."""
    lstm = reference(nn.LSTM(I, H))
    output, plain = lstm(with_value(value))[0], lstm(with_value(0.0))[0]
    torch.testing.assert_close(output[:, [0, 2]], plain[:, [0, 2]])
    torch.testing.assert_close(output[:2], plain[:2])
    assert bool(output[2:, 1].isnan().all()) == math.isnan(value)


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -1e30])
def test_a_cell_gives_what_pytorch_s_cell_gives(rows, value):
    cell, x = nn.LSTMCell(I, H), torch.full((rows, I), value)
    h, c = torch.randn(rows, H), torch.randn(rows, H)
    x_gates = nn.functional.linear(x, cell.weight_ih, cell.bias_ih + cell.bias_hh)
    torch.testing.assert_close(lstm_cell(x_gates, h, c, cell.weight_hh), cell(x, (h, c)), equal_nan=True)


# --- sequences of different lengths -----------------------------------------------------------------------------------

LENGTHS = [3, 1, 4]
# What stands at real steps, and in the padding, which nothing may read.
VALUES = {
    "nan in the padding": (lambda t: t + 1.0, math.nan, torch.float32),
    "inf in the padding": (lambda t: t + 1.0, math.inf, torch.float32),
    "nan at a real step": (lambda t: math.nan if t == 2 else 1.0, 0.0, torch.float32),
    "inf at a real step": (lambda t: math.inf if t == 0 else 1.0, 0.0, torch.float32),
    "-inf alone": (lambda _: -math.inf, 0.0, torch.float32),
    "huge": (lambda t: -(10.0 ** (30 + t)), 3e38, torch.float32),
    "a sum beyond float16": (lambda t: 6e4 - 32 * t, 6e4, torch.float16),
    "a sum beyond bfloat16's steps": (lambda t: 2.0**t, 1e38, torch.bfloat16),
    "a sum beyond int64": (lambda t: 2**62 + 2**40 * t, 2**62, torch.int64),
    "a sum beyond int8": (lambda t: 120 + t, 127, torch.int8),
}


def python_mean(values: list[float]) -> float:
    return float(statistics.mean(map(Fraction, values))) if all(map(math.isfinite, values)) else math.fsum(values)


def python_max(values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(
    ("reduce", "wanted"),
    [
        (lambda x, mask: masked_mean(x, mask, dim=1), python_mean),
        (lambda x, _: pool(x, LENGTHS, "mean", bidirectional=False), python_mean),
        (lambda x, _: pool(x, LENGTHS, "max", bidirectional=False), python_max),
        (lambda x, _: pool(x, LENGTHS, "last", bidirectional=False), lambda values: values[-1]),
        (
            lambda x, _: last_valid_step(x, LENGTHS, batch_first=True, bidirectional=False),
            lambda values: values[-1],
        ),
    ],
    ids=["masked_mean", "pool mean", "pool max", "pool last", "last_valid_step"],
)
def test_real_steps_alone_count_and_none_overflows(reduce, wanted, kind):
    of_step, padding, dtype = VALUES[kind]
    rows = [[of_step(t) if t < length else padding for t in range(T)] for length in LENGTHS]
    x = torch.tensor(rows, dtype=dtype)[:, :, None]
    found = reduce(x, valid_mask(LENGTHS, T, batch_first=True))
    real = [row[:length] for row, length in zip(x[..., 0].tolist(), LENGTHS, strict=True)]
    for got, values in zip(found.flatten().tolist(), real, strict=True):
        rounding = torch.finfo(dtype).eps if dtype.is_floating_point else 1e-7
        assert got == pytest.approx(wanted(values), rel=rounding, nan_ok=True)


def test_a_mean_over_a_thousand_steps_of_float16_is_right():
    values, mask = torch.full((1, 1000), 100.0, dtype=torch.float16), torch.ones(1, 1000, dtype=torch.bool)
    assert masked_mean(values, mask) == 100
    assert masked_mean(values, mask).dtype == torch.float16
    assert pool(values[..., None], [1000], "mean", bidirectional=False).item() == 100


def test_no_rows_have_no_mean():
    mask = torch.ones(0, T, dtype=torch.bool)
    assert masked_mean(torch.ones(0, T), mask, dim=1).shape == (0,)
    with pytest.raises(ValueError, match="no real step to average over"):
        masked_mean(torch.ones(0, T), mask)


def test_lengths_of_every_type_are_taken_as_they_are():
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        assert valid_mask(torch.tensor([127], dtype=dtype), batch_first=True).sum() == 127
    with pytest.raises(ValueError, match=r"smaller than 2\*\*63, got 9223372036854775813"):
        valid_mask(np.array([2**63 + 5], dtype=np.uint64), batch_first=True)
    sampler = LengthBucketSampler([2**62, 1, 2**62, 2], 10**6, seed=10**40)
    assert [sorted(batch) for batch in sampler] == [[0, 1, 2, 3]]


def test_a_window_longer_than_any_number_of_steps_is_the_whole_sequence():
    lstm, x = nn.LSTM(I, H), torch.randn(T, N, I)
    [chunk] = truncated_bptt(lstm, x, 2**70)
    torch.testing.assert_close(chunk.output, lstm(x)[0])


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INPUTS)
def test_a_feature_is_dropped_in_all_steps_or_doubled(kind):
    x = INPUTS[kind]
    torch.manual_seed(0)
    found = LockedDropout(0.5)(x)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    for row in range(x.shape[1]):
        for feature in range(I):
            before, after = x[:, row, feature], found[:, row, feature]
            finite = before.isfinite()
            assert bool((after[finite] == 0).all()) or torch.equal(after[finite], (2 * before)[finite])
            assert not bool(after[~finite].isfinite().any())


def test_what_cannot_be_scaled_is_not_dropped():
    packed = PackedSequence(torch.ones(3, 2, dtype=torch.long), torch.tensor([2, 1]))
    for x in (torch.ones(2, 3, dtype=torch.long), packed, torch.ones(2, 3, dtype=torch.bool)):
        with pytest.raises(TypeError, match=r"x must hold floats, .* got torch\.(int64|bool)"):
            LockedDropout()(x)


# --- gradients --------------------------------------------------------------------------------------------------------


def of_gradient(values: list[Any], dtype: torch.dtype) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(1, len(values), dtype=dtype))
    module.weight.grad = torch.tensor([values], dtype=dtype)
    return module


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([3e38, -3e38], torch.float32),
        ([1e-30, 2e-30], torch.float32),
        ([6e4, 6e4, 6e4], torch.float16),
        ([3e-5, 0.0], torch.float16),
        ([1e38, 2e38], torch.bfloat16),
        ([1e300, -1e300], torch.float64),
        ([3 + 4j, -1j], torch.complex64),
        ([0.0], torch.float32),
        ([math.nan, 1.0], torch.float32),
        ([math.inf, 1.0], torch.float32),
        ([-math.inf, 1.0], torch.float64),
    ],
    ids=str,
)
def test_norms_are_those_of_python_and_clipping_reaches_the_threshold_or_refuses(values, dtype):
    module = of_gradient(values, dtype)
    wanted = math.hypot(*(abs(value) for value in module.weight.grad.flatten().tolist()))
    assert gradient_norms(module)["weight"] == pytest.approx(wanted, rel=1e-9, nan_ok=True)
    clipper = GradientClipper(module, 0.5)
    if not math.isfinite(wanted):
        before = module.weight.grad.clone()
        with pytest.raises(NonFiniteGradientError, match="the gradient of weight is not finite"):
            clipper.clip()
        torch.testing.assert_close(module.weight.grad, before, equal_nan=True)
        return
    assert clipper.clip()
    assert gradient_norms(module)["weight"] == pytest.approx(min(wanted, 0.5), rel=1e-2)


def test_gradients_without_entries_and_of_few_rows_have_norms_too():
    assert gradient_norms(of_gradient([], torch.float32)) == {"weight": 0.0}
    embedding = nn.Embedding(5, 2, sparse=True)
    (3 * embedding(torch.tensor([1, 1, 4]))).sum().backward()
    assert gradient_norms(embedding)["weight"] == pytest.approx(math.hypot(6, 6, 3, 3))
    assert GradientClipper(embedding, 1.0).clip()
    assert gradient_norms(embedding)["weight"] == pytest.approx(1.0, rel=1e-3)


# --- initialization, quantization, counts, memory, audio, words -------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_initial_weights_are_finite_in_every_precision(dtype):
    lstm = init_lstm_(nn.LSTM(I, H, 2).to(dtype), forget_bias="chrono", max_lag=2**60)
    assert all(bool(parameter.isfinite().all()) for parameter in lstm.parameters())
    assert all(bool((bias >= 0).all() and (bias <= math.log(2**60)).all()) for bias in forget_biases(lstm).values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e5])
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_weights_without_a_quantized_counterpart_are_refused(value, dtype):
    lstm = nn.LSTM(I, H).eval()
    with torch.no_grad():
        lstm.weight_hh_l0[1, 2] = value
    if math.isfinite(value) and dtype == torch.qint8:  # it has its own scale
        assert math.isfinite(error_report(lstm, quantize_lstm(lstm, dtype), torch.randn(T, N, I)).relative)
        return
    with pytest.raises(
        ValueError, match=rf"weight_hh_l0 of the model itself must be finite.*got {value:g}".replace("+", r"\+")
    ):
        quantize_lstm(lstm, dtype)


def test_layers_that_are_quantized_on_the_way_are_looked_at_too():
    model = nn.ModuleDict({"lstm": nn.LSTM(I, H), "head": nn.Linear(H, 1)})
    with torch.no_grad():
        model["head"].bias[0] = math.nan
    quantize_lstm(model)
    with pytest.raises(ValueError, match="bias of 'head' must be finite, got nan"):
        quantize_lstm(model, also=(nn.Linear,))


def test_an_error_report_has_nan_and_no_difference_is_none():
    lstm, x = nn.LSTM(I, H).eval(), torch.ones(T, N, I)
    assert math.isnan(error_report(lstm, lstm, math.nan * x).max_abs)
    for parameter in lstm.parameters():
        nn.init.zeros_(parameter)
    report = error_report(lstm, lstm, x)  # the results are all 0, and so is their spread
    assert (report.max_abs, report.mean_abs, report.relative) == (0, 0, 0)
    with pytest.raises(ValueError, match="there is nothing to compare"):
        error_report(lstm, lstm, x[:, :0])


def test_counts_are_exact_beyond_every_float():
    width = 10**200
    spec = LSTMSpec(width, width, 3, bias=False)
    assert spec.num_parameters() == 3 * 4 * width * 2 * width
    assert spec.nbytes(torch.float16) == 2 * spec.num_parameters()
    assert spec.flops(10**50, 10**60) == 2 * spec.num_parameters() * 10**110
    assert lstm_work(spec, 10**50, 10**60).flops == spec.flops(10**50, 10**60)
    assert recurrent_work(spec, 10**50).nbytes == 3 * 4 * width * width * 4 * 10**50
    assert "8.527e+386 PiB as float32" in spec.describe()
    assert spec.flops(T, 0) == 0


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("size", [0, 1, 100])
def test_bytes_are_counted_on_every_device(device, dtype, size):
    x = torch.ones(size, device=device, dtype=dtype, requires_grad=True)

    def call():
        return x.exp() * x.sin()  # keeps x, x.exp() and x.sin()

    assert saved_bytes(call) == 3 * size * dtype.itemsize
    assert saved_bytes(call, x) == 2 * size * dtype.itemsize


def spectrogram(waveform: np.ndarray) -> np.ndarray:
    """The same by NumPy, in float64, window by window."""
    samples = np.pad(waveform.astype(np.float64), 512, mode="reflect")
    window = np.zeros(1024)
    window[(1024 - 551) // 2 :][:551] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(551) / 551)
    power = [np.abs(np.fft.rfft(window * samples[at : at + 1024])) ** 2 for at in range(0, len(waveform) + 1, 441)]
    mel = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), BANDS + 2)
    low, middle, high = (700 * (10 ** (mel[at : at + BANDS] / 2595) - 1) for at in range(3))
    at = np.linspace(0, SAMPLE_RATE / 2, 513)[:, None]
    filters = np.clip(np.minimum((at - low) / (middle - low), (high - at) / (high - middle)), 0, None)
    return 10 * np.log10(np.clip(np.array(power) @ filters, 10 ** (FLOOR_DB / 10), None))


@pytest.mark.parametrize("samples", [513, 1024, 5000])
@pytest.mark.parametrize("loudness", [0.0, 1e-20, 1.0, 1e6])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_spectrogram_is_that_of_numpy(samples, loudness, dtype):
    if dtype == torch.float16:
        loudness = min(loudness, 1e4)
    generator = torch.Generator().manual_seed(0)
    waveform = (loudness * torch.randn(samples, generator=generator)).to(dtype)
    found = log_mel(waveform)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), spectrogram(waveform.double().numpy()), atol=0.05)
    if loudness in (0, 1e-20):
        assert bool((found == FLOOR_DB).all())


def test_every_text_has_a_split():
    texts = ["", "\0", "\ud800", "é", "a" * 10**6, "walk"]
    assert {split_of(text) for text in texts} <= {"train", "validation", "test"}
    assert split_of("a" * 10**6) == split_of("aaaa")


# --- diagnoses --------------------------------------------------------------------------------------------------------


def log_probs(dtype: torch.dtype, classes: int = 29) -> Tensor:
    logits = 3 * torch.randn(50, 2, classes, generator=torch.Generator().manual_seed(0))
    return logits.log_softmax(-1).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("classes", [5, 29, 5000])
def test_log_probabilities_are_sound_in_every_precision(dtype, classes):
    targets = torch.tensor([[1, 2], [3, 4]])
    assert not diagnose_ctc(log_probs(dtype, classes), targets, [50, 50], [2, 1]).findings
    assert diagnose_ctc(log_probs(dtype, classes) + 0.5, targets, [50, 50], [2, 1]).findings


def test_certain_log_probabilities_are_sound():
    certain = torch.full((4, 2, 5), -math.inf)
    certain[:, :, 2] = 0
    assert not diagnose_ctc(certain, torch.tensor([[1, 2], [3, 4]]), [4, 4], [2, 1]).findings


@pytest.mark.parametrize("value", [0.0, 1000.0, 1e38, math.inf, -math.inf, math.nan])
def test_what_is_no_log_probability_is_found_however_large(value):
    [found] = diagnose_ctc(torch.full((4, 2, 5), value), torch.tensor([[1, 2], [3, 4]]), [4, 4], [2, 1]).findings
    assert "sum to " in found.seen


def test_a_diagnosis_of_a_batch_that_shows_nothing_does_not_call_it_sound():
    lstm = nn.LSTM(I, H)
    assert diagnose(lstm, torch.ones(T, 0, I)).unchecked
    assert diagnose(lstm, math.nan * torch.ones(T, N, I)).findings
    with pytest.raises(RuntimeError, match="larger than 0"):
        diagnose(lstm, torch.ones(0, N, I))
