"""What is quantized and what is refused, against the float model; sizes on disk; and the report of the error."""

import copy
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from strategies import build, calls, specs
from torch import nn
from torch.ao import quantization as ao
from torch.ao.nn.quantized import dynamic
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_utils import quantization
from lstm_utils.projection import FoldedProjection
from lstm_utils.quantization import ErrorReport, NothingQuantizedError, error_report, quantize_lstm, saved_size
from lstm_utils.trees import tensors

ENGINES = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
HAS_FLOAT16 = torch.backends.quantized.engine in ("x86", "fbgemm")
DTYPES = [torch.qint8, *([torch.float16] if HAS_FLOAT16 else [])]


@pytest.fixture
def engine():
    """Sets torch.backends.quantized.engine, and puts back what it was."""
    before = torch.backends.quantized.engine

    def use(name):
        torch.backends.quantized.engine = name

    yield use
    torch.backends.quantized.engine = before


class Tagger(nn.Module):
    """An LSTM somewhere in the middle, and other modules around it."""

    def __init__(self):
        super().__init__()
        self.embed, self.drop = nn.Embedding(7, 5), nn.Dropout(0.5)
        self.encoder = nn.ModuleDict({"lstm": nn.LSTM(5, 6, 2, batch_first=True, dropout=0.5)})
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        return self.head(self.encoder["lstm"](self.drop(self.embed(tokens)))[0])


def quantized_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, dynamic.LSTM)]


def quantized_by_torch(model):
    with pytest.warns(DeprecationWarning, match=r"torch\.ao\.quantization is deprecated"):
        return ao.quantize_dynamic(model, {nn.LSTM})


# What is quantized ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@given(call=calls(specs(bias=True, proj_size=0), layouts=("batched", "sorted", "unsorted")))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_results_are_those_of_the_float_module_but_for_rounding(dtype, call):
    lstm, (x, hx) = build(call.spec).eval(), call.tensors(torch.float32)
    with warnings.catch_warnings(action="ignore"):  # torch says again that dropout does nothing in a single layer
        quantized = quantize_lstm(lstm, dtype)
    with torch.no_grad():
        expected, found = lstm(call.pack(x), hx), quantized(call.pack(x), hx)
    assert type(found[0]) is type(expected[0])
    if isinstance(found[0], PackedSequence):
        assert all(torch.equal(a, b) for a, b in zip(found[0][1:3], expected[0][1:3], strict=True) if a is not None)
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.1 if dtype == torch.qint8 else 0.005)


def test_a_bare_lstm_is_quantized_as_a_copy_in_eval_mode():
    lstm = nn.LSTM(5, 6, 2, dropout=0.5)
    before = copy.deepcopy(lstm.state_dict())
    quantized = quantize_lstm(lstm)
    assert isinstance(quantized, dynamic.LSTM)
    assert not quantized.training
    assert lstm.training
    assert not hasattr(lstm, "qconfig")
    torch.testing.assert_close(lstm.state_dict(), before, rtol=0, atol=0)


def test_weights_are_int8_with_one_scale_or_one_for_each_row():
    lstm = nn.LSTM(5, 6)
    with torch.no_grad():
        lstm.weight_hh_l0[3] *= 100
    whole, rows = (quantize_lstm(lstm, per_channel=per_channel).get_weight() for per_channel in (False, True))
    for name, row_wise in rows.items():
        weight = getattr(lstm, name).detach()
        assert whole[name].dtype == row_wise.dtype == torch.qint8
        assert whole[name].q_scale() == pytest.approx(weight.abs().max().item() / 127.5)
        scales = row_wise.q_per_channel_scales().float()
        torch.testing.assert_close(scales, weight.abs().amax(1) / 127.5)
        assert ((row_wise.dequantize() - weight).abs() <= 0.51 * scales[:, None]).all()
    x = torch.randn(9, 4, 5)
    assert error_report(lstm.eval(), quantize_lstm(lstm, per_channel=True), x).mean_abs < (
        error_report(lstm, quantize_lstm(lstm), x).mean_abs / 2
    )


@pytest.mark.parametrize("name", [engine for engine in ("x86", "fbgemm") if engine in ENGINES])
def test_both_engines_of_x86_have_float16(engine, name):
    engine(name)
    lstm, x = nn.LSTM(5, 6).eval(), torch.randn(9, 4, 5)
    assert 0 < error_report(lstm, quantize_lstm(lstm, torch.float16), x).max_abs < 0.01


@pytest.mark.skipif(not HAS_FLOAT16, reason="the engine of this machine has no float16")
def test_float16_computes_with_rounded_weights_in_float32():
    lstm = nn.LSTM(5, 6).eval()
    rounded = copy.deepcopy(lstm)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            parameter.copy_(parameter.half() if "weight" in name else parameter)
    x, quantized = torch.randn(9, 4, 5), quantize_lstm(lstm, torch.float16)
    assert error_report(rounded, quantized, x).max_abs < 1e-5 < error_report(lstm, quantized, x).max_abs


