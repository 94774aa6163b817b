"""Shapes, parameters and memory of an LSTM (describe); the pitfalls that a model of yours is in (diagnose)."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
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
    except (ImportError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _report(diagnosis: Diagnosis) -> int:
    print(diagnosis)
    return int(any(finding.severity == "error" for finding in diagnosis.findings))


def _diagnose(builder: str) -> Diagnosis:
    """Import and call a builder, and diagnose what it returns."""
    module, _, name = builder.partition(":")
    if not module or not name:
        raise ValueError(f"expected MODULE:FUNCTION, such as my_module:build_model, got {builder!r}")
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise ValueError(f"{module} has no function {name!r}")
    built: Any = function()
    if isinstance(built, Mapping):
        known = inspect.signature(diagnose).parameters
        if unknown := set(built) - set(known):
            raise ValueError(f"{builder} returned {sorted(unknown)}; lstm_utils.diagnose takes {list(known)}")
        return diagnose(**built)
    if isinstance(built, tuple) and len(built) in (2, 3):
        return diagnose(*built)
    raise TypeError(
        f"{builder} must return (model, batch), (model, batch, lengths) or a mapping, got {type(built).__name__}"
    )


if __name__ == "__main__":
    sys.exit(main())
