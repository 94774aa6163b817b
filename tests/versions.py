"""What this Python and this torch make of the book: every claim, every recorded message, the tests of ``lstm_utils``.

``make versions TORCH=2.14.1`` makes an environment and runs this in it. The report is one file in ``results/versions``,
from which the book's page "What changed between versions" is made. A difference is no error of this program: it is what
the report is for, and the exit status says only whether there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
from checks import NOTEBOOKS, ROOT, ignored, printed, tags
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from lstm_utils.claims import claims
from lstm_utils.files import write_whole
from lstm_utils.measure import hardware
from lstm_utils.pitfalls import pitfalls

REPORTS = ROOT / "results" / "versions"
PACKAGES = ("torch", "numpy", "onnx", "onnxscript", "onnxruntime", "torchao")
GIVEN = 'device = "cpu"\nquick = True'
# The first cell of every chapter: it notes what is held against the record, also where the record is contradicted.
LISTENER = """
import json, os
from lstm_utils.claims import Claim
from lstm_utils.pitfalls import Pitfall
def listen(owner, name):
    original = getattr(owner, name)
    def noted(self, *seen, **facts):
        note = {"id": self.id, "says": [text for text in seen if isinstance(text, str)], "error": ""}
        try:
            return original(self, *seen, **facts)
        except Exception as error:
            note["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            if name == "happens":
                note["says"] = []  # a measurement in the chapter's words, not torch's
            with open(os.environ["NOTED"], "a", encoding="utf-8") as log:
                log.write(json.dumps(note) + "\\n")
    setattr(owner, name, noted)
for owner, name in ((Claim, "expect"), (Pitfall, "expect"), (Pitfall, "happens")):
    listen(owner, name)
"""
GALLERY = "08_error_gallery"
SLOW = {"bench", "onnx_export", "runtimes", "speech", "sweep"}
SECTIONS = ("chapters", "claims", "pitfalls", "tests")
UNREACHED = "its cell did not get that far"


def clean(text: str) -> str:
    """A message without colours, and without the folders of this machine."""
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    for folder in (sysconfig.get_path("purelib"), str(ROOT), tempfile.gettempdir(), str(Path.home())):
        text = text.replace(folder, "…")
    return text.strip()


def run_chapter(path: Path) -> dict[str, Any]:
    """Run every cell of a chapter, also after one that fails.

    Returns:
        cells: how many ran. errors: those that failed, by their number in the book. changed: the compared cells that
        print something else than what is stored, with both texts. notes: what the claims and pitfalls were told.
    """
    stored = nbformat.read(path, as_version=4)
    running = nbformat.read(path, as_version=4)
    code = [cell for cell in running.cells if cell.cell_type == "code"]
    at = next(index for index, cell in enumerate(running.cells) if "parameters" in tags(cell))
    running.cells.insert(at + 1, nbformat.v4.new_code_cell(GIVEN))
    running.cells.insert(0, nbformat.v4.new_code_cell(LISTENER))
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    fatal = ""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "noted")
        log.touch()
        environment = os.environ | {"NOTED": str(log), "CUDA_VISIBLE_DEVICES": ""}
        resources = {"metadata": {"path": str(path.parent)}}
        client = NotebookClient(running, timeout=300, kernel_name="python3", allow_errors=True, resources=resources)
        started: list[int] = []
        client.on_cell_start = lambda cell_index, **_: started.append(cell_index)
        try:
            client.execute(env=environment)
        except (CellTimeoutError, DeadKernelError) as error:
            fatal = f"{type(error).__name__}: {clean(str(error)).splitlines()[-1]}"
        notes = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    ran = [cell for index, cell in enumerate(running.cells) if index in started and any(cell is one for one in code)]
    errors = {
        str(number): clean(f"{output.ename}: {output.evalue}")[:500]
        for number, cell in enumerate(code, start=1)
        for output in cell.outputs
        if output.output_type == "error"
    }
    if fatal:
        errors[str(len(ran))] = fatal
    before = [cell for cell in stored.cells if cell.cell_type == "code"]
    changed = {
        str(number): {"stored": printed(old), "now": clean(printed(new))}
        for number, (old, new) in enumerate(zip(before, code, strict=True), start=1)
        if new.execution_count
        and not ignored(old)
        and str(number) not in errors
        and printed(old).strip() != clean(printed(new))
    }
    for note in notes:
        note["error"], note["says"] = clean(note["error"]), [clean(text) for text in note["says"]]
    return {"cells": len(ran), "errors": errors, "changed": changed, "notes": notes}


def run_tests(file: Path) -> dict[str, Any]:
    """Run a test module, and return how many tests passed, and what became of the others.

    It has a process of its own: where that crashes, the module has failed.
    """
    found: dict[str, Any] = {"passed": 0, "skipped": {}, "failed": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "junit.xml")
        options = ["-q", "-p", "no:cacheprovider", "--color=no", f"--junitxml={path}"]
        command = [sys.executable, "-m", "pytest", *options, str(file)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not path.exists():
            end = clean(ran.stdout + ran.stderr)[-300:]
            return found | {"failed": {file.stem: f"pytest ended with status {ran.returncode}: {end}"}}
        cases = list(ElementTree.parse(path).iter("testcase"))
    for case in cases:
        results = {kind: case.find(kind) for kind in ("failure", "error", "skipped")}
        [(kind, result)] = [(k, r) for k, r in results.items() if r is not None][:1] or [("", None)]
        if kind:
            told = clean(result.get("message", ""))[:500]
            found["skipped" if kind == "skipped" else "failed"][case.get("name")] = told
        else:
            found["passed"] += 1
    return found


def held(notes: Mapping[str, list[dict[str, Any]]], expected: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What each claim or pitfall was told, all of its cells together; an error where no cell told it anything."""
    found = {}
    for name in expected:
        mine = [note for told in notes.values() for note in told if note["id"] == name]
        errors = [note["error"] for note in mine if note["error"]] if mine else [UNREACHED]
        found[name] = {"error": "\n".join(errors), "says": [text for note in mine for text in note["says"]]}
    return found


def package_tests() -> list[Path]:
    """The test modules that belong to a module of lstm_utils: they need neither the book nor a browser.

    Without the slow ones, which compile, export or start programs: chapters 13, 14 and 17 do the same.
    """
    names = sorted({path.stem for path in (ROOT / "lstm_utils").glob("*.py")} - SLOW)
    return [path for name in names if (path := ROOT / "tests" / f"test_{name}.py").exists()]


def run(notebooks: Iterable[Path], tests: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Run chapters, then test modules, and after each yield what this Python and this torch made of it."""
    for path in notebooks:
        found = run_chapter(path)
        notes = {path.stem: found.pop("notes")}
        judged = [claim.id for claim in claims().values() if claim.verdict not in ("open", "not-testable")]
        asserted = [name for name in judged if claims()[name].chapter == path.stem]
        shown = [entry.id for entry in pitfalls().values() if not entry.unexecuted and path.stem == GALLERY]
        yield head() | {
            "chapters": {path.stem: found},
            "claims": {name: told["error"] for name, told in held(notes, asserted).items()},
            "pitfalls": held(notes, shown),
        }
    for path in tests:
        yield head() | {"tests": {path.stem: run_tests(path)}}


def head() -> dict[str, Any]:
    """What every report begins with."""
    return {
        "schema": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "hardware": str(hardware("cpu")),
        **{name: {} for name in SECTIONS},
    }


def added(report: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """A report, with what a part of it found now; what the part did not run stays.

    Raises:
        ValueError: the report is of other versions, or of another machine.
    """
    for name in ("schema", "python", "versions", "hardware"):
        if report[name] != part[name]:
            raise ValueError(
                f"the report has {name} {report[name]}, and here it is {part[name]}; run all, without --add"
            )
    return {**part, **{name: {**report[name], **part[name]} for name in SECTIONS}}


def report_name(report: Mapping[str, Any]) -> str:
    """The name of its file: the release of torch, whatever build it is, and the Python."""
    release = report["versions"]["torch"].partition("+")[0]
    return f"{release}-py{'.'.join(report['python'].split('.')[:2])}.json"


def differences(report: Mapping[str, Any]) -> Iterator[str]:
    """What is not as recorded, one line each."""
    for name, chapter in report["chapters"].items():
        yield from (f"{name}, cell {cell}: {error}" for cell, error in chapter["errors"].items())
    yield from (f"{name}: {error}" for name, error in report["claims"].items() if error)
    yield from (f"{name}: {found['error']}" for name, found in report["pitfalls"].items() if found["error"])
    for name, module in report["tests"].items():
        yield from (f"{name}::{test}: {error}" for test, error in module["failed"].items())


def main(argv: list[str] | None = None) -> int:
    """Run, write the report after each chapter and module, say what differs."""
    by_name = {path.stem: path for path in (*NOTEBOOKS, *package_tests())}
    parser = argparse.ArgumentParser(prog="python tests/versions.py", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--folder", type=Path, default=REPORTS, help="where the report goes (default: results/versions)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=by_name, default=list(by_name), help="some chapters or test modules"
    )
    parser.add_argument("--add", action="store_true", help="to the report that is there, which otherwise begins anew")
    given = parser.parse_args(argv)
    given.folder.mkdir(parents=True, exist_ok=True)
    report = head()
    path = given.folder / report_name(report)
    if given.add and path.exists():
        report = added(json.loads(path.read_text(encoding="utf-8")), report)
    notebooks, tests = ([by_name[n] for n in given.only if by_name[n] in kind] for kind in (NOTEBOOKS, package_tests()))
    for part in run(notebooks, tests):
        report = added(report, part)
        print(*part["chapters"], *part["tests"], *differences(part), sep="\n  ", flush=True)
        write_whole(path, json.dumps(report, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    wrong = list(differences(report))
    print(f"{len(wrong)} differences from the record; written to {path}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
