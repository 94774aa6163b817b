"""A browser and the rendered book in it, for modules that need them. A full run that executed less than the last one
must be red: see floors.json.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Generator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from checks import HTML, said_to_blank, tags
from pdf import browser_path
from playwright.sync_api import Browser, sync_playwright

LONG = 10  # seconds; what takes longer says why, by the marker of that name
FLOORS = json.loads((Path(__file__).parent / "floors.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser_path(), args=flags)
        yield chromium
        chromium.close()


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


class Blanks:
    """While nbval runs the chapters: every exercise, left blank, gets the hint and not the praise."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        yield
        if item.path.suffix == ".ipynb" and "check" in tags(item.cell):
            number = re.search(r"check\(\s*\"(\d+\.\d+)\"", item.cell.source).group(1)
            said = said_to_blank(item)
            assert re.match(rf"Not yet, exercise {number}\b.*Hint: \S", said, re.DOTALL), said


class Long:
    """Says at the end of a run what took long, and why."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.duration > LONG:
            mark = item.get_closest_marker("long")
            reason = "a cell of a chapter" if item.path.suffix == ".ipynb" else "NO REASON IS GIVEN"
            report.user_properties.append(("long", f"{call.duration:4.0f} s: {mark.args[0] if mark else reason}"))
        return report

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        lines = {
            f"{value}: {report.nodeid}"
            for kind in terminalreporter.stats.values()
            for report in kind
            for name, value in getattr(report, "user_properties", ())
            if name == "long"
        }
        if lines:
            terminalreporter.section(f"over {LONG} s, and why")
            for line in sorted(lines, reverse=True):
                terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    # As plugins: the hooks of this file itself do not see the notebooks, which stand in another folder.
    config.pluginmanager.register(Long(), "long")
    if config.getoption("nbval"):
        config.pluginmanager.register(Blanks(), "blanks")
    whole = {Path(argument).name for argument in config.args} >= {"tests", "notebooks"} and config.getoption("nbval")
    if whole and not config.getoption("keyword") and not config.getoption("collectonly"):
        config.pluginmanager.register(Floors(), "floors")


@pytest.fixture(scope="module")
def one_thread():
    """Small sizes: more threads would mostly wait, and rounding would depend on their number."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(browser, address):
    """Open a page; what it fetched elsewhere, and every error in its console, ends the test in red."""
    contexts, complaints = [], []

    def visit(name, scheme="light", width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or complaints.append(r.url))
        page.on("response", lambda r: r.status < 400 or complaints.append(f"{r.status} {r.url}"))
        page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{address}/{name}.html")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
