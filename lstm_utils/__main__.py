"""``python -m lstm_utils describe …``: shapes, parameters and memory of an LSTM, without building it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields

import torch

from lstm_utils.spec import LSTMSpec

DTYPES = ("float32", "float64", "float16", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0, or 2 on arguments that ``nn.LSTM`` would refuse)."""
    parser = argparse.ArgumentParser(prog="python -m lstm_utils", description=__doc__)
    describe = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "describe", help="print shapes, the table of tensors, totals and memory"
    )
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
    arguments = parser.parse_args(argv)
    try:
        spec = LSTMSpec(**{field.name: getattr(arguments, field.name) for field in fields(LSTMSpec)})
        print(spec.describe(arguments.seq_len, arguments.batch_size or None, getattr(torch, arguments.dtype)))
    except (TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
