"""The page "What changed between versions": every table is computed from the reports in ``results/versions``.

A report is what ``make versions`` wrote under one Python and one torch. Which Pythons are tested is said by the
classifiers in ``pyproject.toml``, the oldest torch by its dependencies, and the pinned torch by ``requirements.lock``.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import jsonschema
from docutils import nodes
from hardware_reports import bullets, table
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective

Pair = tuple[str, str]  # torch, Python


def record(**fields: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a mapping with these fields and no others."""
    return {"type": "object", "required": list(fields), "additionalProperties": False, "properties": fields}


def each(value: Mapping[str, Any], at_least: int = 0) -> dict[str, Any]:
    """The schema of a mapping of names to such values."""
    return {"type": "object", "minProperties": at_least, "additionalProperties": value}


TEXT = {"type": "string"}
SCHEMA = record(
    schema={"const": 1},
    date={"type": "string", "pattern": r"^\d{4}-\d\d-\d\d$"},
    python={"type": "string", "pattern": r"^\d+\.\d+\.\d+"},
    versions={**each(TEXT), "required": ["torch"]},
    hardware=TEXT,
    chapters=each(
        record(cells={"type": "integer", "minimum": 1}, errors=each(TEXT), changed=each(record(stored=TEXT, now=TEXT))),
        at_least=1,
    ),
    claims=each(TEXT),
    pitfalls=each(record(error=TEXT, says={"type": "array", "items": TEXT})),
    tests=each(record(passed={"type": "integer", "minimum": 0}, failed=each(TEXT), skipped=each(TEXT))),
)


class VersionReportError(SphinxError):
    """A report that cannot be shown; the build stops."""

    category = "Version report"


def numbers(release: str) -> tuple[int, ...]:
    """A release to be sorted by: 2.9.1 comes before 2.13.0."""
    return tuple(map(int, re.findall(r"\d+", release)))


@dataclass(frozen=True)
class Report:
    """What one Python and one torch made of the book."""

    content: Mapping[str, Any]

    @property
    def pair(self) -> Pair:
        """The release of torch, whatever build it was, and the minor version of Python."""
        python = ".".join(self.content["python"].split(".")[:2])
        return self.content["versions"]["torch"].partition("+")[0], python

    @property
    def name(self) -> str:
        """How the page calls it."""
        return "torch {}, Python {}".format(*self.pair)

    @property
    def contradicted(self) -> dict[str, str]:
        """Claims whose verdict no longer holds, or whose cell was not reached."""
        return {name: error for name, error in self.content["claims"].items() if error}

    @property
    def otherwise(self) -> dict[str, str]:
        """Pitfalls that no longer show themselves as recorded."""
        return {name: found["error"] for name, found in self.content["pitfalls"].items() if found["error"]}

    @property
    def stopped(self) -> dict[Pair, str]:
        """Cells that failed, by chapter and number."""
        return {
            (chapter, cell): error
            for chapter, found in self.content["chapters"].items()
            for cell, error in found["errors"].items()
        }

    @property
    def changed(self) -> dict[Pair, Mapping[str, str]]:
        """Compared cells that printed something else than what is stored, by chapter and number."""
        return {
            (chapter, cell): texts
            for chapter, found in self.content["chapters"].items()
            for cell, texts in found["changed"].items()
        }

    def ran(self, cell: Pair) -> bool:
        """Whether a cell, by chapter and number, was reached and did not fail."""
        chapter = self.content["chapters"].get(cell[0], {"cells": 0})
        return int(cell[1]) <= chapter["cells"] and cell not in self.stopped

    @property
    def failed(self) -> dict[str, str]:
        """Tests of lstm_utils that failed, by module and name."""
        modules = self.content["tests"].items()
        return {f"{name}::{test}": error for name, found in modules for test, error in found["failed"].items()}

    @property
    def holds(self) -> bool:
        """Whether every chapter ran to its end, every verdict and message is as recorded, and every test passed."""
        return not (self.contradicted or self.otherwise or self.stopped or self.failed)


