"""What lies on either side of the edge of what is refused."""

import math
import re

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_utils.arguments import (
    as_device,
    at_least,
    check_states,
    integers,
    positive,
    require_even,
    require_lstm,
    share,
)

LSTM = torch.nn.LSTM(2, 4, 2, bidirectional=True, proj_size=3)
FIRST = torch.nn.LSTM(2, 4, batch_first=True)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (lambda: at_least("n", 3, 3), 3),
        (lambda: at_least("n", np.int8(5), 3, 5), 5),
        (lambda: share("p", 0), 0.0),
        (lambda: share("p", np.float32(1)), 1.0),
        (lambda: positive("s", 1e-300), 1e-300),
        (lambda: positive("s", 2, zero=True), 2.0),
        (lambda: positive("s", 0, zero=True), 0.0),
        (lambda: require_even(4), None),
        (lambda: require_even(3 * 2), None),
        (lambda: require_lstm("lstm", LSTM), None),
        (lambda: as_device("device", "cpu"), torch.device("cpu")),
    ],
)
def test_what_is_just_right_is_taken(taken, expected):
    got = taken()
    assert (got, type(got)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: at_least("n", 2, 3), "n must be an integer of at least 3, got 2"),
        (lambda: at_least("n", 2, 3, 5), "n must be an integer from 3 to 5, got 2"),
        (lambda: at_least("n", 6, 3, 5, "T = "), "n must be an integer from 3 to T = 5, got 6"),
        (lambda: share("p", 1.5), "p must lie between 0 and 1, got 1.5"),
        (lambda: share("p", True), "p must lie between 0 and 1, got True"),
        (lambda: positive("s", 0), "s must be a finite number above 0, got 0"),
        (lambda: positive("s", -1), "s must be a finite number above 0, got -1"),
        (lambda: positive("s", math.inf), "s must be a finite number above 0, got inf"),
        (lambda: positive("s", -1, zero=True), "s must be a finite number of at least 0, got -1"),
        (lambda: positive("s", math.inf, zero=True), "s must be a finite number of at least 0, got inf"),
        (lambda: require_even(3), "two directions have an even width together, got an output of width 3"),
        (
            lambda: as_device("device", "gpu"),
            "device must name a device that torch knows, got 'gpu': Expected one of .+",
        ),
        (lambda: as_device("device", "cpu\n1"), r"device must name a device .*, got 'cpu\\n1': Invalid [^\n]*'cpu"),
    ],
)
def test_what_is_just_wrong_is_refused(refused, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        refused()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.uint64])
def test_lengths_of_any_integers_are_taken_as_int64(dtype):
    for lengths in ([2, 0, 1], [2, 127, 1], *([] if "u" in str(dtype) else [[-2, 1]])):
        found = integers(torch.tensor(lengths).to(dtype))
        assert (found.tolist(), found.dtype) == (lengths, torch.int64)


def test_lengths_in_a_tensor_stay_on_its_device():
    lengths = torch.tensor([2, 1])
    with torch.device("meta"):
        assert integers(lengths).device == lengths.device


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (["1"], TypeError, "lengths must be integers, one for each sequence, got a list: .+"),
        ([1.0], TypeError, "lengths must be integers, got torch.float32; convert them where they are measured"),
        ([1j], TypeError, "lengths must be integers, got torch.complex64; convert them where they are measured"),
        ([True], TypeError, "lengths must be integers, got torch.bool; convert them where they are measured"),
        (7, ValueError, r"lengths must be one integer for each sequence, got the shape \(\)"),
        ([[7]], ValueError, r"lengths must be one integer for each sequence, got the shape \(1, 1\)"),
        ([], ValueError, r"lengths must be one integer for each sequence, got the shape \(0,\)"),
        (np.array([1, 2**63], np.uint64), ValueError, r"lengths must be smaller than 2\*\*63, got 9223372036854775808"),
    ],
)
def test_what_are_no_lengths_is_refused(lengths, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        integers(lengths)


@pytest.mark.parametrize(
    ("lstm", "x", "rows", "widths"),
    [
        (LSTM, torch.zeros(5, 7, 2), (4, 7), (3, 4)),
        (LSTM, torch.zeros(5, 2), (4,), (3, 4)),
        (FIRST, torch.zeros(5, 7, 2), (1, 5), (4, 4)),
        (FIRST, pack_padded_sequence(torch.zeros(3, 7, 2), [7, 7, 1], batch_first=True), (1, 3), (4, 4)),
    ],
    ids=["batched", "unbatched", "batch first", "packed"],
)
def test_states_are_taken_when_both_fit(lstm, x, rows, widths):
    states = [torch.zeros(*rows, width) for width in widths]
    check_states(lstm, x, None)
    check_states(lstm, x, tuple(states))
    for at, name in enumerate(("h_0", "c_0")):
        shape = re.escape(f"{name} must have shape {(*rows, widths[at])}, whatever batch_first says, got {(9, *rows)}")
        wrong = [*states[:at], torch.zeros(9, *rows), *states[at + 1 :]]
        with pytest.raises(ValueError, match=f"^{shape}$"):
            check_states(lstm, x, tuple(wrong))


@pytest.mark.parametrize("shape", [(2,), (1, 5, 7, 2)])
def test_an_input_without_time_or_with_more_is_refused(shape):
    message = re.escape(f"expected an input of 2D or 3D, got {len(shape)}D, the shape {shape}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_states(LSTM, torch.zeros(shape), None)
