"""The page that compares machines: every table is computed from the reports in ``results/hardware``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective

from lstm_utils.report import BASE, ReportError, load_reports
from lstm_utils.roofline import Roofline, lstm_work
from lstm_utils.spec import LSTMSpec

KINDS = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS"}
Shape = tuple[int, int, int]  # hidden size, batch, length
Timing = Mapping[str, Any]


class HardwareReportError(SphinxError):
    """A report that cannot be shown; the build stops."""

    category = "Hardware report"


@dataclass(frozen=True)
class Setting:
    """One column of a comparison: a device of a machine, and a number of threads."""

    machine: str
    device: str
    records: tuple[Mapping[str, Any], ...]

    @property
    def label(self) -> str:
        """Its name."""
        return f"{self.machine}: {self.device}"

    def timings(self) -> dict[Shape, list[Timing]]:
        """What was timed at each shape, the fastest first."""
        found: dict[Shape, list[Timing]] = {}
        for record in self.records:
            for timing in sorted(record["timings"], key=lambda timing: timing["median_s"]):
                shape = (record["settings"]["hidden_size"], timing["batch_size"], timing["seq_len"])
                found.setdefault(shape, []).append(timing)
        return found

    def record(self, shape: Shape) -> Mapping[str, Any]:
        """The record that holds the shape."""
        return next(record for record in self.records if record["settings"]["hidden_size"] == shape[0])

    def precision(self, shape: Shape, runtime: str) -> str:
        """What the runtime computes with."""
        return str(self.record(shape)["runtimes"][runtime]["precision"])


def count(number: int, noun: str) -> str:
    """The number and its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def machine_label(machine: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> str:
    """Processor and cores; where another machine has the same, more of what tells them apart."""
    name = f"{machine['processor'].replace('(R)', '').replace('(TM)', '')}, {count(machine['cores'], 'core')}"
    same = [other for other in others if all(other[key] == machine[key] for key in ("processor", "cores"))]
    for field in ("instruction_set", "system"):
        if len({other[field] for other in same}) > 1:
            name += f", {machine[field]}"
    return name


def settings(reports: Iterable[Mapping[str, Any]]) -> list[Setting]:
    """Every device and number of threads of every report, in their order."""
    reports = list(reports)
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for report in reports:
        name = machine_label(report["hardware"], [other["hardware"] for other in reports])
        for record in report["cells"]:
            device = record["hardware"]["device"]
            if record["settings"]["device"] == "cpu":
                device += f", {count(record['settings']['threads'], 'thread')}"
            elif ":" in record["settings"]["device"]:  # one of several
                device += f" ({record['settings']['device']})"
            if record["settings"]["quick"]:
                device += " (quick)"
            found.setdefault((name, device), []).append(record)
    return [Setting(machine, device, tuple(records)) for (machine, device), records in found.items()]


# --- tables ----------------------------------------------------------------------------------------------------------


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> nodes.table:
    """A table whose first row and first column are headers; a newline in a text starts a paragraph."""
    result = nodes.table(classes=["hardware"])
    group = nodes.tgroup(cols=len(titles))
    result += group
    group += [nodes.colspec(colwidth=1, stub=int(index == 0)) for index in range(len(titles))]

    def row(texts: Sequence[str]) -> nodes.row:
        cells = [[nodes.paragraph(text=line) for line in text.splitlines()] for text in texts]
        return nodes.row("", *[nodes.entry("", *cell) for cell in cells])

    group += [nodes.thead("", row(titles)), nodes.tbody("", *map(row, rows))]
    return result


def bullets(lines: Iterable[str]) -> nodes.bullet_list:
    """A list of sentences."""
    return nodes.bullet_list("", *[nodes.list_item("", nodes.paragraph(text=line)) for line in lines])


def sources(reports: Mapping[str, Mapping[str, Any]], _: Sequence[Setting]) -> Iterator[nodes.Node]:
    """Which hardware the page speaks of, and of which it does not."""
    kinds = [{record["settings"]["device"].partition(":")[0] for record in r["cells"]} for r in reports.values()]
    counted = {name: sum(kind in present for present in kinds) for kind, name in KINDS.items()}
    parts = [f"{name}: {count(number, 'report') if number else 'no report yet'}" for name, number in counted.items()]
    yield nodes.paragraph("", "", nodes.strong(text=f"{count(len(reports), 'report')}. {'. '.join(parts)}."))
    if not reports:
        return
    heads = [report["hardware"] for report in reports.values()]
    rows = []
    for name, report in reports.items():
        head, cells = report["hardware"], report["cells"]
        rows.append(
            [
                machine_label(head, heads),
                ", ".join(head["devices"]),
                head["instruction_set"],
                head["system"],
                ", ".join(sorted({record["versions"]["torch"] for record in cells})),
                str(len(cells)) + (" (quick)" if any(record["settings"]["quick"] for record in cells) else ""),
                name,
            ]
        )
    yield table(["Machine", "Devices", "Instructions", "System", "torch", "Runs", "File"], rows)


def limits(_: Mapping[str, Any], columns: Sequence[Setting]) -> Iterator[nodes.Node]:
    """The measured limits: the highest of all runs, since a disturbance can only lower one."""
    sizes = sorted({record["settings"]["hidden_size"] for setting in columns for record in setting.records})

    def highest(values: Iterable[float | None]) -> str:
        found = [value for value in values if value is not None]
        return f"{max(found) / 1e9:,.1f}" if found else "–"

    def row(setting: Setting) -> Iterator[str]:
        lines = [(record["settings"]["hidden_size"], record["roofline"]) for record in setting.records]
        yield setting.label
        for precision in ("float32", "bfloat16"):
            yield highest(line["gemm_flops"][precision] for _, line in lines)
        yield highest(line["bandwidth"] for _, line in lines)
        for size in sizes:
            yield highest(line["cache_bandwidth"] for own, line in lines if own == size)

    titles = [
        "float32, GFLOP/s",
        "bfloat16, GFLOP/s",
        "memory, GB/s",
        *(f"weights of H {size}, GB/s" for size in sizes),
    ]
    yield table(["Where", *titles], [list(row(setting)) for setting in columns])


def grid(columns: Sequence[Setting], cell: Callable[[Setting, Shape], str]) -> nodes.table:
    """A row for each shape, a column for each setting."""
    shapes = sorted({shape for setting in columns for shape in setting.timings()})
    rows = [
        ["H {}, N {}, T {}".format(*shape), *(cell(s, shape) if shape in s.timings() else "–" for s in columns)]
        for shape in shapes
    ]
    return table(["Shape", *(setting.label for setting in columns)], rows)


def seconds(value: float) -> str:
    """A time with its unit."""
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def best(setting: Setting, shape: Shape, precisions: Sequence[str]) -> list[Timing]:
    """The fastest runtime with such a precision, and those that the spread does not tell from it."""
    able = [t for t in setting.timings()[shape] if setting.precision(shape, t["runtime"]) in precisions]
    return [timing for timing in able if timing["low_s"] <= able[0]["high_s"]]


def fastest(columns: Sequence[Setting], precisions: Sequence[str]) -> Iterator[nodes.Node]:
    """Which runtime to take at each shape, and what it saves."""

    def cell(setting: Setting, shape: Shape) -> str:
        winners = best(setting, shape, precisions)
        base = next(timing for timing in setting.timings()[shape] if timing["runtime"] == BASE)
        names = " or ".join(timing["runtime"] for timing in winners)
        median = winners[0]["median_s"]
        return f"{names}\n{median / base['median_s']:.2f}× ({seconds(median)})"

    yield bullets(summary(setting, precisions) for setting in columns)
    yield grid(columns, cell)


def summary(setting: Setting, precisions: Sequence[str]) -> str:
    """How often which runtime was the fastest, in words."""
    wins: Counter[str] = Counter()
    for shape in setting.timings():
        winners = best(setting, shape, precisions)
        wins[winners[0]["runtime"] if len(winners) == 1 else "too close to call"] += 1
    parts = [f"{name} at {number}" for name, number in wins.most_common()]
    return f"{setting.label}. The fastest at {count(len(setting.timings()), 'shape')}: {', '.join(parts)}."


def roof(_: Mapping[str, Any], columns: Sequence[Setting]) -> Iterator[nodes.Node]:
    """How much of what the limits allow the fastest runtime reaches, and which limit it meets."""

    def cell(setting: Setting, shape: Shape) -> str:
        timing = best(setting, shape, PRECISIONS)[0]
        record, precision = setting.record(shape), setting.precision(shape, timing["runtime"])
        line = Roofline(**{"cache_bytes": 1, **record["roofline"]})
        work = lstm_work(LSTMSpec(record["settings"]["input_size"], shape[0]), shape[2], shape[1], precision)
        share = line.least_seconds(work, precision) / timing["median_s"]
        return f"{share:.0%} of {line.binds(work, precision)}\n{timing['runtime']}"

    yield grid(columns, cell)


def absent(_: Mapping[str, Any], columns: Sequence[Setting]) -> Iterator[nodes.Node]:
    """What was not measured, and why."""
    rows = {
        (setting.label, name, runtime["reason"]): None
        for setting in columns
        for record in setting.records
        for name, runtime in record["runtimes"].items()
        if not runtime["ran"]
    }
    if rows:
        yield table(["Where", "Did not run", "Why"], list(rows))
    else:
        yield nodes.paragraph(text="Every runtime ran everywhere.")


PRECISIONS = ("float32", "bfloat16", "int8")
PARTS: dict[str, Callable[[Mapping[str, Mapping[str, Any]], Sequence[Setting]], Iterator[nodes.Node]]] = {
    "sources": sources,
    "limits": limits,
    "fastest": lambda _, columns: fastest(columns, PRECISIONS),
    "fastest-float32": lambda _, columns: fastest(columns, ["float32"]),
    "roof": roof,
    "absent": absent,
}


# --- the directive ---------------------------------------------------------------------------------------------------


def folder(env: BuildEnvironment) -> Path:
    """Where the reports are."""
    return Path(env.app.confdir) / env.config.hardware_reports_folder


def fingerprint(env: BuildEnvironment) -> str:
    """Changes when a report is added, removed or changed."""
    digest = hashlib.sha256()
    for path in sorted(folder(env).glob("*.json")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class HardwareReports(SphinxDirective):
    """One part of the comparison of all reports; the argument names the part."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Read the reports, and render the part."""
        if (part := self.arguments[0]) not in PARTS:
            raise self.error(f"no part {part!r}; there are {', '.join(PARTS)}")
        self.env.metadata[self.env.docname]["hardware_reports"] = fingerprint(self.env)
        try:
            reports = load_reports(folder(self.env))
        except ReportError as error:
            raise HardwareReportError(f"{self.config.hardware_reports_folder}/{error}") from error
        if not reports and part != "sources":
            return [nodes.paragraph(text="There is no report yet.")]
        return list(PARTS[part](reports, settings(reports.values())))


def outdated(_: Sphinx, env: BuildEnvironment, *__: set[str]) -> list[str]:
    """Pages that show other reports than those present now: Sphinx itself does not look into the folder."""
    shown = {name: found.get("hardware_reports") for name, found in env.metadata.items()}
    return [name for name, found in shown.items() if found not in (None, fingerprint(env))]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the parts."""
    app.add_config_value("hardware_reports_folder", "results/hardware", "env")
    app.add_directive("hardware-reports", HardwareReports)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
