"""Norms and clipping, held against torch's own arithmetic; and everything that clip_grad_norm_ lets pass."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import build, examples, specs
from torch import nn

from lstm_utils.gradients import GradientClipper, NonFiniteGradientError, gradient_norms


def tagger():
    return nn.ModuleDict({"lstm": nn.LSTM(3, 4, num_layers=2), "readout": nn.Linear(4, 2)})


def backward(model, scale=1.0):
    torch.manual_seed(0)
    loss = scale * model["readout"](model["lstm"](torch.randn(5, 2, 3))[0]).square().sum()
    loss.backward()
    return model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(one, two):
    return one.keys() == two.keys() and all(torch.allclose(one[name], two[name], equal_nan=True) for name in one)


def norm_of(model):
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))


# Norms ---------------------------------------------------------------------------------------------------------------


def test_norms_have_the_parameters_names_and_are_euclidean():
    model = backward(tagger())
    norms = gradient_norms(model)
    assert list(norms) == [name for name, _ in model.named_parameters()]
    for name, gradient in gradients(model).items():
        assert norms[name] == pytest.approx(math.sqrt(float(gradient.square().sum())), rel=1e-5)


def test_a_parameter_without_a_gradient_is_left_out():
    model = backward(tagger())
    model["readout"].bias.grad = None
    assert "readout.bias" not in gradient_norms(model)


def test_norms_before_backward_are_refused():
    with pytest.raises(RuntimeError, match=r"^none of the 10 parameters has a gradient; call loss.backward\(\) first$"):
        gradient_norms(tagger())


def test_the_norm_of_half_precision_gradients_does_not_overflow():
    model = nn.Linear(1000, 1000, dtype=torch.float16)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100)
    assert gradient_norms(model)["weight"] == pytest.approx(1e5, rel=0.01)


def test_a_norm_is_as_exact_as_float64_and_the_only_parameter_will_do():
    model = nn.Linear(10, 1, bias=False, dtype=torch.float16)
    model.weight.grad = torch.ones_like(model.weight)
    assert gradient_norms(model) == {"weight": pytest.approx(math.sqrt(10), rel=1e-15)}


def test_the_norm_of_a_float64_gradient_may_be_larger_than_the_root_of_its_largest_number():
    model = nn.Linear(2, 2, dtype=torch.float64)
    model.weight.grad, model.bias.grad = torch.full((2, 2), -1e200, dtype=torch.float64), torch.ones(2).double()
    assert gradient_norms(model) == {"weight": pytest.approx(2e200), "bias": pytest.approx(math.sqrt(2))}


@pytest.mark.parametrize("size", [1.0, 1e200])
def test_a_complex_number_counts_by_its_absolute_value(size):
    model = nn.Linear(1, 4, bias=False, dtype=torch.complex128)
    model.weight.grad = torch.full((4, 1), (3 + 4j) * size, dtype=torch.complex128)
    assert gradient_norms(model) == {"weight": pytest.approx(10 * size)}


@pytest.mark.parametrize("size", [1.0, 1e200])
def test_a_row_that_a_sparse_gradient_names_twice_counts_as_the_sum(size):
    model = nn.Embedding(5, 1, sparse=True, dtype=torch.float64)
    (size * model(torch.tensor([1, 1, 1, 4, 4, 4, 4])).sum()).backward()
    assert not model.weight.grad.is_coalesced()
    assert gradient_norms(model) == {"weight": pytest.approx(5 * size)}  # 3 and 4, where the seven have √7
    clipper = GradientClipper(model, size)
    assert clipper.clip()
    assert model.weight.grad.to_dense()[:, 0].tolist() == pytest.approx([0, 0.6 * size, 0, 0, 0.8 * size])


# Clipping ------------------------------------------------------------------------------------------------------------


@given(specs(), st.floats(1e-3, 1e3), st.integers(0, 99))
@examples["some"]
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_clipping_is_torchs_and_the_record_tells_what_it_did(spec, max_norm, seed):
    torch.manual_seed(seed)
    lstm = build(spec, dtype=torch.float64)
    x = torch.randn(spec.shapes(3, 2).input, dtype=torch.float64)
    lstm(x)[0].square().sum().backward()
    before = gradients(lstm)
    copy = build(spec, dtype=torch.float64)
    for name, parameter in copy.named_parameters():
        parameter.grad = before[name].clone()
    clipper = GradientClipper(lstm, max_norm)
    assert clipper.clip() is True
    total = nn.utils.clip_grad_norm_(copy.parameters(), max_norm)
    assert same(gradients(lstm), gradients(copy))
    (record,) = clipper.log
    assert record.norm == pytest.approx(float(total))
    assert record.totals == {"": pytest.approx(float(total))}
    assert record.clipped == (record.scales[""] < 1) == bool(total + 1e-6 > max_norm)
    assert same(gradients(lstm), {name: gradient * record.scales[""] for name, gradient in before.items()})
    assert norm_of(lstm) <= max_norm * (1 + 1e-9)
    assert record.nonfinite == ()


def test_infinity_logs_and_leaves_the_gradients_alone():
    model = backward(tagger(), 1e4)
    before, clipper = gradients(model), GradientClipper(model, math.inf)
    assert clipper.clip() is True
    assert same(gradients(model), before)
    assert clipper.log[0].norm == pytest.approx(norm_of(model))
    assert not clipper.log[0].clipped


def test_the_log_grows_by_one_record_a_call():
    model = tagger()
    clipper = GradientClipper(model, 1)
    for scale in (1, 10, 100):
        model.zero_grad()
        backward(model, scale)
        clipper.clip()
    first, second, third = (record.norm for record in clipper.log)
    assert (second / first, third / first) == (pytest.approx(10, rel=1e-4), pytest.approx(100, rel=1e-4))


def test_groups_are_clipped_one_by_one():
    model = backward(tagger(), 100)
    before = gradients(model)
    clipper = GradientClipper(model, {"lstm": 0.5, "readout": 1e9})
    clipper.clip()
    (record,) = clipper.log
    assert math.sqrt(sum(float(p.grad.square().sum()) for p in model["lstm"].parameters())) == pytest.approx(0.5)
    assert torch.equal(model["readout"].weight.grad, before["readout.weight"])
    assert record.scales["readout"] == 1
    assert record.scales["lstm"] == pytest.approx(0.5 / record.totals["lstm"], rel=1e-4)
    assert record.norm == pytest.approx(math.hypot(*(norm for norm in record.norms.values())))
    assert record.clipped


def test_a_group_may_be_a_module_within_a_module_or_one_parameter():
    model = nn.ModuleDict({"encoder": tagger()})
    names = ["encoder.lstm", "encoder.readout.weight", "encoder.readout.bias"]
    backward(model["encoder"])
    clipper = GradientClipper(model, dict.fromkeys(names, 0.1))
    clipper.clip()
    assert list(clipper.log[0].totals) == names


def test_a_group_without_gradients_waits():
    model = tagger()
    model["lstm"].requires_grad_(False)
    backward(model)
    clipper = GradientClipper(model, {"lstm": 1, "readout": 1})
    assert clipper.clip()
    assert list(clipper.log[0].totals) == ["readout"]


def test_a_gradient_of_zero_stays_zero():
    model = backward(tagger(), 0)
    clipper = GradientClipper(model, 1.0)
    assert clipper.clip()
    assert (clipper.log[0].norm, clipper.log[0].scales) == (0, {"": 1.0})


def test_parameters_added_later_are_clipped_too():
    model = tagger()
    clipper = GradientClipper(model, 0.1)
    model["second"] = nn.Linear(2, 1)
    backward(model)
    model["second"](torch.full((1, 2), 1e3)).sum().backward()
    clipper.clip()
    assert norm_of(model) == pytest.approx(0.1, rel=1e-4)


# What is not finite --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named_and_nothing_is_touched(value):
    model = backward(tagger())
    model["lstm"].weight_hh_l1.grad[0, 0] = value
    before, clipper = gradients(model), GradientClipper(model, 1.0)
    with pytest.raises(
        NonFiniteGradientError, match=r"the gradient of lstm.weight_hh_l1 is not finite in call 1; skip"
    ):
        clipper.clip()
    assert same(gradients(model), before)
    (record,) = clipper.log
    assert record.nonfinite == ("lstm.weight_hh_l1",)
    assert record.scales == {"": 0}
    assert record.clipped
    assert not math.isfinite(record.norm)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sparse_gradient_that_is_not_finite_is_named_or_skipped(value):
    model = nn.Embedding(5, 2, sparse=True)
    (value * model(torch.tensor([1, 1])).sum()).backward()
    with pytest.raises(NonFiniteGradientError, match="the gradient of weight is not finite"):
        GradientClipper(model, 1.0).clip()
    assert not GradientClipper(model, 1.0, nonfinite="skip").clip()
    assert model.weight.grad is None


def test_many_names_are_cut_short():
    model = backward(tagger(), math.inf)
    with pytest.raises(NonFiniteGradientError, match=r"lstm.bias_ih_l0 and 7 more is not finite"):
        GradientClipper(model, 1.0).clip()


def test_a_skipped_step_changes_nothing_and_the_next_one_does():
    model = backward(tagger())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model["readout"].bias.grad[0] = math.nan
    clipper = GradientClipper(model, 1.0, nonfinite="skip")
    assert clipper.clip() is False
    optimizer.step()
    assert same(dict(model.named_parameters()), before)
    backward(model)
    assert clipper.clip() is True
    optimizer.step()
    assert not same(dict(model.named_parameters()), before)
    assert [record.nonfinite for record in clipper.log] == [("readout.bias",), ()]


@pytest.mark.parametrize(("value", "dtype"), [(1e20, torch.float32), (1e30, torch.float32), (1e3, torch.float16)])
def test_large_gradients_whose_norm_overflows_their_dtype_are_clipped_and_not_erased(value, dtype):
    model = nn.Linear(100, 100, dtype=dtype)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    clipper = GradientClipper(model, 1.0)
    assert clipper.clip()
    assert clipper.log[0].norm == pytest.approx(math.sqrt(100 * 101) * value, rel=0.01)
    assert norm_of(model) == pytest.approx(1, rel=0.02)


def test_a_grad_scaler_agrees_about_the_steps_to_skip():
    model = backward(tagger())
    model.zero_grad()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    clipper = GradientClipper(model, 1.0, nonfinite="skip")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for scale, usable in ((math.inf, False), (1.0, True)):
        torch.manual_seed(0)
        loss = scale * model["readout"](model["lstm"](torch.randn(5, 2, 3))[0]).square().sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        assert clipper.clip() is usable
        scaler.step(optimizer)
        scaler.update()
        assert same(dict(model.named_parameters()), before) is not usable
        optimizer.zero_grad()
    assert scaler.get_scale() == 2.0**9


# What is refused -----------------------------------------------------------------------------------------------------


def test_a_clip_before_backward_is_refused():
    clipper = GradientClipper(tagger(), 1.0)
    with pytest.raises(RuntimeError, match="none of the 10 parameters has a gradient"):
        clipper.clip()
    assert clipper.log == []


def test_parameters_in_place_of_the_module_are_refused():
    with pytest.raises(TypeError, match="expected a module, whose parameters can be looked up again, got generator"):
        GradientClipper(tagger().parameters(), 1.0)


@pytest.mark.parametrize("threshold", [1, np.float32(0.5), np.int64(2), math.inf])
def test_a_threshold_may_be_any_positive_number(threshold):
    model = backward(tagger(), 100)
    assert GradientClipper(model, threshold).clip()
    assert norm_of(model) <= float(threshold) * 1.001


@pytest.mark.parametrize("value", [2**1024, 10**320])
def test_a_threshold_beyond_every_float_is_refused_and_the_largest_power_of_two_taken(value):
    with pytest.raises(ValueError, match=f"^max_norm must fit into a float, got {value}; math.inf logs alone$"):
        GradientClipper(tagger(), value)
    for taken in (3000, 2**1023):
        assert GradientClipper(tagger(), taken).max_norm == {"": taken}


@pytest.mark.parametrize("value", [0, -1.0, math.nan, True, "1", None])
def test_a_threshold_that_is_not_positive_is_refused(value):
    for max_norm, argument in ((value, "max_norm"), ({"lstm": value, "readout": 1}, r"max_norm\['lstm'\]")):
        with pytest.raises(ValueError, match=f"^{argument} must be a positive number, or math.inf to log alone, got "):
            GradientClipper(tagger(), max_norm)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"lstm": 1}, r"'readout.weight' fits no group of \['lstm'\]"),
        ({}, r"'lstm.weight_ih_l0' fits no group of \[\]"),
        ({"": 1, "readout": 1}, r"'readout.weight' fits the groups \['', 'readout'\]"),
        ({"lst": 1, "readout": 1}, r"'lstm.weight_ih_l0' fits no group of \['lst', 'readout'\]"),
        ({"lstm": 1, "readout": 1, "head": 1}, r"groups \['head'\] have no parameters; .* are \['lstm', 'readout'\]"),
    ],
)
def test_groups_that_do_not_cover_every_parameter_once_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        GradientClipper(tagger(), groups)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match=r"^nonfinite must be 'raise' or 'skip', got 'ignore'$"):
        GradientClipper(tagger(), 1.0, nonfinite="ignore")
