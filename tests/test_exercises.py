import numpy as np
import pytest
import torch

from lstm_utils import check, error_of

HINT = "count both bias vectors."


def test_a_right_answer_passes_without_a_hint(capsys):
    check("1.2", lambda: True, HINT)
    assert capsys.readouterr().out == "Passed, exercise 1.2.\n"


def test_a_wrong_answer_gets_the_hint(capsys):
    check("1.2", lambda: False, HINT)
    assert capsys.readouterr().out == f"Not yet, exercise 1.2. Hint: {HINT}\n"


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (ValueError("shapes differ\nand a second line"), "ValueError: shapes differ"),
        (AssertionError(), "AssertionError: "),
        (KeyError("answer"), "KeyError: 'answer'"),
    ],
)
def test_an_answer_that_raises_gets_the_name_of_the_error_and_the_hint(error, named, capsys):
    def passes():
        raise error

    check("1.2", passes, HINT)
    assert capsys.readouterr().out == f"Not yet, exercise 1.2 ({named}). Hint: {HINT}\n"


def test_a_blank_left_as_dots_gets_the_hint(capsys):
    answer = ...
    check("1.2", lambda: answer + 1 == 3, HINT)
    out = capsys.readouterr().out
    assert out.startswith("Not yet, exercise 1.2 (TypeError: unsupported operand type(s) for +: 'ellipsis' and 'int')")
    assert out.endswith(f"Hint: {HINT}\n")


@pytest.mark.parametrize("result", [None, 1, np.bool_(True), torch.tensor(True), ...], ids=repr)
def test_a_check_that_returns_no_bool_is_itself_wrong(result, capsys):
    with pytest.raises(TypeError, match=r"the check of exercise 1.2 must return a bool, got "):
        check("1.2", lambda: result, HINT)
    assert capsys.readouterr().out == ""


def test_an_interrupted_check_stays_interrupted():
    def passes():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("1.2", passes, HINT)


def test_an_expected_error_becomes_text():
    assert error_of(lambda: int("x")) == "ValueError: invalid literal for int() with base 10: 'x'"


def test_an_error_that_does_not_come_is_an_error():
    with pytest.raises(AssertionError, match="expected an error, and the call returned int"):
        error_of(lambda: int("2"))
