"""What a module is called with and returns: walked through, copied without a graph, compared up to rounding."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_utils.trees import call_with, changed, changed_along, copy_of, detached, first_line, map_tensors, tensors

PACKED = pack_padded_sequence(torch.ones(3, 2, 1), torch.tensor([1, 3]), enforce_sorted=False)
EPS = torch.finfo(torch.float32).eps


class Pair(NamedTuple):
    """A tuple whose parts have names."""

    x: object
    y: object


class Echo(nn.Module):
    """Returns its arguments."""

    def forward(self, *arguments, **named):
        return arguments, named


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((1, 2), ((1, 2), {})),
        ({"x": 1, "y": 2}, ((), {"x": 1, "y": 2})),
        ([1, 2], (([1, 2],), {})),
        (PACKED, ((PACKED,), {})),
    ],
    ids=["tuple", "mapping", "list", "packed"],
)
def test_a_batch_is_passed_as_what_it_is(batch, expected):
    assert call_with(Echo(), batch) == expected


def test_every_tensor_is_changed_where_it_stands():
    one = torch.ones(1)
    tree = {"pair": Pair(one, [one, "text"]), "tuple": (one, None, {"inner": one}), "packed": PACKED}
    found = map_tensors(tree, lambda tensor: tensor + 1)
    two = torch.full((1,), 2.0)
    assert found["pair"] == Pair(two, [two, "text"])
    assert type(found["pair"]) is Pair
    assert found["tuple"] == (two, None, {"inner": two})
    assert isinstance(found["packed"], PackedSequence)
    assert torch.equal(found["packed"].data, PACKED.data + 1)
    assert all(map(torch.equal, found["packed"][1:], PACKED[1:]))
    assert bool(one == 1)


def test_tensors_are_found_in_order():
    a, b, c = torch.ones(3).unbind()
    found = tensors({"one": [a, (b, "text")], "two": PACKED, "three": {"four": c, "five": None}})
    assert [id(tensor) for tensor in found] == [id(tensor) for tensor in (a, b, PACKED.data, c)]


def test_a_detached_batch_asks_for_the_same_gradients_and_leads_nowhere():
    leaf, plain = torch.ones(2, requires_grad=True), torch.ones(2)
    found = detached((leaf, leaf * 2, plain))
    assert [tensor.requires_grad for tensor in found] == [True, True, False]
    assert all(tensor.is_leaf for tensor in found)
    assert [tensor.tolist() for tensor in found] == [[1, 1], [2, 2], [1, 1]]
    assert not {tensor.data_ptr() for tensor in found} & {leaf.data_ptr(), plain.data_ptr()}


def test_a_model_that_keeps_a_graph_is_copied_without_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].carried = (model(torch.ones(1, 2)), "text")
    model[0].weight.grad = torch.ones(2, 2)
    copied = copy_of(model)
    assert copied is not model
    assert not any(module.training for module in copied.modules())
    assert model.training
    assert torch.equal(copied[0].weight, model[0].weight)
    assert copied[0].weight is not model[0].weight
    assert copied[0].weight.grad is None
    assert torch.equal(copied[0].carried[0], model[0].carried[0])
    assert not copied[0].carried[0].requires_grad
    assert model[0].carried[0].requires_grad


def test_of_an_error_the_first_line_is_told():
    assert [first_line(ValueError(text)) for text in ("one\ntwo\nthree", "one", "")] == ["one", "one", ""]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1024.0, 0.0, 0.0], [1024.0, 4096 * EPS, 5000 * EPS], [False, False, True]),
        ([-1024.0, 1.0], [-1024.0, 1.0 + 4096 * EPS], [False, False]),
        ([1.0, math.inf, -math.inf, math.nan], [1.0, math.inf, -math.inf, math.nan], [False] * 4),
        ([1.0, math.inf, -math.inf, math.nan], [math.nan, -math.inf, 1.0, 1.0], [True] * 4),
        ([math.nan, math.inf], [math.nan, 1.0], [False, True]),
        ([0.0, 0.0], [0.0, 1e-30], [False, True]),
        ([], [], []),
    ],
)
def test_what_changes_by_four_units_of_the_largest_is_rounding(before, after, expected):
    before, after = torch.tensor(before, requires_grad=True), torch.tensor(after)
    assert changed(before, after).tolist() == expected


def test_positions_of_a_change_are_told_along_a_dimension():
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0, 1, 2] = mask[0, 2, 2] = True
    assert [changed_along(mask, dim) for dim in range(3)] == [{0}, {1, 2}, {2}]
    assert changed_along(mask[0, :, 2], 0) == {1, 2}
    assert changed_along(mask[1], 1) == set()
