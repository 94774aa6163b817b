"""Faults: a kill at any moment, a full disk, damaged files. Each ends in a clear message, whole files, a correct rerun.

Tested elsewhere: a sweep killed in a cell, and its damaged records (test_sweep.py); a training killed in an epoch, and
checkpoints cut short (test_training.py); the cache of the speech (test_speech.py); damaged reports (test_report.py,
test_hardware_reports.py, test_bench.py).
"""

import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import matplotlib.pyplot as plt
import measured
import nbformat
import pdf
import pytest
import torch
import yaml
from checks import ROOT, parsed
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from records import WRITES, notebook, record
from test_training import Training, assert_equal_bit_for_bit
from torch import nn

from lstm_utils import bench, datasets, speech, sweep
from lstm_utils.datasets import DamagedDataError, load_weather, load_words
from lstm_utils.machines import Run
from lstm_utils.measure import hardware
from lstm_utils.onnx_export import export_onnx, quantize_onnx
from lstm_utils.results import save_results
from lstm_utils.training import CheckpointError, load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
# Processes of this kind are forked from one that has imported all of this, and run nothing.
APART = multiprocessing.get_context("forkserver")
APART.set_forkserver_preload([__name__, "torch._dynamo", "onnxruntime.quantization", "matplotlib.backends.backend_agg"])


@pytest.fixture(scope="module", autouse=True)
def apart():
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # or it would not find this file
        forkserver.ensure_running()


# What writes ---------------------------------------------------------------------------------------------------------
# Each writes its files into a folder, and others for another version; what it reports on stderr comes as SystemExit.


def train(folder, version):
    Training().fit(version, checkpoint=folder / "a.pt")


def export(folder, version):
    torch.manual_seed(version)
    export_onnx(nn.LSTM(8, 16).eval(), torch.randn(3, 2, 8), folder / "model.onnx")


def quantize(folder, version):
    quantize_onnx(source(folder, version, export) / "model.onnx", folder / "quantized.onnx")


def source(folder, version, make):
    """What a writer reads: made once, beside the folder."""
    if not (source := folder.parent / f"source {version}").exists():
        source.mkdir()
        make(source, version)
    return source


def keep_results(folder, version):
    figure, axis = plt.subplots()
    axis.plot([version, 2])
    save_results("one", {"losses": [version] * 2000}, figure, folder=folder)
    plt.close(figure)


def run_sweep(folder, version):
    def run_cell(_, cell):
        return Run(cell, f"executed {version}\n" * 500, record(hidden_size=cell.hidden_size, speed=version), "", 1.0)

    def write_notebook(folder, version):
        (folder / "n.ipynb").write_text(notebook(f"{WRITES}\n{version}"), encoding="utf-8")

    path = source(folder, version, write_notebook) / "n.ipynb"
    options = ["--notebook", path, "--folder", folder, "--results", folder, "--hidden-sizes", 8, "--threads", 1]
    with patch.object(sweep, "run_cell", run_cell):
        _main(sweep.main, options)


def run_bench(folder, version):
    row = bench.Comparison("a", "b", "c", "d" * 5000, "time", *[0.1 * version] * 3, "faster", agree=True)
    with patch.object(bench, "run", lambda *_: bench.Report(hardware(), {}, (row,))):
        _main(bench.main, ["--output", folder / "bench.json"])


def _main(main, options):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        status = main([str(option) for option in options])
    if status:
        raise SystemExit(f"status {status}: {said.getvalue()}")


WRITERS = [train, export, quantize, keep_results, run_sweep, run_bench]