def test_every_lstm_of_a_model_is_quantized_and_other_types_only_when_asked_for():
    model = Tagger()
    alone, both = quantize_lstm(model), quantize_lstm(model, also=(nn.Linear,))
    assert quantized_names(alone) == quantized_names(both) == ["encoder.lstm"]
    assert isinstance(alone.head, nn.Linear)
    assert isinstance(both.head, dynamic.Linear)
    assert not any(module.training for module in alone.modules())
    assert isinstance(model.encoder["lstm"], nn.LSTM)
    tokens = torch.randint(7, (4, 9))
    assert 0 < error_report(model.eval(), alone, tokens).max_abs < 0.05
    assert 0 < error_report(model, both, tokens).max_abs < 0.05


@pytest.mark.parametrize("kind", quantization.OTHERS)
def test_every_other_type_that_is_offered_is_quantized_too(kind):
    found = quantize_lstm(nn.Sequential(nn.LSTM(5, 6), kind(6, 6)), also=(kind,))
    assert type(found[1]).__module__.startswith("torch.ao.nn.quantized.dynamic")


def test_a_shared_lstm_stays_shared_under_all_its_names():
    model = nn.Module()
    model.first = model.second = nn.LSTM(5, 6)
    model.inside = nn.ModuleList([model.first, nn.LSTM(6, 6)])
    found = quantize_lstm(model)
    assert found.first is found.second is found.inside[0] is not found.inside[1]
    assert quantized_names(found) == ["first", "inside.1"]


def test_hooks_are_kept():
    lstm, seen = nn.LSTM(5, 6), []
    lstm.register_forward_hook(lambda *_: seen.append("after"))
    lstm.register_forward_pre_hook(lambda *_: seen.append("before"))
    quantize_lstm(lstm)(torch.randn(2, 1, 5))
    assert seen == ["before", "after"]


def test_a_qconfig_that_was_set_before_changes_nothing():
    lstm = nn.LSTM(5, 6)
    lstm.qconfig = ao.get_default_qconfig(ENGINES[0])
    assert quantize_lstm(lstm).get_weight()["weight_hh_l0"].qscheme() == torch.per_tensor_affine


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_engine_of_this_build_agrees_with_the_float_module(engine, name, per_channel):
    engine(name)
    lstm, x = nn.LSTM(12, 16, 2, bidirectional=True).eval(), torch.randn(9, 4, 12)
    assert 0 < error_report(lstm, quantize_lstm(lstm, per_channel=per_channel), x).max_abs < 0.05


def test_nothing_is_said_about_deprecation():
    try:
        torch.set_warn_always(True)  # the one of quantize_per_tensor is said to whoever comes first
        quantize_lstm(nn.LSTM(5, 6))  # a warning would be an error here
    finally:
        torch.set_warn_always(False)


@pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")
def test_another_warning_is_passed_on():
    lstm = nn.LSTM(5, 6, dropout=0.5)
    with pytest.warns(UserWarning, match="dropout option adds dropout"):
        quantize_lstm(lstm)


def test_torch_itself_passes_over_what_is_handled_here():
    class Mine(nn.LSTM):
        pass

    twice = nn.Module()
    twice.first = twice.second = nn.LSTM(5, 6)
    bare, subclass, found = map(quantized_by_torch, (nn.LSTM(5, 6), nn.Sequential(Mine(5, 6)), twice))
    assert [type(bare), type(subclass[0]), type(found.second)] == [nn.LSTM, Mine, nn.LSTM]
    assert isinstance(found.first, dynamic.LSTM)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_a_projection_goes_by_way_of_folding_and_no_biases_by_way_of_zeros():
    projected, x = nn.LSTM(5, 6, 2, proj_size=3).eval(), torch.randn(9, 4, 5)
    assert error_report(projected, quantize_lstm(FoldedProjection(projected)), x).max_abs < 0.05
    bare, biased = nn.LSTM(5, 6, bias=False).eval(), nn.LSTM(5, 6)
    assert {"bias" in name for name in biased.load_state_dict(bare.state_dict(), strict=False).missing_keys} == {True}
    for name, parameter in biased.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
    assert error_report(bare, quantize_lstm(biased), x).max_abs < 0.05


# What is refused -----------------------------------------------------------------------------------------------------


