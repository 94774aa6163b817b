"""Every notebook: its grammar, its exercises without their solutions, and that a wrong number is noticed."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from checks import (
    LOCAL,
    NOTEBOOKS,
    ROOT,
    asked,
    ignored,
    notebook_problems,
    other_sizes,
    printed,
    spied,
    tags,
    toc_pages,
)

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# Running all of them once more takes a quarter of an hour; `make test` has run them by nbval.
two_in_every_run = pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem[:2] in ("05", "08") else pytest.mark.stress) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def damaged(path, tmp_path, change):
    """A copy of a notebook, after ``change(notebook)``."""
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    copy = tmp_path / path.name
    nbformat.write(notebook, copy)
    for script in path.parent.glob("*.py"):  # beside the notebook, which starts it
        shutil.copy(script, tmp_path)
    return copy


def nbval(path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--color=no"]
    return subprocess.run([*command, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_the_table_of_contents_has_every_notebook_once():
    listed = [page for page in toc_pages() if page.startswith("notebooks/")]
    assert sorted(listed) == [f"notebooks/{path.stem}" for path in NOTEBOOKS]
    assert len(NOTEBOOKS) >= 4


@every_notebook
def test_grammar(path):
    assert notebook_problems(path) == []


def strip_counts(notebook):
    for cell in code_cells(notebook):
        cell.execution_count, cell.outputs = None, []


def drop_question(notebook):
    notebook.cells[0].source = notebook.cells[0].source.replace("?**", ".**")


def drop_needs(notebook):
    del notebook.metadata["measured"]


def need_a_later_chapter(notebook):
    notebook.metadata["measured"]["needs"].append(NOTEBOOKS[-1].stem)


def drop_parameter(notebook):
    cell = next(cell for cell in code_cells(notebook) if "parameters" in tags(cell))
    cell.source = cell.source.replace("quick = False", "")


def compute_parameter(notebook):
    cell = next(cell for cell in code_cells(notebook) if "parameters" in tags(cell))
    cell.source += "\nsteps = 3 * 100"


def drop_sizes(notebook):
    cell = next(cell for cell in code_cells(notebook) if "parameters" in tags(cell))
    cell.source = re.sub(r"^\w+_size = .*", "", cell.source, flags=re.M)


def add_unread_size(notebook):
    cell = next(cell for cell in code_cells(notebook) if "parameters" in tags(cell))
    cell.source += "\nbanana_size = 3"


def ignore_everything(notebook):
    for cell in code_cells(notebook):
        cell.metadata["tags"] = sorted(tags(cell) | {"nbval-ignore-output"})


def drop_solution(notebook):
    notebook.cells = [cell for cell in notebook.cells if "solution" not in tags(cell)]


def drop_alt(notebook):
    for cell in code_cells(notebook):
        cell.metadata.pop("mystnb", None)


def store_error(notebook):
    code_cells(notebook)[-1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="v", traceback=[])]


def store_warning(notebook):
    code_cells(notebook)[-1].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="a warning"))


def split_output(notebook):
    cell = next(cell for cell in code_cells(notebook) if printed(cell))
    cell.outputs.insert(0, nbformat.v4.new_output("stream", name="stdout", text="a piece "))


def fail_check(notebook):
    cell = next(cell for cell in code_cells(notebook) if "check" in tags(cell))
    cell.outputs[0].text = "Not yet"


def ignore_check(notebook):
    cell = next(cell for cell in code_cells(notebook) if "check" in tags(cell))
    cell.metadata["tags"] = ["check", "nbval-ignore-output"]


def drop_hint(notebook):
    cell = next(cell for cell in code_cells(notebook) if "check" in tags(cell))
    cell.source = re.sub(r'hint="[^"]*"', 'hint=""', cell.source)


def tell_answer(notebook):
    solution = next(cell for cell in code_cells(notebook) if "solution" in tags(cell))
    cell = next(cell for cell in code_cells(notebook) if "check" in tags(cell))
    answer = re.search(r"return (.*)", solution.source).group(1).replace(" ", "  ")
    cell.source = re.sub(r'hint="[^"]*"', f'hint="it is {answer}, of course"', cell.source)


def drop_recap(notebook):
    notebook.cells.pop()


DAMAGES = [
    strip_counts, drop_question, drop_needs, need_a_later_chapter, drop_parameter, compute_parameter, drop_sizes,
    add_unread_size, ignore_everything, drop_solution, drop_alt, store_error, store_warning, split_output, fail_check,
    ignore_check, drop_hint, tell_answer, drop_recap,
]  # fmt: skip


@pytest.mark.parametrize("change", DAMAGES)
def test_a_damaged_notebook_is_noticed(change, tmp_path):
    with_figure = next(path for path in NOTEBOOKS if "image/png" in path.read_text(encoding="utf-8"))
    assert notebook_problems(damaged(with_figure, tmp_path, change))


@pytest.mark.long("runs a chapter")
@two_in_every_run
def test_a_wrong_stored_number_is_noticed(path, tmp_path):
    def until_wrong_number(notebook):
        """Keep the cells up to the first compared number, and change it."""
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code" and not ignored(cell) and re.search(r"\d", printed(cell)):
                stream = next(output for output in cell.outputs if re.search(r"\d", output.get("text", "")))
                stream.text = re.sub(r"\d", lambda digit: str((int(digit.group()) + 1) % 10), stream.text, count=1)
                notebook.cells = notebook.cells[: index + 1]
                return
        raise AssertionError(f"{path.name} compares no number")

    result = nbval(damaged(path, tmp_path, until_wrong_number))
    assert result.returncode == 1, result.stdout
    assert re.search(r"\b1 failed, \d+ passed", result.stdout), result.stdout


def test_an_exercise_that_is_passed_while_it_is_blank_is_noticed(tmp_path):
    def careless(notebook):
        cell = next(cell for cell in code_cells(notebook) if "check" in tags(cell))
        number = re.search(r"\d+\.\d+", cell.source).group()
        cell.source = f'from lstm_utils import check\ncheck("{number}", lambda: True, hint="none is needed")'
        # The chapter is cut down to the exercise: its stub, its solution, its check.
        at = notebook.cells.index(cell)
        notebook.cells = notebook.cells[at - 2 : at + 1]

    own = [str(ROOT / "tests"), str(ROOT / "book"), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "conftest", "--nbval"]
    command.append(str(damaged(NOTEBOOKS[5], tmp_path, careless)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(own)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert re.search(r"\b1 failed, 2 passed", result.stdout), result.stdout
    assert "Passed, exercise 6.1" in result.stdout


def test_a_notebook_as_it_is_passes_the_same_comparison(tmp_path):
    def first_cells(notebook):
        notebook.cells = notebook.cells[:8]

    result = nbval(damaged(NOTEBOOKS[0], tmp_path, first_cells))
    assert result.returncode == 0, result.stdout


def papermill(path, parameters):
    """The notebook as a run with these parameters leaves it; ``asked(path.parent)`` are then the hosts it asked."""
    out = path.with_name("out.ipynb")
    command = [sys.executable, "-m", "papermill", str(path), str(out), "--cwd", str(path.parent), "--kernel", "python3"]
    options = [part for name, value in parameters.items() for part in ("-p", name, str(value))]
    environment = os.environ | spied(path.parent)
    result = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return nbformat.read(out, as_version=4)


@pytest.mark.long("runs a chapter")
@two_in_every_run
def test_another_seed_another_size_and_blank_exercises(path, tmp_path):
    # One run serves four purposes: papermill's parameters arrive from its command line, the chapter runs to its end
    # and every verdict holds for another seed and other sizes, every check fails, with a hint, while its exercise is
    # blank, and no other host is asked for anything.
    def blank(notebook):
        notebook.cells = [cell for cell in notebook.cells if "solution" not in tags(cell)]

    given = {"seed": 11, "device": "cpu", "quick": True, **other_sizes(code_cells(nbformat.read(path, as_version=4)))}
    ran = papermill(damaged(path, tmp_path, blank), given)
    assert ran.metadata.papermill.parameters == given
    exercises = [cell for cell in code_cells(ran) if "check" in tags(cell)]
    for number, cell in enumerate(exercises, start=1):
        expected = rf"Not yet, exercise {int(path.stem[:2])}\.{number}\b.*Hint: \S"
        assert re.match(expected, printed(cell)), printed(cell)
    assert asked(tmp_path) <= LOCAL


def test_a_chapter_that_asks_another_host_is_noticed(tmp_path):
    child = "import socket; socket.create_connection(('child.invalid', 443))"
    asking = [
        "socket.getaddrinfo('name.invalid', 443)",
        "socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))",  # of a range kept for examples
        f'subprocess.run([sys.executable, "-c", "{child}"], check=False, capture_output=True)',
    ]

    def ask(notebook):
        # The chapter itself sees nothing of it.
        sources = [f"with contextlib.suppress(OSError):\n    {source}" for source in asking]
        imports = "import contextlib, socket, subprocess, sys"
        notebook.cells = [nbformat.v4.new_code_cell(source) for source in (imports, *sources)]

    papermill(damaged(NOTEBOOKS[0], tmp_path, ask), {})
    assert asked(tmp_path) - LOCAL == {"name.invalid", "192.0.2.1", "child.invalid"}
