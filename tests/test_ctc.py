"""diagnose_ctc against nn.CTCLoss itself."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from torch import nn

from lstm_utils import diagnose_ctc


@st.composite
def arguments(draw):
    """Arguments of nn.CTCLoss with classes 1 to 3, the blank being 0: (log_probs, targets, frames, labels)."""
    labels = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    frames = [draw(st.integers(1, 9)) for _ in labels]
    rows = [draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)) for n in labels]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    log_probs = torch.randn(max(frames), len(labels), 4, generator=generator).log_softmax(-1)
    if draw(st.booleans()):
        targets = torch.tensor([label for row in rows for label in row])
    else:
        targets = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # padded with blanks
    return log_probs, targets, torch.tensor(frames), torch.tensor(labels)


@given(arguments())
@examples["some"]
def test_room_is_missing_exactly_where_the_loss_is_infinite(drawn):
    diagnosis = diagnose_ctc(*drawn)
    infinite = nn.CTCLoss(reduction="none")(*drawn).isinf()
    assert {int(finding.seen.split()[1]) for finding in diagnosis.findings} == set(
        infinite.nonzero().flatten().tolist()
    )
    assert all("frames and needs" in finding.seen for finding in diagnosis.findings)


def call(**changed):
    good = {
        "log_probs": torch.zeros(6, 2, 4).log_softmax(-1),
        "targets": torch.tensor([[1, 2], [3, 1]]),
        "input_lengths": [6, 6],
        "target_lengths": [2, 2],
    }
    return diagnose_ctc(**good | changed)


def test_nothing_is_found_in_sound_arguments():
    assert call().findings == ()


def test_raw_scores_are_found():
    (finding,) = call(log_probs=torch.ones(6, 2, 4)).findings
    assert finding.pitfall == "P22"
    assert finding.seen == "no log-probabilities: the classes of a frame sum to 10.9, not to 1"


def test_nan_is_found():
    (finding,) = call(log_probs=torch.full((6, 2, 4), torch.nan)).findings
    assert finding.seen == "no log-probabilities: the classes of a frame sum to nan, not to 1"


def test_what_stands_behind_the_last_frame_is_not_looked_at():
    log_probs = torch.zeros(6, 2, 4).log_softmax(-1)
    log_probs[4:, 1] = 0
    assert call(log_probs=log_probs, input_lengths=[6, 4]).findings == ()
    assert call(log_probs=log_probs, input_lengths=[6, 5]).ids == ("P22",)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_no_class_is_found(label):
    """The loss reads outside its tensor then, and says nothing."""
    (finding,) = call(targets=torch.tensor([[1, 2], [1, label]])).findings
    seen = f"the target of sample 1 contains {label}, and the classes are 0 to 3"
    assert (finding.pitfall, finding.seen) == ("P22", seen)


def test_half_precision_is_no_fault():
    assert call(log_probs=torch.randn(6, 2, 4).log_softmax(-1).half()).findings == ()


@pytest.mark.parametrize(
    ("off", "sound"), [(0, True), (1e-3, True), (-1e-3, True), (1.01e-3, False), (-1.01e-3, False)]
)
def test_probabilities_may_be_off_by_a_thousandth(off, sound):
    log_probs = torch.full((6, 2, 1), off, dtype=torch.float64)
    empty = torch.zeros(2, 0, dtype=torch.int64)
    assert (call(log_probs=log_probs, targets=empty, target_lengths=[0, 0]).findings == ()) == sound


@pytest.mark.parametrize(("excess", "sound"), [(1, True), (1.1, False)])
def test_many_classes_in_half_precision_may_be_off_by_their_rounding(excess, sound):
    log_probs = torch.full((6, 2, 983), math.log(excess / 983)).bfloat16()  # off by 1.6 %, as far as rounding goes
    assert (call(log_probs=log_probs).findings == ()) == sound


def test_a_sample_without_room_is_told_what_it_needs():
    (finding,) = call(targets=torch.tensor([[1, 2], [3, 3]]), input_lengths=[6, 2]).findings
    needs = "2 labels and 1 blanks between equal neighbors"
    assert (finding.pitfall, finding.seen) == ("P22", f"sample 1 has 2 frames and needs 3: {needs}")


def test_nothing_may_be_said_and_nothing_heard():
    assert call(input_lengths=[6, 0], target_lengths=[2, 0]).findings == ()


def test_where_the_blank_is_another_class_0_is_a_label():
    assert call(targets=torch.tensor([[0, 1], [2, 0]]), blank=3).findings == ()


@pytest.mark.parametrize("blank", [0, 3])
def test_a_blank_among_the_labels_is_found(blank):
    targets = torch.tensor([[1, 2], [1, blank]])
    (finding,) = call(targets=targets, blank=blank).findings
    assert (finding.pitfall, finding.seen) == ("P22", f"the target of sample 1 contains {blank}, the blank")


def test_padding_of_a_target_is_no_blank():
    assert call(targets=torch.tensor([[1, 0], [3, 1]]), target_lengths=[1, 2]).findings == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"log_probs": torch.zeros(6, 2)},
        {"input_lengths": [6]},
        {"target_lengths": [2, 2, 2]},
        {"targets": torch.ones(2, 2, 2)},
        {"targets": torch.ones(3, 2)},
        {"targets": torch.tensor(1)},
    ],
)
def test_shapes_that_do_not_fit_are_refused(changed):
    with pytest.raises(ValueError, match=r"expected log_probs \(T, N, C\), targets \(N, S\) or \(sum,\).*; got \("):
        call(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"log_probs": torch.ones(6, 2, 4, dtype=torch.int64)}, "log_probs must hold floats, got torch.int64"),
        ({"log_probs": torch.ones(6, 2, 4, dtype=torch.cfloat)}, "log_probs must hold floats, got torch.complex64"),
        ({"targets": torch.ones(2, 2)}, "targets must hold integers, got torch.float32"),
        ({"targets": torch.ones(2, 2, dtype=torch.bool)}, "targets must hold integers, got torch.bool"),
        ({"targets": torch.ones(2, 2, dtype=torch.cdouble)}, "targets must hold integers, got torch.complex128"),
        ({"blank": 4}, "blank must be an integer from 0 to 3, got 4"),
        ({"blank": -1}, "blank must be an integer from 0 to 3, got -1"),
    ],
)
def test_what_is_no_number_of_the_kind_or_no_class_is_refused(changed, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_lengths": [6, 7]}, "input_lengths must lie from 0 to T = 6, got 7"),
        ({"target_lengths": [2, 3]}, "target_lengths must lie from 0 to S = 2, got 3"),
        ({"target_lengths": [2, -1]}, "target_lengths must lie from 0 to S = 2, got -1"),
        ({"targets": torch.tensor([1, 2, 3])}, r"target_lengths \[2, 2\] must sum to the 3 labels of the targets"),
    ],
)
def test_lengths_that_the_loss_refuses_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        call(**changed)
    good = {"log_probs": torch.zeros(6, 2, 4), "targets": torch.tensor([[1, 2], [3, 1]])}
    arguments = good | {"input_lengths": [6, 6], "target_lengths": [2, 2]} | changed
    with pytest.raises(RuntimeError):
        nn.CTCLoss()(*(torch.as_tensor(value) for value in arguments.values()))
