"""Hardware reports: what chapter 14 measured on one machine, as JSON that is checked before it is kept or shown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lstm_utils.arguments import require
from lstm_utils.files import write_whole

BASE = "eager fp32"  # the runtime that all others are compared with
SCHEMA = 1
# What all records of a machine have in common. The versions of torch and Python may change, and the threads do.
MACHINE = ("processor", "cores", "instruction_set", "system")


class ReportError(ValueError):
    """A record or a report that is not what the schema says; the message names the file, the field and the cure."""


def save_record(path: Path | str, record: Mapping[str, Any]) -> Path:
    """Check the record of one run and write it, whole or not at all.

    Args:
        path: the file; its folder exists.
        record: see ``report.schema.json``, ``record``.

    Raises:
        TypeError: ``path`` is neither a text nor a path.
        ReportError: it is not as the schema says, or contradicts itself.
        OSError: the folder does not exist, or ``path`` is one.
        ModuleNotFoundError: jsonschema is not installed.
    """
    require("path", path, str | Path, "a path")
    path = Path(path)
    write_whole(path, as_json(check_record(record, path.name)))
    return path


def check_record(record: object, name: str) -> dict[str, Any]:
    """The record as JSON has it, once it is found sound.

    Args:
        record: what should be one.
        name: what an error calls it: the file.

    Raises:
        TypeError: ``name`` is no text.
        ReportError: it is not as the schema says, or contradicts itself.
    """
    require("name", name, str, "a text")
    return _checked(record, "record", name)


def merge_records(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of the records of one machine, in the order of device, threads and size.

    Raises:
        ReportError: there are none, they come from several machines, or two have the same settings.
    """
    cells = sorted(records, key=_identity)
    if not cells:
        raise ReportError("a report needs at least one record, got none")
    machine: dict[str, Any] = {field: cells[0]["hardware"][field] for field in MACHINE}
    machine["devices"] = list(dict.fromkeys(cell["hardware"]["device"] for cell in cells))
    return _checked({"schema": SCHEMA, "hardware": machine, "cells": cells}, "report", "the report")


def _identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells the records of one machine apart."""
    return tuple(record["settings"][field] for field in ("device", "threads", "hidden_size"))


def report_name(report: Mapping[str, Any]) -> str:
    """The file name of a report, such as ``amd-epyc-2-cores-avx512-linux-x86-64-cpu.json``: hardware, and no more."""
    return f"{machine_name(report['hardware'])}-{_slug(' '.join(report['hardware']['devices']))}.json"


def machine_name(hardware: Mapping[str, Any]) -> str:
    """A name for files out of what all records of a machine have in common."""
    words = {**hardware, "cores": f"{hardware['cores']} core{'' if hardware['cores'] == 1 else 's'}"}
    return _slug(" ".join(words[field] for field in MACHINE))


def _slug(words: str) -> str:
    return "-".join(re.findall("[a-z0-9]+", re.sub(r"\((r|tm)\)", "", words.lower())))


def save_report(folder: Path | str, report: Mapping[str, Any]) -> Path:
    """Check a report and write it into the folder under its own name, whole or not at all.

    Raises:
        ReportError: it is not as the schema says, or contradicts itself.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(folder) / report_name(report)
    write_whole(path, as_json(_checked(report, "report", path.name)))
    return path


def load_reports(folder: Path | str) -> dict[str, dict[str, Any]]:
    """Every report of the folder by file name, in alphabetical order; none where there is no folder.

    Raises:
        ReportError: a file is no sound report, is not named after its hardware, or repeats a run of another file.
    """
    found: dict[str, dict[str, Any]] = {}
    runs: dict[tuple[Any, ...], str] = {}
    for path in sorted(Path(folder).glob("[!.]*.json")):  # a dot: the half of a file that a kill has left
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ReportError(f"{path.name}: no JSON ({error}); write reports with `make sweep`") from error
        report = _checked(read, "report", path.name)
        if path.name != report_name(report):
            raise ReportError(f"{path.name}: the hardware in it calls for the name {report_name(report)}")
        for cell in report["cells"]:
            run = (machine_name(report["hardware"]), cell["hardware"]["device"], *_identity(cell))
            if (other := runs.setdefault(run, path.name)) != path.name:
                raise ReportError(f"{path.name}: {other} has a run of {' '.join(map(str, run))} too; keep one of them")
        found[path.name] = report
    return found


# --- checks ----------------------------------------------------------------------------------------------------------


