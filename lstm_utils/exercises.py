"""What a chapter shows its reader: errors as text, and exercises that grade themselves."""

from __future__ import annotations

from collections.abc import Callable

from lstm_utils.arguments import require, require_callable

PASSED = "Passed"
NOT_YET = "Not yet"


def error_of(call: Callable[[], object]) -> str:
    """Call, and return the error that comes of it as text: a chapter that shows an error still runs to its end.

    Args:
        call: expected to raise.

    Returns:
        the exception's type and message, on one line each.

    Raises:
        TypeError: ``call`` is no function, but perhaps what it would return.
        AssertionError: nothing was raised, so the chapter promised an error that this version does not give.
    """
    require_callable("call", call)
    try:
        result = call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"expected an error, and the call returned {type(result).__name__}")


def check(exercise: str, passes: Callable[[], bool], hint: str) -> None:
    """Print whether an answer passes, and a hint when it does not.

    Args:
        exercise: its number, such as "1.2".
        passes: called without arguments, returns True or False. An exception counts as a wrong answer, and is named:
            a blank left as ``...`` usually ends there.
        hint: where to look next, without the answer.

    Raises:
        TypeError: ``passes`` is no function, or returned something other than a bool, or the others are no texts, so
            the check itself is wrong.
    """
    require("exercise", exercise, str, "its number as a text, such as '1.2'")
    require("hint", hint, str, "a text")
    require_callable("passes", passes)
    try:
        result = passes()
    except Exception as error:  # whatever a reader's answer raises, the reader gets the hint
        message = str(error).partition("\n")[0]
        print(f"{NOT_YET}, exercise {exercise} ({type(error).__name__}: {message}). Hint: {hint}")
        return
    if not isinstance(result, bool):
        raise TypeError(f"the check of exercise {exercise} must return a bool, got {result!r}")
    print(f"{PASSED}, exercise {exercise}." if result else f"{NOT_YET}, exercise {exercise}. Hint: {hint}")