def whole_files(folder):
    """What is in the folder, by name; of a checkpoint all but how long its epochs took. Hidden files are left out."""
    found = {}
    for path in sorted(folder.rglob("[!.]*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
        if path.suffix == ".pt":
            state = load_checkpoint(path)
            state["history"]["seconds"] = None
            torch.save(state, buffer := io.BytesIO())
            found[path.name] = buffer.getvalue()
    return found


def hidden_files(folder):
    return [path for path in folder.rglob(".*") if path.is_file()]


@pytest.fixture(scope="module", params=WRITERS, ids=lambda write: write.__name__)
def written(request, tmp_path_factory):
    """A writer, a folder with its first version, and one with the second, which no fault has disturbed."""
    write, folders = request.param, tmp_path_factory.mktemp("written")
    torch.set_num_threads(1)
    for version in (1, 2):
        shutil.copytree(folders / "1", folders / "2") if version == 2 else (folders / "1").mkdir()
        write(folders / str(version), version)
    before, after = (whole_files(folders / str(version)) for version in (1, 2))
    assert before.keys() <= after.keys()
    assert all(before[name] != after[name] for name in before)
    return write, folders / "1", after


# Killed --------------------------------------------------------------------------------------------------------------


MOMENTS = {"half written": ("open", signal.SIGXFSZ), "written, not yet named": ("os.rename", signal.SIGKILL)}
HALF = 700  # bytes, fewer than any of the files has


def killed_at(moment, number, write, folder, version):
    """Run in a process of its own, which is killed at the hidden file of that number: nothing of it runs any more."""
    os.setsid()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; by default it kills as SIGKILL does
    seen = set()

    def watch(event, arguments):
        if event != MOMENTS[moment][0] or not is_hidden(arguments[0], folder):
            return
        seen.add(arguments[0])
        if len(seen) == number and event == "open":
            resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, HALF))  # the kernel kills who writes more
        elif len(seen) == number:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)
    write(folder, version)


def is_hidden(path, folder):
    return isinstance(path, str | Path) and Path(path).is_relative_to(folder) and Path(path).name.startswith(".")


@pytest.mark.parametrize("moment", MOMENTS)
def test_who_is_killed_while_writing_leaves_whole_files_and_is_repeated(written, moment, tmp_path):
    write, earlier, after = written
    before, kills = whole_files(earlier), 0
    while True:  # at the first file that it writes, at the second, until there are no more
        folder = tmp_path / str(kills) / "there"
        shutil.copytree(earlier, folder)
        process = APART.Process(target=killed_at, args=(moment, kills + 1, write, folder, 2))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
        assert process.exitcode == -MOMENTS[moment][1]
        assert HALF in (sizes := [path.stat().st_size for path in hidden_files(folder)]) or moment != "half written"
        assert sizes
        for name, content in whole_files(folder).items():
            assert content in (before.get(name), after[name]), name
        write(folder, 2)
        assert whole_files(folder) == after
        assert hidden_files(folder) == []
    assert kills >= 1
    assert whole_files(folder) == after


def test_a_training_killed_at_any_time_ends_as_if_it_had_not_been(tmp_path):
    epochs, path, rng = 40, tmp_path / "a.pt", random.Random(0)
    whole = Training()
    expected = whole.fit(epochs, scheduler=None)
    kills = 0
    for _ in range(5):
        process = APART.Process(target=train_on, args=(path, epochs))
        process.start()
        for _ in range(rng.randint(1, 5)):  # epochs, then some of the next one, or of its writing
            wait_until(partial(goes_on, process, path, stamp(path)))
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert 1 <= len(load_checkpoint(path)["history"]["losses"]) <= epochs
    assert kills >= 3
    resumed = Training(seed=99)  # whose own weights do not matter
    assert resumed.fit(epochs, scheduler=None, checkpoint=path) == expected
    assert_equal_bit_for_bit(resumed.weights(), whole.weights())
    assert list(tmp_path.iterdir()) == [path]


def train_on(path, epochs):
    torch.set_num_threads(1)
    Training().fit(epochs, scheduler=None, checkpoint=path)


def goes_on(process, path, since):
    return not process.is_alive() or stamp(path) != since


def stamp(path):
    return path.stat().st_mtime_ns if path.exists() else 0


# A full disk ---------------------------------------------------------------------------------------------------------


# Who is not root may mount a disk where nobody else sees it, unless the machine forbids that too.
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