def load(path: Path) -> Report:
    """Read a report and check it.

    Raises:
        VersionReportError: it is no such report, or its name tells of another Python or torch.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        jsonschema.validate(content, SCHEMA)
    except ValueError as error:
        raise VersionReportError(
            f"{path.name} is no report of `make versions`, which would write one: {error}"
        ) from error
    except jsonschema.ValidationError as error:
        wrong = f"{error.json_path}: {error.message}"
        raise VersionReportError(
            f"{path.name} is no report of `make versions`, which would write one: {wrong}"
        ) from error
    report = Report(content)
    if path.name != (expected := "{}-py{}.json".format(*report.pair)):
        raise VersionReportError(f"{path.name} holds the report of {report.name}, whose name is {expected}")
    return report


@dataclass(frozen=True)
class Versions:
    """What is asked for, and what was run."""

    pythons: tuple[str, ...]  # that are tested
    oldest: str  # torch that pyproject.toml accepts
    pinned: str  # torch of requirements.lock
    reports: Mapping[Pair, Report]
    chapters: frozenset[str]

    @classmethod
    def of(cls, root: Path, folder: Path) -> Versions:
        """Read the repository's own statements, and every report in the folder."""
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lock = (root / "requirements.lock").read_text(encoding="utf-8")
        python = re.compile(r"Programming Language :: Python :: (3\.\d+)")
        reports = [load(path) for path in sorted(folder.glob("*.json"))]
        return cls(
            tuple(found[1] for line in project["classifiers"] if (found := python.fullmatch(line))),
            next(found[1] for line in project["dependencies"] if (found := re.match(r"torch>=([\d.]+)", line))),
            re.search(r"^torch==([\d.]+)$", lock, re.M)[1],
            {report.pair: report for report in reports},
            frozenset(path.stem for path in (root / "notebooks").glob("*.ipynb")),
        )

    @cached_property
    def torches(self) -> list[str]:
        """Every torch that is asked for or was run, the newest first."""
        return sorted({self.oldest, self.pinned, *(torch for torch, _ in self.reports)}, key=numbers, reverse=True)

    @cached_property
    def all_pythons(self) -> list[str]:
        """Every Python that is asked for or was run, the oldest first."""
        return sorted({*self.pythons, *(python for _, python in self.reports)}, key=numbers)

    @cached_property
    def newest_first(self) -> list[Report]:
        """The reports in the order in which the page tells of them."""
        return sorted(self.reports.values(), key=lambda report: tuple(map(numbers, report.pair)), reverse=True)

    def missing(self, report: Report) -> list[str]:
        """What a partial run left out: chapters of the book, and test modules that some run has."""
        modules = {name for other in self.reports.values() for name in other.content["tests"]}
        parts = {
            "chapters": (self.chapters, report.content["chapters"]),
            "test modules": (modules, report.content["tests"]),
        }
        return [
            f"{len(all_ - set(ran))} of {len(all_)} {what} not run"
            for what, (all_, ran) in parts.items()
            if all_ - set(ran)
        ]

    @property
    def baseline(self) -> Report | None:
        """The run of the pinned torch on the oldest Python: what the others are compared with."""
        found = [report for (torch, _), report in self.reports.items() if torch == self.pinned]
        return min(found, key=lambda report: numbers(report.pair[1]), default=None)


# --- parts -----------------------------------------------------------------------------------------------------------


def combinations(versions: Versions) -> Iterator[nodes.Node]:
    """Which combinations were run, and with what result."""

    def cell(torch: str, python: str) -> str:
        if (report := versions.reports.get((torch, python))) is None:
            return "not run"
        parts = {
            "cell failed": len(report.stopped),
            "verdict differs": len(report.contradicted),
            "message differs": len(report.otherwise),
            "test failed": len(report.failed),
        }
        told = [f"{kind}: {number}" for kind, number in parts.items() if number] or ["all as recorded"]
        return "\n".join([*told, *versions.missing(report)])

    def label(torch: str) -> str:
        notes = {"pinned": torch == versions.pinned, "oldest accepted": torch == versions.oldest}
        told = ", ".join(note for note, true in notes.items() if true)
        return f"torch {torch}" + (f"\n{told}" if told else "")

    titles = ["", *(f"Python {python}" for python in versions.all_pythons)]
    yield table(titles, [[label(t), *(cell(t, p) for p in versions.all_pythons)] for t in versions.torches])


