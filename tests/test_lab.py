"""`make lab` as a reader uses it: a chapter is run, changed and answered in JupyterLab, and no other host is asked."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest
from checks import LOCAL, NOTEBOOKS, ROOT, asked, parameters, spied, tags
from playwright.sync_api import expect

from lstm_utils.exercises import NOT_YET, PASSED

CHAPTER = NOTEBOOKS[0]
TOKEN = "of-the-test"
ARGUMENTS = f"--no-browser --allow-root --ip=127.0.0.1 --port=0 --IdentityProvider.token={TOKEN}"
WAIT = 60_000  # ms, for a busy machine


def digest():
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (ROOT / "notebooks").rglob("*.ipynb")}


def shown(cell):
    """Which kinds of output of a cell are to be seen; what it only glues is not."""
    kinds = {kind for output in cell.outputs for kind in output.get("data", [output.output_type])}
    return kinds & {"stream", "text/plain", "image/png"}


@pytest.fixture
def checkout(tmp_path):
    """A copy of what `make lab` needs, with the first chapter as it is before its first run, and shortened."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / ".venv" / ".installed").touch()  # newer than the lock: nothing to set up
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(CHAPTER, as_version=4)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.execution_count, cell.outputs = None, []
        if "parameters" in tags(cell):
            cell.source = cell.source.replace("quick = False", "quick = True")
    nbformat.write(notebook, tmp_path / "notebooks" / CHAPTER.name)
    return tmp_path


@pytest.fixture
def lab(checkout):
    """Start `make lab`, and return the address that it prints; its processes end with the test, whatever happens."""
    processes = []

    def start(arguments=ARGUMENTS):
        kept = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
        # The user's own settings, workspaces and history are neither read nor written.
        own = {f"JUPYTER_{name}_DIR": str(checkout / "own") for name in ("CONFIG", "DATA", "RUNTIME")}
        own |= {f"JUPYTERLAB_{name}_DIR": str(checkout / "own") for name in ("SETTINGS", "WORKSPACES")}
        # A reader who once asked JupyterLab for news is the worst case.
        settings = checkout / "own" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text('{"fetchNews": "true"}', encoding="utf-8")
        own |= {"IPYTHONDIR": str(checkout / "own"), **spied(checkout)}
        process = subprocess.Popen(
            ["make", "lab", f"LAB_ARGS={arguments}"],
            cwd=checkout,
            env=kept | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        log, found, told = [], [], threading.Event()

        def read():
            for line in process.stdout:
                log.append(line)
                if address := re.search(r"http://127\.0\.0\.1:\d+/lab\S*\?token=", line):
                    found.append(address.group() + TOKEN)  # the log hides it
                    told.set()
            told.set()

        threading.Thread(target=read, daemon=True).start()
        if not told.wait(60) or not found:
            pytest.fail(f"JupyterLab did not start:\n{''.join(log)}")
        return found[0]

    yield start
    for process in processes:
        for stop in (signal.SIGTERM, signal.SIGKILL):  # asked first, so that it ends its kernels
            try:
                os.killpg(process.pid, stop)
                process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


class Notebook:
    """The notebook that is open in JupyterLab."""

    def __init__(self, page):
        self.page = page
        self.cells = page.locator(".jp-Notebook .jp-Cell")
        self.ran = 0

    def outputs(self, at):
        return self.cells.nth(at).locator(".jp-OutputArea-output")

    def shift_enter(self, at, cell):
        """Run the selected cell, which is the one at that place, and wait until it has run."""
        expect(self.cells.nth(at)).to_have_class(re.compile("jp-mod-active"), timeout=WAIT)
        self.page.keyboard.press("Shift+Enter")
        if cell.cell_type == "code":
            self.ran += 1
            if not cell.metadata.get("jupyter", {}).get("source_hidden"):  # the next one's number tells, then
                self.has_run(at)

    def has_run(self, at):
        prompt = self.cells.nth(at).locator(".jp-InputPrompt")
        expect(prompt).to_have_text(f"[{self.ran}]:", timeout=WAIT)

    def write(self, at, source):
        self.cells.nth(at).locator(".cm-content").fill(source)

    def select(self, at):
        self.cells.nth(at).locator(".jp-InputPrompt").click()


@pytest.fixture
def opened(lab, browser):
    """The first chapter, opened by a double click where `make lab` begins, with a kernel that waits."""
    address = lab()
    host = address.partition("/lab")[0]
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, elsewhere = context.new_page(), []
    local = (host, host.replace("http", "ws", 1), "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(local) or elsewhere.append(request.url))
    page.on("websocket", lambda socket: socket.url.startswith(local) or elsewhere.append(socket.url))
    page.goto(address)
    page.locator(".jp-DirListing-item", has_text=CHAPTER.name).dblclick(timeout=WAIT)
    expect(page.locator("#jp-main-statusbar")).to_contain_text("(ipykernel) | Idle", timeout=WAIT)
    yield Notebook(page)
    context.close()
    assert elsewhere == []


@pytest.mark.long("starts JupyterLab and runs a chapter there, cell by cell")
def test_a_chapter_in_jupyterlab(opened, checkout):
    before = digest()
    stored = nbformat.read(CHAPTER, as_version=4)
    code = {at: cell for at, cell in enumerate(stored.cells) if cell.cell_type == "code"}

    # Cell by cell.
    opened.select(0)
    for at, cell in enumerate(stored.cells):
        opened.shift_enter(at, cell)
        if at in code and shown(cell):
            expect(opened.outputs(at)).not_to_have_count(0, timeout=WAIT)
    expect(opened.page.locator("[data-mime-type='application/vnd.jupyter.error']")).to_have_count(0)

    # Another seed: another network, and another figure.
    drawn = next(at for at, cell in code.items() if "image/png" in shown(cell))
    figure = opened.outputs(drawn).locator("img")
    first = figure.get_attribute("src")
    setup = next(at for at, cell in code.items() if "parameters" in tags(cell))
    seed = parameters(list(code.values()))["seed"]
    opened.write(setup, code[setup].source.replace(f"seed = {seed}", f"seed = {seed + 1}"))
    opened.page.get_by_role("menuitem", name="Run", exact=True).click()
    opened.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    opened.ran += len(code)
    opened.has_run(max(code))
    expect(figure).to_have_count(1)
    assert figure.get_attribute("src") != first

    # Both kinds of answer to the first exercise.
    exercise = next(at for at, cell in code.items() if "exercise" in tags(cell))
    wrong, right = "lambda H: slice(0, H)", "lambda H: slice(H, 2 * H)"
    for answer, verdict in ((wrong, rf"{NOT_YET}, exercise 1\.1\. Hint: \w"), (right, rf"{PASSED}, exercise 1\.1\.")):
        opened.write(exercise, f"forget_rows = {answer}")
        for at in range(exercise, exercise + 3):
            opened.shift_enter(at, code[at])
        expect(opened.outputs(exercise + 1)).to_have_count(0)  # the book's solution stood aside
        expect(opened.outputs(exercise + 2)).to_have_text(re.compile(rf"^{verdict}"))

    # Nothing outside this machine was asked, and the working tree is as it was.
    assert "127.0.0.1" in asked(checkout) <= LOCAL
    assert digest() == before


def test_a_lab_that_does_not_start_says_why(lab):
    with pytest.raises(pytest.fail.Exception, match=r"JupyterLab did not start:\n[\s\S]*no-such-port"):
        lab("--port=no-such-port")