def _checked(value: object, kind: str, name: str) -> dict[str, Any]:
    """The value as JSON reads it back; or an error that says where it departs from the schema, or from itself."""
    try:
        plain = json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:  # the latter two where it holds itself
        raise ReportError(f"{name}: {error}; a record holds numbers, texts, lists and mappings") from error
    if problem := _departure(plain, kind) or next(_contradictions(plain, kind), None):
        raise ReportError(f"{name}: {problem}")
    result: dict[str, Any] = plain
    return result


def _departure(value: object, kind: str) -> str | None:
    """The first place where the value is not as the schema says, in words."""
    errors = _validator(kind).iter_errors(value)
    first = min(errors, key=lambda error: (list(error.absolute_path), error.validator != "required"), default=None)
    if first is None:
        return None
    place = first.json_path.removeprefix("$").removeprefix(".") or f"the {kind}"
    if first.validator == "required":
        missing = next(field for field in first.validator_value if field not in first.instance)
        return f"{place} has no {missing!r}; it needs {', '.join(first.validator_value)}"
    if first.validator == "additionalProperties":
        known = ", ".join(first.schema["properties"])
        unknown = next(field for field in first.instance if field not in first.schema["properties"])
        return f"{place} has the unknown field {unknown!r}; the known ones are {known}"
    return f"{place} is {_short(first.instance)}; expected {first.schema['description']}"


@cache
def _validator(kind: str) -> Any:
    """What holds values against that part of the schema."""
    try:
        import jsonschema
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('checking a report needs jsonschema: pip install "lstm-utils[notebooks]"') from error
    schema = json.loads(files("lstm_utils").joinpath("report.schema.json").read_text(encoding="utf-8"))
    finite = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("number", _is_finite_number)
    validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=finite)
    return validator({"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]})


def _is_finite_number(_: object, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _contradictions(value: Any, kind: str) -> Iterator[str]:
    """What no schema can say: where a sound-looking record or report contradicts itself."""
    if kind == "record":
        yield from _contradictions_of_record(value)
        return
    seen = set()
    for index, cell in enumerate(value["cells"]):
        at, machine = f"cells[{index}]", value["hardware"]
        for problem in _contradictions_of_record(cell):
            yield f"{at}.{problem}"
        for field in MACHINE:
            if cell["hardware"][field] != machine[field]:
                found, expected = _short(cell["hardware"][field]), _short(machine[field])
                yield f"{at}.hardware.{field} is {found}, and the report's is {expected}; a report has one machine"
        if cell["hardware"]["device"] not in machine["devices"]:
            yield f"{at}.hardware.device is {_short(cell['hardware']['device'])}, which hardware.devices lacks"
        if (key := _identity(cell)) in seen:
            yield f"{at} repeats the device, threads and hidden_size {key} of an earlier one; keep one of them"
        seen.add(key)


def _contradictions_of_record(record: Mapping[str, Any]) -> Iterator[str]:
    runtimes, seen = record["runtimes"], set()
    if (precision := runtimes[BASE].get("precision")) != "float32":
        yield f'runtimes[{BASE!r}].precision is {_short(precision)}; the base of all ratios has to run, in "float32"'
    for index, timing in enumerate(record["timings"]):
        at, name = f"timings[{index}]", timing["runtime"]
        if not runtimes.get(name, {"ran": False})["ran"]:
            yield f"{at}.runtime is {name!r}, which runtimes does not list as one that ran"
        if not timing["low_s"] <= timing["median_s"] <= timing["high_s"]:
            yield f"{at} has its median_s outside low_s to high_s"
        key = (name, timing["batch_size"], timing["seq_len"])
        if key in seen:
            yield f"{at} repeats {key}; keep one of them"
        seen.add(key)
    for name, batch_size, seq_len in sorted(seen):
        if (BASE, batch_size, seq_len) not in seen:
            yield f"timings has {name!r} at batch {batch_size}, length {seq_len}, and {BASE!r} not; time both"
    for name, runtime in runtimes.items():
        if runtime["ran"] and name not in {timed for timed, _, _ in seen}:
            yield f"runtimes says that {name!r} ran, and timings has no time of it"
    for index, ratio in enumerate(record["projection"]):
        if not ratio["low"] <= ratio["ratio"] <= ratio["high"]:
            yield f"projection[{index}] has its ratio outside low to high"


def as_json(content: object) -> str:
    """The text of a JSON file that can be read, and compared line by line."""
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