class Disk:
    """A small disk that can be filled; or where none may be mounted, a limit of the size of files in its place."""

    def __init__(self, path, kind):
        self.folder, self.mounted, self.why = path, None, "File too large"
        if kind == "tmpfs":
            script = f"mount -t tmpfs -o size=8m tmpfs '{path}' && echo mounted && exec cat"
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            process = subprocess.Popen([*NAMESPACE, script], text=True, **pipes)
            if process.stdout.readline() == "mounted\n":
                # Seen from outside through the process that holds it, and gone with it.
                self.folder, self.why = Path(f"/proc/{process.pid}/root{path}"), "No space left on device"
                self.mounted = process
            else:
                print(f"no tmpfs, so a limit of the size of files instead: {process.communicate()[1]}")

    @contextmanager
    def full(self):
        """Nothing of more than 700 bytes, or on a real disk than a page, can be written meanwhile."""
        if self.mounted:
            fill(self.folder / "ballast")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits if self.mounted else (HALF, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            (self.folder / "ballast").unlink(missing_ok=True)


def fill(path):
    """Write until nothing goes any more, and take the last page away."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    os.truncate(path, path.stat().st_size - os.sysconf("SC_PAGE_SIZE"))


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request, tmp_path):
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk", request.param)
    yield disk
    if disk.mounted:
        disk.mounted.communicate("")  # nothing more to wait for


def test_a_full_disk_is_named_and_leaves_what_was_there(written, disk):
    write, earlier, after = written
    shutil.copytree(earlier, disk.folder, dirs_exist_ok=True)
    if (reads := earlier.parent / "source 2").exists():
        shutil.copytree(reads, disk.folder.parent / reads.name)
    with disk.full(), pytest.raises((OSError, SystemExit)) as failed:
        write(disk.folder, 2)
    told = re.search(f"{disk.why}: '(.+)'", str(failed.value))
    assert told, failed.value
    assert str(Path(told[1]).relative_to(disk.folder)) in after
    assert whole_files(disk.folder) == whole_files(earlier)
    assert hidden_files(disk.folder) == []
    write(disk.folder, 2)
    assert whole_files(disk.folder) == after


def test_a_full_disk_under_the_pdf_is_one_line(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "parts", lambda: iter([("", ["page"])]))
    page = "<head><title>A — B</title></head><article><h1>Title</h1>text</article>"
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    target, plain = disk.folder / "book.pdf", pdf.print_page
    target.write_bytes(b"earlier")

    def print_page(*arguments, **options):
        with disk.full():
            plain(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(pdf, "print_page", print_page)
        with pytest.raises(pdf.PdfError, match=rf"^\[.*{disk.why}: '.*book\.pdf'$"):
            pdf.make_pdf(tmp_path, target)
    assert [(path.name, path.read_bytes()) for path in disk.folder.iterdir()] == [("book.pdf", b"earlier")]
    pdf.make_pdf(tmp_path, target)
    assert target.read_bytes().startswith(b"%PDF")


# Damaged files -------------------------------------------------------------------------------------------------------


def flipped(content, at, bit):
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


LOADERS = {
    "cmudict.dict": load_words.__wrapped__,  # as it is called first
    "nyc_weather.csv": load_weather,
    "digits.npz": partial(speech.load_speech, 1),  # without the synthesizer
}


@pytest.mark.parametrize("name", LOADERS)
def test_damaged_data_is_named_whatever_reads_it(name, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "lstm_utils" / "data", tmp_path / "data")
    monkeypatch.setattr(datasets, "files", lambda _: tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    path = tmp_path / "data" / f"{name}.gz"
    whole = path.read_bytes()
    middle = len(whole) // 2
    other = gzip.compress(gzip.decompress(whole)[:-1], compresslevel=1)
    cuts = [whole[:-1], whole[:middle], whole[:5], b""]
    for damaged in (*cuts, flipped(whole, middle, 3), flipped(whole, -5, 0), other):
        path.write_bytes(damaged)
        with pytest.raises(DamagedDataError, match="reinstall lstm-utils, or take the file from its repo") as error:
            LOADERS[name]()
        assert f"the data file {path} " in str(error.value)
    path.write_bytes(whole)
    assert LOADERS[name]()


def test_a_flipped_bit_in_the_head_of_a_data_file_is_refused_or_changes_nothing(tmp_path):
    content = datasets.read_data("nyc_weather.csv")
    whole = (ROOT / "lstm_utils" / "data" / "nyc_weather.csv.gz").read_bytes()
    refused = 0
    for at, bit in ((at, bit) for at in range(12) for bit in range(8)):  # the head has 10 bytes
        (tmp_path / "nyc_weather.csv.gz").write_bytes(flipped(whole, at, bit))
        try:
            assert datasets.read_data("nyc_weather.csv", tmp_path) == content
        except DamagedDataError:
            refused += 1
    assert refused > 20


def test_a_flipped_bit_in_the_directory_of_a_checkpoint_is_refused_or_changes_nothing(tmp_path):
    path, rng = tmp_path / "a.pt", random.Random(0)
    train(tmp_path, 1)
    whole, expected = path.read_bytes(), whole_files(tmp_path)
    with zipfile.ZipFile(path) as archive:
        heads = [info.header_offset + k for info in archive.infolist() for k in range(30 + len(info.filename))]
    places, refused, unharmed = [*heads, *range(archive.start_dir, len(whole))], 0, 0
    for at in rng.sample(places, 250):
        path.write_bytes(flipped(whole, at, rng.randrange(8)))
        try:
            same = whole_files(tmp_path) == expected
        except CheckpointError as error:
            refused += bool(re.search(r"a\.pt (is damaged|holds more|was not written).*delete it", str(error), re.S))
        else:
            unharmed += same
    assert (refused + unharmed, refused > 80, unharmed > 20) == (250, True, True)


class Evil:
    """Makes a folder when it is unpickled, as it could do anything."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def in_a_checkpoint(path, evil):
    """A whole checkpoint, in which one more thing stands."""
    train(path.parent, 1)
    torch.save(load_checkpoint(path) | {"more": evil}, path)


def as_the_archive_of_a_checkpoint(path, evil):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(evil, protocol=2))  # that of torch
        archive.writestr("archive/version", "3\n")