def supported(versions: Versions) -> Iterator[nodes.Node]:
    """The range, as the runs support it."""
    ran = versions.newest_first
    if not ran:
        yield nodes.paragraph(text="Nothing was run, so no range is supported.")
        return

    def told(reports: Iterable[Report]) -> str:
        return "; ".join(report.name for report in reports) or "none"

    whole = [report for report in ran if not versions.missing(report)]
    passing = [report for report in ran if report.content["tests"] and not (report.failed or report.contradicted)]
    yield bullets(
        [
            f"Every chapter, verdict, message and test is as recorded with: {told(r for r in whole if r.holds)}.",
            f"Every test of lstm_utils that was run passes, and no verdict is contradicted, with: {told(passing)}.",
            f"Something of that fails, or no test was run, with: {told(r for r in ran if r not in passing)}.",
            f"Only a part was run with: {told(r for r in ran if r not in whole)}.",
        ]
    )
    # A part that passed supports nothing but that part; and a torch that fails ends the range.
    complete = [report for report in passing if report in whole]
    tried = sorted({r.pair[0] for r in ran if numbers(r.pair[0]) >= numbers(versions.oldest)}, key=numbers)
    good = {r.pair[0] for r in complete} - {r.pair[0] for r in ran if r not in passing}
    held = list(takewhile(good.__contains__, tried))
    pythons = sorted({r.pair[1] for r in complete if r.pair[0] in held}, key=numbers)
    text = f"pyproject.toml accepts torch from {versions.oldest} on and Python from {versions.pythons[0]} on. "
    if held[:1] == [versions.oldest]:
        span = " to ".join(dict.fromkeys((held[0], held[-1])))
        text += f"Whole runs support torch {span}, with Python {', '.join(pythons)}."
    else:
        text += "No whole run supports that bound."
    if untried := [python for python in versions.pythons if python not in pythons]:
        text += f" No whole run here supports Python {', '.join(untried)}."
    yield nodes.paragraph("", "", nodes.strong(text=text))


def differing(
    versions: Versions, kind: Callable[[Report], Mapping[str, str]], titles: tuple[str, str], nothing: str
) -> Iterator[nodes.Node]:
    """One row for each difference of a kind, with the versions in which it occurs."""
    rows: dict[tuple[str, str], list[str]] = {}
    for report in versions.newest_first:
        for name, error in kind(report).items():
            rows.setdefault((name, error), []).append(report.name)
    if rows:
        yield table([*titles, "Where"], [[name, error, "\n".join(where)] for (name, error), where in rows.items()])
    else:
        yield nodes.paragraph(text=nothing)


def in_chapters(found: Mapping[Pair, str]) -> dict[str, str]:
    """Cells by a name that a reader finds."""
    return {f"{chapter.replace('_', ' ')}, cell {cell}": text for (chapter, cell), text in found.items()}


def verdicts(versions: Versions) -> Iterator[nodes.Node]:
    """Claims whose verdict was contradicted, and cells that failed."""
    nothing = "No verdict was contradicted in any run."
    yield from differing(versions, lambda report: report.contradicted, ("Claim", "What its cell says"), nothing)


def failures(versions: Versions) -> Iterator[nodes.Node]:
    """Cells that failed."""
    nothing = "Every chapter ran to its end in every run."
    yield from differing(versions, lambda report: in_chapters(report.stopped), ("Cell", "Error"), nothing)


Lines = tuple[str, list[str], list[str]]  # a name, what the baseline says there, what another run says


def otherwise(
    versions: Versions, kind: str, lines_of: Callable[[Report, Report], Iterator[Lines]], nothing: str
) -> Iterator[nodes.Node]:
    """One row for each text that differs from the baseline's: what went, what came, and where."""
    if not (base := versions.baseline):
        yield nodes.paragraph(text="The pinned torch was not run.")
        return
    rows: dict[tuple[str, str, str], list[str]] = {}
    for report in versions.newest_first:
        for name, old, new in lines_of(base, report):
            gone, come = [text for text in old if text not in new], [text for text in new if text not in old]
            if gone or come:
                row = (name, "\n".join(gone) or "nothing", "\n".join(come) or "nothing")
                rows.setdefault(row, []).append(report.name)
    if rows:
        titles = [kind, f"With {base.name}", "With another version", "Where"]
        yield table(titles, [[*texts, "\n".join(where)] for texts, where in rows.items()])
    else:
        yield nodes.paragraph(text=nothing)


