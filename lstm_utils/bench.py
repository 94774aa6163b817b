"""What ``lstm_utils`` costs against what one would do instead: ``make bench``, or ``python -m lstm_utils.bench``.

Two calls must first give the same result; then they are measured in turns, on one thread. Exit status: 0 when all was
measured, 1 where results differ, 2 on arguments or an environment that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from lstm_utils.alternatives import CASES, Case, need
from lstm_utils.files import write_whole
from lstm_utils.measure import Hardware, Ratio, Timings, compare_times, hardware

SCHEMA = 1
NOISE = "inside the noise"
WORDS = {"time": {"faster": "faster", "slower": "slower"}, "memory": {"faster": "less", "slower": "more"}}
# What the result depends on beyond the hardware and torch, which the hardware line names.
PACKAGES = ("numpy", "torchinfo", "onnx", "onnxruntime")
HEAD = ("What", "With lstm_utils", "Instead", "Sizes", "Ours ÷ instead", "So ours is")


class DisagreementError(Exception):
    """Two calls that should do the same do not, so to compare what they cost would mean nothing."""


@dataclass(frozen=True)
class Comparison:
    """What our side costs over the other: median and quartiles of the ratio, and the word for them.

    Raises:
        ValueError: no measurement could have given these values.
    """

    name: str
    ours: str
    instead: str
    sizes: str
    measure: str
    ratio: float
    low: float
    high: float
    word: str
    agree: bool

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) and text for text in (self.name, self.ours, self.instead, self.sizes)):
            raise ValueError(f"a comparison needs a name, two sides and sizes, got {self}")
        numbers = self.low, self.ratio, self.high
        if (
            not all(isinstance(x, float | int) for x in numbers)
            or not 0 < numbers[0] <= numbers[1] <= numbers[2] < math.inf
        ):
            raise ValueError(f"{self.name}: expected 0 < low <= ratio <= high, got {numbers}")
        if self.measure not in WORDS:
            raise ValueError(f"{self.name}: measure must be one of {list(WORDS)}, got {self.measure!r}")
        if self.word != (word := word_of(self.measure, Ratio(self.ratio, self.low, self.high))):
            raise ValueError(f"{self.name}: the word for {numbers} is {word!r}, got {self.word!r}")
        if self.agree is not True:
            raise ValueError(f"{self.name}: only what agrees can be compared, got agree={self.agree!r}")

    def cells(self) -> tuple[str, ...]:
        """A row of the table, in the order of ``HEAD``."""
        median, *quartiles = (f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in (self.ratio, self.low, self.high))
        ratio = f"{self.measure} {median}× ({'–'.join(quartiles)})"
        return self.name, self.ours, self.instead, self.sizes, ratio, self.word


class Report(NamedTuple):
    """What a run measured, and on what."""

    hardware: Hardware
    versions: Mapping[str, str]
    comparisons: tuple[Comparison, ...]

    def __str__(self) -> str:
        rows = [HEAD, *(row.cells() for row in self.comparisons)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        rows = [asdict(row) for row in self.comparisons]
        content = {"schema": SCHEMA, "hardware": asdict(self.hardware), "versions": self.versions, "comparisons": rows}
        write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load_report(path: Path) -> Report:
    """Read what ``Report.save`` wrote, and check it.

    Raises:
        ValueError: there is no such file, or it holds something else; the message says what.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r} instead of {SCHEMA}")
        if not content["comparisons"]:
            raise ValueError("it compares nothing")
        comparisons = tuple(Comparison(**row) for row in content["comparisons"])
        return Report(Hardware(**content["hardware"]), dict(content["versions"]), comparisons)
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no report of `make bench`, which would write one; {reason}") from error


def word_of(measure: str, ratio: Ratio) -> str:
    """The word for our side, where the middle half of the rounds agrees on one."""
    return WORDS[measure].get(ratio.word, NOISE)


def compare(case: Case, quick: bool = False) -> Comparison:
    """Check that the two ways of a case agree, then measure what they cost.

    Raises:
        DisagreementError: they do not agree.
    """
    if not case.agree(*(call() for call in case.calls)):
        both = f"{case.ours} and {case.instead}"
        raise DisagreementError(f"{case.name} ({case.sizes}): the results of {both} differ, so costs are not compared")
    if case.nbytes is None:
        rounds, seconds = (3, 0.005) if quick else (7, 0.02)
        taken = compare_times({"ours": case.calls[0], "instead": case.calls[1]}, rounds, seconds)
    else:  # in turns too; a ratio of bytes is taken as one of seconds is
        pairs = [tuple(count() for count in case.nbytes) for _ in range(3)]
        taken = Timings({"ours": tuple(p[0] for p in pairs), "instead": tuple(p[1] for p in pairs)}, 1)
    measure, ratio = "time" if case.nbytes is None else "memory", taken.ratio("ours", "instead")
    numbers = ratio.median, ratio.low, ratio.high
    return Comparison(*case[:4], measure, *numbers, word_of(measure, ratio), agree=True)


def run(quick: bool = False, seed: int = 0) -> Report:
    """All comparisons, on one thread.

    Raises:
        DisagreementError: the two sides of a comparison give different results.
        ModuleNotFoundError: a package to compare with is not installed; the message names it, before anything is run.
    """
    for package in PACKAGES:
        need(package)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = []
        for make in CASES:
            torch.manual_seed(seed)
            found += [compare(case, quick) for case in make(quick)]
        return Report(hardware(), {name: version(name) for name in PACKAGES}, tuple(found))
    finally:
        torch.set_num_threads(threads)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lstm_utils.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller, with fewer rounds; not for conclusions")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and the order of samples (default: 0)")
    parser.add_argument("--output", type=Path, metavar="PATH", help="where to write the report as JSON")
    options = parser.parse_args(argv)
    if options.output and not options.output.resolve().parent.is_dir():
        print(f"error: there is no folder to write {str(options.output)!r} in", file=sys.stderr)
        return 2
    try:
        report = run(options.quick, options.seed)
    except DisagreementError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{report.hardware}\n\n{report}")
    if options.output:
        try:
            report.save(options.output)
        except OSError as error:  # such as a full disk; what was measured stands above
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"\nwritten to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