EVILS = {
    "in a checkpoint": in_a_checkpoint,
    "in a checkpoint's place": lambda path, evil: torch.save(evil, path),
    "in an archive": as_the_archive_of_a_checkpoint,
    "in the old format": lambda path, evil: torch.save(evil, path, _use_new_zipfile_serialization=False),
    "as a plain pickle": lambda path, evil: path.write_bytes(pickle.dumps(evil)),
}


@pytest.mark.parametrize("save", EVILS.values(), ids=EVILS)
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(save, tmp_path):
    path, made = tmp_path / "a.pt", tmp_path / "made"
    save(path, Evil(made))
    before = path.read_bytes()
    for read in (load_checkpoint, lambda path: Training().fit(2, checkpoint=path)):
        with pytest.raises(
            CheckpointError, match=r"a\.pt (is damaged or no checkpoint|holds more than numbers).*delete it"
        ):
            read(path)
    assert not made.exists()
    assert path.read_bytes() == before
    pickle.loads(pickle.dumps(Evil(made)))
    assert made.exists()  # so it would have run


def test_a_damaged_onnx_file_is_named_and_the_last_quantized_one_stays(tmp_path):
    source, target = tmp_path / "model.onnx", tmp_path / "quantized.onnx"
    export(tmp_path, 1)
    whole = source.read_bytes()
    target.write_bytes(b"earlier")
    for damaged in (b"", whole[:1], whole[:100], whole[: len(whole) // 2], whole[:-1], random.Random(0).randbytes(999)):
        source.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.onnx' cannot be read as ONNX \(.+\); export it again"):
            quantize_onnx(source, target)
        assert target.read_bytes() == b"earlier"
    source.write_bytes(whole)
    assert quantize_onnx(source, target).replaced == 1
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "quantized.onnx"}


# The book ------------------------------------------------------------------------------------------------------------

# Waits while it is built where a file says so, and makes another one once it is there.
WAITS = """
import time
from pathlib import Path

def wait(folder, moment):
    if (folder / moment).exists():
        (folder / "reached").touch()
        time.sleep(600)
"""
EXTENSION = f"""{WAITS}
def setup(app):
    app.connect("html-page-context", lambda app, page, *_: wait(Path(app.srcdir), f"writing {{Path(page).name}}"))
"""
CELL = f"""{WAITS}
from myst_nb import glue
wait(Path(".."), "running")
glue("number", NUMBER, display=False)"""


class Book:
    """A chapter with a number, and a page that shows it and is never changed."""

    def __init__(self, folder):
        self.folder, self.built, self.number = folder, folder / "_build", 0
        for name in ("_ext", "_static", "_templates"):
            shutil.copytree(ROOT / "book" / name, folder / "book" / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("book/references.bib", "Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
        (folder / ".venv" / ".installed").touch()
        config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
        config["sphinx"]["local_extensions"]["waits"] = "book/_ext"
        toc = {"format": "jb-book", "root": "book/index"}
        toc["parts"] = [{"caption": "Part", "chapters": [{"file": "book/shows"}, {"file": "notebooks/01_chapter"}]}]
        for name, text in {
            "_config.yml": yaml.safe_dump(config),
            "_toc.yml": yaml.safe_dump(toc),
            "book/_ext/waits.py": EXTENSION,
            "book/index.md": "# A book\n\nOf two pages.\n",
            "book/shows.md": "# A page\n\nThe number is {measured}`01_chapter number`.\n",
        }.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "notebooks").mkdir()

    def write_chapter(self, number):
        """The only thing that changes."""
        content = json.loads(notebook(CELL.replace("NUMBER", str(number))))
        content["metadata"]["measured"] = {"needs": []}
        title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# A chapter\n\n**Why?**"}
        content["cells"] = [title, content["cells"][1]]
        (self.folder / "notebooks" / "01_chapter.ipynb").write_text(json.dumps(content), encoding="utf-8")

    def make(self, before=""):
        """Run `make book`: its status, and what it said."""
        done = subprocess.run(["bash", "-c", f"{before} exec make book"], **self.how(subprocess.PIPE), check=False)
        return done.returncode, done.stdout

    def how(self, stdout):
        """Where and with what commands run: without what a make above this one would pass on."""
        above = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
        clean = {name: value for name, value in os.environ.items() if name not in above}
        clean["PYTHONPATH"] = str(ROOT)  # the kernels must find this lstm_utils
        return {"cwd": self.folder, "env": clean, "stdout": stdout, "stderr": subprocess.STDOUT, "text": True}

    def pages(self):
        """Every page, and what pages load, by name; but for how long the chapter took, which the search finds too."""
        html, varies = self.built / "html", rb"\d+ (s|minutes?) to run|\?v=\w+"  # myst-nb dates its style sheet late
        skipped = (".buildinfo", "searchindex.js")
        paths = [path for path in html.rglob("*") if path.is_file() and path.name not in skipped]
        return {str(path.relative_to(html)): re.sub(varies, b"", path.read_bytes()) for path in paths}


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    """A book, what was built of it when its number was 1, and what, and with which pages, when it was 2."""
    book = Book(tmp_path_factory.mktemp("book"))
    keep = tmp_path_factory.mktemp("kept")
    for number in (1, 2):
        book.write_chapter(number)
        status, said = book.make()
        assert status == 0, said
        assert f"The number is {number}" in parsed(book.pages()["book/shows.html"]).get_text()
        shutil.copytree(book.built, keep / str(number))  # with its times
    return book, keep, book.pages()


@pytest.fixture
def book(books, request):
    """The book with the number 2, and the build of the first or the second state of it."""
    book, keep, _ = books
    shutil.rmtree(book.built)
    shutil.copytree(keep / str(request.param), book.built)
    return book


@pytest.fixture
def expected(books):
    """The pages that no fault has disturbed."""
    return books[2]


@pytest.mark.long("builds a small book several times")
@pytest.mark.stress
@pytest.mark.parametrize("book", [1], indirect=True)
@pytest.mark.parametrize("moment", ["running", "writing shows"])
def test_a_killed_book_is_finished_by_the_next_run(book, expected, moment):
    (book.folder / moment).touch()
    with subprocess.Popen(["make", "book"], start_new_session=True, **book.how(subprocess.DEVNULL)) as process:
        wait_until(lambda: (book.folder / "reached").exists() or process.poll() is not None)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    for name in (moment, "reached"):
        (book.folder / name).unlink()
    assert "The number is 1" in parsed(book.pages()["book/shows.html"]).get_text()
    status, said = book.make()
    assert status == 0, said
    assert book.pages() == expected
    assert not (book.built / ".doctrees" / "unfinished").exists()


@pytest.mark.long("builds a small book several times")
@pytest.mark.stress
@pytest.mark.parametrize("book", [2], indirect=True)
def test_a_book_on_a_full_disk_fails_and_says_why_and_with_room_it_is_made(book, expected):
    shutil.rmtree(book.built)
    book.built.mkdir()
    script = """
    mount -t tmpfs -o size=40k tmpfs _build || exit 99
    for size in 40k 1m 200m; do
      mount -o remount,size=$size _build
      echo "=== $size"; make book; echo "status $?"
    done
    cp -r _build kept && umount _build && rmdir _build && mv kept _build"""
    done = subprocess.run([*NAMESPACE, script], **book.how(subprocess.PIPE), check=False)
    said, why = done.stdout, "No space left on device|disk is full"
    if done.returncode == 99:
        print(f"no tmpfs, so a limit of the size of files instead: {said}")
        limits, why = ("ulimit -f 16;", "ulimit -f 100;", ""), "File too large|disk I/O error"
        said = "".join("=== {}{}status {}\n".format(limit, *reversed(book.make(limit))) for limit in limits)
    _, *tries = said.split("=== ")
    assert [int(text.rpartition("status ")[2]) != 0 for text in tries] == [True, True, False], said
    for text in tries[:2]:
        assert re.search(why, text), text
        assert "_build is full: make room, and run make book again." in text or done.returncode == 99
    assert book.pages() == expected


def garbage(path):
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.long("builds a small book several times")
@pytest.mark.stress
@pytest.mark.parametrize("book", [2], indirect=True)
@pytest.mark.parametrize("damage", [garbage, cut])
def test_damaged_doctrees_are_made_anew(book, expected, damage):
    for path in book.built.rglob("*.doctree"):
        damage(path)
    status, said = book.make()
    assert status == 0, said
    assert book.pages() == expected


@pytest.mark.long("builds a small book several times")
@pytest.mark.stress
@pytest.mark.parametrize("book", [2], indirect=True)
def test_a_damaged_environment_and_a_damaged_cache_are_made_anew(book, expected):
    cut(book.built / ".doctrees" / "environment.pickle")
    (database,) = book.built.glob(".jupyter_cache/*/global.db")
    garbage(database)
    status, said = book.make()
    assert status == 0, said
    assert f"The cache {database.parent} is damaged: it is deleted, and its chapters run again." in said
    assert "Executed notebook in" in said
    assert book.pages() == expected


def first_rows(path):
    """What a table or an index holds is gone, what stands in front of it is not."""
    path.write_bytes(path.read_bytes()[: 2 * 4096] + bytes(path.stat().st_size - 2 * 4096))


CACHES = {
    "a database of garbage": ("global.db", garbage),
    "half a database": ("global.db", cut),
    "an empty database": ("global.db", lambda path: path.write_bytes(b"")),
    "a database with holes": ("global.db", first_rows),
    "a run that a kill kept from being written": ("base.ipynb", Path.unlink),
    "half a run": ("base.ipynb", cut),
    "a run of garbage": ("base.ipynb", garbage),
}


@pytest.mark.parametrize(("name", "damage"), CACHES.values(), ids=CACHES)
def test_a_damaged_cache_of_the_book_is_deleted(name, damage, tmp_path):
    built = tmp_path / "html"
    app, config = SimpleNamespace(outdir=built), SimpleNamespace()
    folder = tmp_path / ".jupyter_cache" / measured.helpers_digest()
    cache = get_cache(folder)
    cache.cache_notebook_bundle(CacheBundleIn(nbformat.reads(notebook("1"), 4), "one.ipynb"), check_validity=False)
    cache.db.dispose()
    measured.separate_cache(app, config)
    assert config.nb_execution_cache_path == str(folder)
    assert len(get_cache(folder).list_cache_records()) == 1  # a sound one stays
    (path,) = folder.rglob(name)
    damage(path)
    measured.separate_cache(app, config)
    assert not folder.exists()


# Times ---------------------------------------------------------------------------------------------------------------


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
