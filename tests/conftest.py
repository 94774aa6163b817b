"""A full run that executed less than the last one must be red: see floors.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = json.loads((Path(__file__).parent / "floors.json").read_text(encoding="utf-8"))


def shortfalls(passed: dict[str, int], floors: dict[str, int]) -> list[str]:
    """What ran less often than it must, one line each."""
    return [
        f"{passed.get(kind, 0)} {kind} passed, and the floor in tests/floors.json is {floor}"
        for kind, floor in floors.items()
        if passed.get(kind, 0) < floor
    ]


class Floors:
    """Counts what passed in a run of the whole suite, and fails the run when it is too little."""

    def __init__(self) -> None:
        self.passed = dict.fromkeys(FLOORS, 0)
        self.notebooks: set[str] = set()
        self.lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            path = report.nodeid.partition("::")[0]
            is_cell = path.endswith(".ipynb")
            self.passed["cells" if is_cell else "tests"] += 1
            if is_cell:
                self.notebooks.add(path)
                self.passed["notebooks"] = len(self.notebooks)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.lines = shortfalls(self.passed, FLOORS)
        if self.lines and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.lines:
            terminalreporter.write_line(f"FLOOR: {line}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    whole = {Path(argument).name for argument in config.args} >= {"tests", "notebooks"} and config.getoption("nbval")
    if whole and not config.getoption("keyword") and not config.getoption("collectonly"):
        config.pluginmanager.register(Floors(), "floors")
