"""Shapes, parameters and memory of an LSTM (describe); the pitfalls that a model of yours is in (diagnose)."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

import torch

from lstm_utils.diagnose import diagnose
from lstm_utils.findings import Diagnosis
from lstm_utils.spec import LSTMSpec

DTYPES = ("float32", "float64", "float16", "bfloat16")
BUILDER = """
BUILDER names a function without arguments, as MODULE:FUNCTION, that returns what lstm_utils.diagnose takes:
(model, batch), or (model, batch, lengths), or a mapping such as {"model": …, "batch": …, "batch_dim": 0}.

Exit status: 0 without errors (there may be warnings), 1 with errors, 2 where nothing could be diagnosed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 on arguments that cannot be used)."""
    parser = argparse.ArgumentParser(prog="python -m lstm_utils", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    describe = commands.add_parser("describe", help="print shapes, the table of tensors, totals and memory")
    for field in fields(LSTMSpec):
        flag = "--" + field.name.replace("_", "-")
        if field.type == "bool":
            describe.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            kind = {"int": int, "float": float}[str(field.type)]
            describe.add_argument(flag, type=kind, required=field.default is MISSING, default=field.default)
    describe.add_argument("--seq-len", type=int, default=20, help="time steps (default: 20)")
    describe.add_argument("--batch-size", type=int, default=32, help="0 for the unbatched shapes (default: 32)")
    describe.add_argument("--dtype", choices=DTYPES, default="float32")
    diagnosing = commands.add_parser(
        "diagnose",
        help="look for pitfalls in a model and a batch of yours",
        epilog=BUILDER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    diagnosing.add_argument("builder", metavar="BUILDER", help="such as my_module:build_model")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "diagnose":
            return _report(_diagnose(arguments.builder))
        spec = LSTMSpec(**{field.name: getattr(arguments, field.name) for field in fields(LSTMSpec)})
        print(spec.describe(arguments.seq_len, arguments.batch_size or None, getattr(torch, arguments.dtype)))
    except (TypeError, ValueError) as error:
        if arguments.command == "diagnose" and not isinstance(error, _UnusableError):
            raise  # from the reader's own code: the traceback says where
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class _UnusableError(ValueError):
    """What a builder names or returns is nothing that could be diagnosed."""


def _report(diagnosis: Diagnosis) -> int:
    print(diagnosis)
    return int(any(finding.severity == "error" for finding in diagnosis.findings))


def _diagnose(builder: str) -> Diagnosis:
    """Import and call a builder, and diagnose what it returns."""
    built = _function(builder)()
    parameters = inspect.signature(diagnose).parameters
    if isinstance(built, tuple) and len(built) in (2, 3):
        built = dict(zip(("model", "batch", "lengths"), built, strict=False))
    if not isinstance(built, Mapping):
        returned = f"a tuple of {len(built)}" if isinstance(built, tuple) else type(built).__name__
        wanted = "(model, batch), (model, batch, lengths) or a mapping"
        raise _UnusableError(f"{builder} must return {wanted}, got {returned}")
    if unknown := [name for name in built if name not in parameters]:
        raise _UnusableError(f"{builder} returned {unknown}; lstm_utils.diagnose takes {list(parameters)}")
    if missing := [name for name in ("model", "batch") if name not in built]:
        raise _UnusableError(f"{builder} returned {list(built)}, and {' and '.join(missing)} is missing")
    try:
        return diagnose(**built)
    except (TypeError, ValueError) as error:
        if hasattr(error, "__notes__"):  # raised by the module, not by what diagnose makes of its arguments
            raise
        raise _UnusableError(str(error)) from error


def _function(builder: str) -> Callable[[], Any]:
    """The function that a builder names, ready to be called."""
    module, _, name = builder.partition(":")
    if not module or not name or module.startswith("."):
        raise _UnusableError(f"expected MODULE:FUNCTION, such as my_module:build_model, got {builder!r}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # the module is there, and imports one that is not
        raise _UnusableError(f"no module {module!r} here; run this where `import {module}` works") from error
    function: Callable[[], Any] | None = getattr(found, name, None)
    if not callable(function):
        raise _UnusableError(f"{module} has no function {name!r}")
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as error:
        raise _UnusableError(f"{builder} must be a function that needs no arguments: {error}") from error
    return function


if __name__ == "__main__":
    sys.exit(main())