def messages(versions: Versions) -> Iterator[nodes.Node]:
    """What torch says otherwise than under the baseline, pitfall by pitfall: old and new."""

    def said(base: Report, report: Report) -> Iterator[Lines]:
        for name, found in report.content["pitfalls"].items():
            old = base.content["pitfalls"].get(name, {"says": []})["says"]
            yield name, old, found["says"] or [found["error"]] * bool(found["error"])

    yield from otherwise(versions, "Pitfall", said, "No message differs between the runs.")


def facts(versions: Versions) -> Iterator[nodes.Node]:
    """Compared cells that print something else than the baseline does: old and new lines."""

    def printed(base: Report, report: Report) -> Iterator[Lines]:
        for cell in sorted({*report.changed, *base.changed}, key=lambda cell: (cell[0], int(cell[1]))):
            if report.ran(cell) and base.ran(cell):
                stored = (report.changed.get(cell) or base.changed[cell])["stored"]
                texts = (one.changed.get(cell, {"now": stored})["now"] for one in (base, report))
                [name] = in_chapters({cell: ""})
                yield name, *([line.strip() for line in text.splitlines()] for text in texts)

    yield from otherwise(versions, "Cell", printed, "No compared cell differs.")


def tests(versions: Versions) -> Iterator[nodes.Node]:
    """Tests of lstm_utils that failed."""
    nothing = "No test failed in any run."
    yield from differing(versions, lambda report: report.failed, ("Test", "Error"), nothing)


def runs(versions: Versions) -> Iterator[nodes.Node]:
    """What was run, where and when."""
    if not versions.reports:
        yield nodes.paragraph(text="Nothing was run.")
        return
    rows = []
    for report in versions.newest_first:
        content = report.content
        counted = {
            "cells": sum(chapter["cells"] for chapter in content["chapters"].values()),
            "claims": len(content["claims"]),
            "pitfalls": len(content["pitfalls"]),
            "test modules": len(content["tests"]),
            "tests passed": sum(found["passed"] for found in content["tests"].values()),
            "tests skipped": sum(len(found["skipped"]) for found in content["tests"].values()),
        }
        packages = ", ".join(f"{name} {version}" for name, version in content["versions"].items() if name != "torch")
        rows.append(
            [
                report.name,
                "\n".join(f"{name}: {number:,}" for name, number in counted.items()),
                content["hardware"],
                packages,
                content["date"],
            ]
        )
    yield table(["Run", "How much", "On", "Other packages", "When"], rows)


PARTS: dict[str, Callable[[Versions], Iterator[nodes.Node]]] = {
    "combinations": combinations,
    "supported": supported,
    "verdicts": verdicts,
    "failures": failures,
    "messages": messages,
    "facts": facts,
    "tests": tests,
    "runs": runs,
}


# --- the directive ---------------------------------------------------------------------------------------------------


def places(env: BuildEnvironment) -> tuple[Path, Path]:
    """The repository, and the folder of the reports."""
    root = Path(env.app.confdir)
    return root, root / env.config.version_reports_folder


def fingerprint(env: BuildEnvironment) -> str:
    """Changes when a report is added, removed or changed, and with what it is held against."""
    root, folder = places(env)
    digest = hashlib.sha256()
    for path in (root / "pyproject.toml", root / "requirements.lock", *sorted(folder.glob("*.json"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class VersionReports(SphinxDirective):
    """One part of the comparison of all reports; the argument names the part."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Read the reports, and render the part."""
        if (part := self.arguments[0]) not in PARTS:
            raise self.error(f"no part {part!r}; there are {', '.join(PARTS)}")
        self.env.metadata[self.env.docname]["version_reports"] = fingerprint(self.env)
        return list(PARTS[part](Versions.of(*places(self.env))))


def outdated(_: Sphinx, env: BuildEnvironment, *__: set[str]) -> list[str]:
    """Pages that show other reports than those present now: Sphinx itself does not look into the folder."""
    shown = {name: found.get("version_reports") for name, found in env.metadata.items()}
    return [name for name, found in shown.items() if found is not None and found != fingerprint(env)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the parts."""
    app.add_config_value("version_reports_folder", "results/versions", "env")
    app.add_directive("version-reports", VersionReports)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