class Subclass(nn.LSTM):
    pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 3), r"^there is no nn\.LSTM in Linear, only Linear; quantize the model that holds the nn\.LSTM$"),
        (nn.Sequential(nn.GRU(2, 3), nn.Dropout()), r"in Sequential, only Dropout, GRU; quantize the model"),
        (nn.LSTMCell(2, 3), r"in LSTMCell, only LSTMCell;"),
        (quantize_lstm(nn.Sequential(nn.LSTM(2, 3))), r"'0' is quantized already$"),
        (quantize_lstm(nn.Sequential(nn.LSTM(2, 3), nn.LSTM(3, 3))), r"'0', '1' is quantized already$"),
        (quantize_lstm(nn.LSTM(2, 3)), r"the model itself is quantized already$"),
    ],
)
def test_a_model_without_an_lstm_is_an_error_that_says_what_it_holds(model, message):
    with pytest.raises(NothingQuantizedError, match=message):
        quantize_lstm(model)


def test_an_lstm_that_torch_left_alone_is_an_error(monkeypatch):
    monkeypatch.setattr(ao, "swap_module", lambda module, *_: module)
    with pytest.raises(NothingQuantizedError, match=r"left '1' as it was, without an error$"):
        quantize_lstm(nn.Sequential(nn.Identity(), nn.LSTM(2, 3)))


@pytest.mark.parametrize(
    ("lstm", "message"),
    [
        (
            nn.LSTM(2, 6, proj_size=3),
            r"^'0' has proj_size=3, .*FoldedProjection\(lstm\) computes the same without one$",
        ),
        (nn.LSTM(2, 6, bias=False), r"^'0' has bias=False, .* strict=False and set its biases to 0$"),
        (Subclass(2, 6), r"^'0' is of type Subclass, and only nn\.LSTM itself is quantized; copy its weights"),
        (nn.LSTM(2, 6).double(), r"^'0' has parameters of float64 on cpu, and needs float32 on cpu: model\.cpu\(\)"),
        (nn.LSTM(2, 6).bfloat16(), r"of bfloat16 on cpu"),
        (nn.LSTM(2, 6, device="meta"), r"of float32 on meta"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused_by_name_before_anything_is_converted(monkeypatch, lstm, message):
    monkeypatch.setattr(quantization.copy, "deepcopy", lambda _: pytest.fail("the model was copied already"))
    with pytest.raises(ValueError, match=message) as refusal:
        quantize_lstm(nn.Sequential(lstm, nn.LSTM(2, 3)))
    assert not isinstance(refusal.value, NothingQuantizedError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.int8}, r"got torch\.int8; torch\.qint8 is what you may have meant$"),
        ({"dtype": torch.bfloat16}, r"got torch\.bfloat16; model\.bfloat16\(\) is"),
        ({"dtype": torch.float32}, r"^dtype must be torch\.qint8 or torch\.float16, got torch\.float32$"),
        ({"also": (nn.Conv1d, nn.Linear)}, r"^also takes types of Linear, GRU, .*; got <class '.*Conv1d'>$"),
        ({"also": (nn.Conv1d, nn.RNN)}, r"got <class '.*Conv1d'>, <class '.*RNN'>$"),
    ],
)
def test_arguments_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize_lstm(nn.LSTM(2, 3), **arguments)


@pytest.mark.skipif(not HAS_FLOAT16, reason="the engine of this machine has no float16")
def test_a_scale_for_each_row_is_for_int8_alone():
    with pytest.raises(ValueError, match=r"per_channel=True needs dtype=torch\.qint8.* got torch\.float16$"):
        quantize_lstm(nn.LSTM(2, 3), torch.float16, per_channel=True)


@pytest.mark.parametrize(
    ("supported", "choice"), [(["qnnpack", "x"], "'qnnpack', 'x'$"), ([], "none, so another build is")]
)
def test_a_build_without_an_engine_is_an_error_that_names_the_choice(monkeypatch, supported, choice):
    monkeypatch.setattr(torch.backends, "quantized", SimpleNamespace(engine="none", supported_engines=supported))
    with pytest.raises(RuntimeError, match=rf"engine is 'none'; this build of torch has {choice}"):
        quantize_lstm(nn.LSTM(2, 3))


def test_an_engine_without_float16_is_an_error(engine):
    engine("qnnpack" if "qnnpack" in ENGINES else "onednn")
    with pytest.raises(ValueError, match=r"needs the engine 'x86' or 'fbgemm', got .*; use torch\.qint8$"):
        quantize_lstm(nn.LSTM(2, 3), torch.float16)


def with_value(module, value):
    with torch.no_grad():
        next(module.parameters())[1, 1] = value
    return module


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name_where_it_would_be_quantized(value):
    sound, wrong = nn.LSTM(5, 6), with_value(nn.Linear(6, 6), value)
    with pytest.raises(ValueError, match=rf"^weight_ih_l0 of '1' must be finite, got {value:g}$"):
        quantize_lstm(nn.Sequential(sound, with_value(nn.LSTM(6, 6), value)))
    with pytest.raises(ValueError, match=rf"^weight of '1' must be finite, got {value:g}$"):
        quantize_lstm(nn.Sequential(sound, wrong), also=(nn.Linear,))
    quantize_lstm(nn.Sequential(sound, wrong))


@pytest.mark.skipif(not HAS_FLOAT16, reason="the engine of this machine has no float16")
def test_a_weight_that_float16_cannot_hold_is_refused():
    quantize_lstm(with_value(nn.LSTM(5, 6), -65504.0), torch.float16)
    with pytest.raises(ValueError, match=r"must be finite, and at most 65504 in size for torch\.float16, got -65505$"):
        quantize_lstm(with_value(nn.LSTM(5, 6), -65505.0), torch.float16)
    quantize_lstm(with_value(nn.LSTM(5, 6), -65505.0))


# Size on disk --------------------------------------------------------------------------------------------------------


def test_the_size_is_that_of_the_file(tmp_path):
    model = Tagger()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert abs(saved_size(model) - (tmp_path / "model.pt").stat().st_size) < 256  # the file holds its own name


@pytest.mark.parametrize("name", ENGINES)
def test_large_int8_weights_take_a_quarter_and_tiny_ones_gain_nothing(engine, name):
    engine(name)
    ratios = {}
    for width in (4, 64, 512):
        lstm = nn.LSTM(width, width)
        ratios[width] = saved_size(lstm) / saved_size(quantize_lstm(lstm))
        rows = saved_size(quantize_lstm(lstm, per_channel=True)) - saved_size(quantize_lstm(lstm))
        assert math.isclose(rows, 2 * 4 * width * 16, abs_tol=1500)
    assert ratios[4] < 1
    assert 3.3 < ratios[64] < 3.7
    assert 3.9 < ratios[512] < 4


# The report ----------------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Returns the same numbers for every input, in nested form."""

    def __init__(self, *values):
        super().__init__()
        self.values = [torch.tensor(value) for value in values]

    def forward(self, *_):
        return self.values[0], {"states": self.values[1:]}


def test_the_three_numbers_by_hand():
    model, other = Constant([0.0, 2.0], [4.0, 6.0]).eval(), Constant([0.0, 1.0], [4.0, 9.0]).eval()
    report = error_report(model, other, torch.zeros(1))
    spread = math.sqrt(5)  # of 0, 2, 4, 6
    assert report == ErrorReport(max_abs=3.0, mean_abs=1.0, relative=pytest.approx(math.sqrt(10 / 4) / spread))
    assert error_report(model, model, torch.zeros(1)) == ErrorReport(0, 0, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(value):
    model, other = Constant([0.0, 2.0], [4.0]).eval(), Constant([0.0, value], [4.0]).eval()
    assert not any(map(math.isfinite, vars(error_report(model, other, torch.zeros(1))).values()))


def test_inputs_follow_the_dtype_of_each_model_and_whole_numbers_stay():
    lstm, x, hx = nn.LSTM(5, 6).eval(), torch.randn(9, 4, 5), (torch.randn(1, 4, 6), torch.randn(1, 4, 6))
    packed = pack_padded_sequence(x, torch.tensor([9, 7, 2, 1]))
    for inputs in (x, (x, hx), {"input": x, "hx": hx}, packed, (packed, hx)):
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            report = error_report(lstm, copy.deepcopy(lstm).to(dtype), inputs)
            assert 0 < report.max_abs < (1e-5 if dtype == torch.float64 else 0.05)
        assert 0 < error_report(lstm, quantize_lstm(lstm), inputs).max_abs < 0.05
    assert 0 < error_report(lstm, quantize_lstm(lstm), x.double()).max_abs < 0.05
    tagger = Tagger().eval()
    assert error_report(tagger, copy.deepcopy(tagger).bfloat16(), torch.randint(7, (4, 9))).relative < 0.05


def test_models_that_cannot_be_compared_are_refused():
    lstm, x = nn.LSTM(5, 6, 2, dropout=0.5), torch.randn(9, 4, 5)
    with pytest.raises(ValueError, match=r"^dropout would be taken for an error: call \.eval\(\) on both models$"):
        error_report(lstm, quantize_lstm(lstm), x)
    with pytest.raises(
        ValueError, match=r"^there is nothing to compare: the float model returns tensors of \[\(0,\), \("
    ):
        error_report(Constant([], []).eval(), Constant([], []).eval(), x)
    with pytest.raises(ValueError, match=r"returns tensors of \[\(9, 4, 6\), .*, the quantized one of \[\(9, 4, 7\), "):
        error_report(lstm.eval(), quantize_lstm(nn.LSTM(5, 7)), x)
