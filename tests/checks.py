"""What must be true of a notebook, its run, the audit and the rendered book, as functions that list what is wrong.

The tests run them on the real thing, where the list must be empty, and on damaged copies, where it must not be.
"""

from __future__ import annotations

import ast
import os
import re
import socket
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import yaml
from bs4 import BeautifulSoup, Tag
from nbformat import NotebookNode

from lstm_utils.claims import Claim

ROOT = Path(__file__).resolve().parent.parent
# The pages that are looked at; `make test` names others than `make book` leaves.
HTML = ROOT / os.environ.get("PAGES", "_build/html")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = {"seed", "device", "quick"}
TAGS = {"parameters", "nbval-ignore-output", "exercise", "solution", "hide-cell", "check"}
# Pages that the builder adds by itself.
GENERATED = {"genindex", "search", "index"}
# In a browser: pixels by which a page is wider than its window.
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def toc_pages() -> list[str]:
    """Every page that _toc.yml names, the root first."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def ignored(cell: NotebookNode) -> bool:
    return "nbval-ignore-output" in tags(cell)


def printed(cell: NotebookNode) -> str:
    """What a code cell printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


# --- chapters while nbval runs them ----------------------------------------------------------------------------------

# `answer` is the chapter's name for it, `check` the source of the cell that checks it. Random numbers go on as before.
BLANK = """
def try_blank(answer, check):
    import contextlib, io, random, numpy, torch
    own, states = globals(), (random.getstate(), numpy.random.get_state(), torch.get_rng_state())
    right, text = own[answer], io.StringIO()
    own[answer] = ...
    with contextlib.redirect_stdout(text):
        exec(check, own)
    own[answer] = right
    random.setstate(states[0]), numpy.random.set_state(states[1]), torch.set_rng_state(states[2])
    print(text.getvalue())
try_blank({answer!r}, {check!r})
del try_blank
"""


def ask(item: Any, code: str) -> str:
    """Run code in the kernel of a chapter; what it printed.

    Raises:
        RuntimeError: it raised.
    """
    printed, errors = [], []

    def hear(message: dict[str, Any]) -> None:
        content = message["content"]
        printed.append(content["text"] if message["msg_type"] == "stream" else "")
        errors.extend(content["traceback"] if message["msg_type"] == "error" else [])

    item.parent.kernel.kc.execute_interactive(code, store_history=False, output_hook=hear, timeout=600)
    if errors:
        raise RuntimeError("\n".join(errors))
    return "".join(printed)


def answer_of(item: Any) -> str:
    """The name that the exercise of a check leaves blank: its stub and its solution stand before the check."""
    code = [cell for cell in item.parent.nb.cells if cell.cell_type == "code"]
    return re.search(r"^(\w+) = \.\.\.", code[item.cell_num - 2].source, re.M).group(1)  # type: ignore[union-attr]


def said_to_blank(item: Any) -> str:
    """What the check of an exercise prints while its exercise is blank."""
    return ask(item, BLANK.format(answer=answer_of(item), check=item.cell.source)).strip()


# --- notebooks -------------------------------------------------------------------------------------------------------


def notebook_problems(path: Path) -> list[str]:
    """Where a notebook departs from the grammar of CONTRIBUTING.md, or could pass without being compared."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        *opening_problems(notebook),
        *needs_problems(notebook, path.stem),
        *run_problems(code),
        *setup_problems(code),
        *comparison_problems(code),
        *exercise_problems(code),
        *figure_problems(code),
        *ending_problems(notebook),
    ]


def opening_problems(notebook: NotebookNode) -> Iterable[str]:
    first = notebook.cells[0]
    opening = first.source if first.cell_type == "markdown" else ""
    if not re.match(r"# \S", opening):
        yield "does not open with a title"
    if not re.search(r"^\*\*[^*]+\?\*\*$", opening, re.M):
        yield "has no question, in bold, under its title"
    bullets = re.findall(r"^- ", opening.partition("You will learn")[2], re.M)
    if not 3 <= len(bullets) <= 5:
        yield f"promises {len(bullets)} things under 'You will learn', and should promise 3 to 5"
    if "audit.md" not in opening:
        yield "does not link to the audit"


def needs_problems(notebook: NotebookNode, name: str) -> Iterable[str]:
    needs = notebook.metadata.get("measured", {}).get("needs")
    if not isinstance(needs, list):
        yield f"must name the chapters it needs in its metadata, measured.needs, as a list; it says {needs}"
        return
    pages = toc_pages()
    earlier = pages[: pages.index(f"notebooks/{name}")]
    if wrong := [need for need in needs if f"notebooks/{need}" not in earlier]:
        yield f"needs {wrong}, and no earlier chapters are called that"


def run_problems(code: list[NotebookNode]) -> Iterable[str]:
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "was not run from top to bottom: nbval compares no cell without a count"
    for cell in code:
        at = f"cell {cell.execution_count}"
        if unknown := tags(cell) - TAGS:
            yield f"{at} has the unknown tags {unknown}"
        if (length := sum(bool(line.strip()) for line in cell.source.splitlines())) > 20:
            yield f"{at} has {length} lines"
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"{at} stores an error or a warning"
        if any(first.get("name") == second.get("name") == "stdout" for first, second in pairwise(cell.outputs)):
            yield f"{at} stores what it printed in pieces, which the next run would cut elsewhere: `make notebooks`"


def parameters(code: list[NotebookNode]) -> dict[str, object]:
    """The names and defaults of the parameters cell; what is no literal is left out."""
    cell = next(cell for cell in code if "parameters" in tags(cell))
    return {
        target.id: statement.value.value
        for statement in ast.parse(cell.source).body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def other_sizes(code: list[NotebookNode]) -> dict[str, int]:
    """Every size that is a parameter, one larger than its default: no multiple of anything, and as quick to run."""
    return {name: value + 1 for name, value in parameters(code).items() if name.endswith("_size")}


def setup_problems(code: list[NotebookNode]) -> Iterable[str]:
    at = [index for index, cell in enumerate(code) if "parameters" in tags(cell)]
    if len(at) != 1:
        yield f"has {len(at)} parameters cells, and needs one"
        return
    for statement in ast.parse(code[at[0]].source).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Constant):
            yield "has something other than a literal in its parameters cell"
    if missing := PARAMETERS - set(parameters(code)):
        yield f"lacks the parameters {missing}"
    sizes = set(other_sizes(code))
    if not sizes:
        yield "has no parameter that ends in _size"
    after = [node for cell in code[at[0] + 1 :] for node in ast.walk(ast.parse(cell.source))]
    if unread := sizes - {node.id for node in after if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}:
        yield f"never reads its parameters {unread}"
    seeding = code[at[0] + 1]
    if not ("manual_seed(seed)" in seeding.source and "hardware(device)" in seeding.source and ignored(seeding)):
        yield "does not seed, and print the hardware, right after its parameters"


def comparison_problems(code: list[NotebookNode]) -> Iterable[str]:
    if sum(map(ignored, code)) > len(code) / 4:
        yield "ignores the outputs of more than a quarter of its cells"
    for index, cell in enumerate(code):
        after = code[index + 1 : index + 4]
        if ignored(cell) and not any(printed(other) and not ignored(other) for other in after):
            yield f"cell {cell.execution_count} is ignored, and no compared cell follows it"


def exercise_problems(code: list[NotebookNode]) -> Iterable[str]:
    starts = [index for index, cell in enumerate(code) if "exercise" in tags(cell)]
    if len(starts) < 2:
        yield f"has {len(starts)} exercises, and needs two"
    for index in starts:
        exercise, solution, check = (*code[index : index + 3], None, None)[:3]
        if solution is None or check is None:
            yield "ends inside an exercise"
        elif not (tags(solution) >= {"solution", "hide-cell"} and "check" in tags(check)):
            yield f"cell {exercise.execution_count}: an exercise is a stub, a solution and a check"
        elif "= ..." not in exercise.source or "is ...:" not in solution.source:
            yield f"cell {exercise.execution_count}: the solution must step in only for the blank"
        elif ignored(check) or not printed(check).startswith("Passed"):
            yield f"cell {check.execution_count}: the solution does not pass its own check, compared"
        elif not (hint := hint_of(check)):
            yield f"cell {check.execution_count}: the check has no hint that is a literal"
        else:
            told = [answer for answer in answers(exercise, solution) if occurs(answer, hint)]
            yield from (f"cell {check.execution_count}: the hint tells the answer, {answer}" for answer in told)


def hint_of(check: NotebookNode) -> str:
    """The hint of a check cell, `hint="…"` or `hint = "…"`; empty where there is none."""
    for node in ast.walk(ast.parse(check.source)):
        named = isinstance(node, ast.keyword) and node.arg == "hint"
        named = named or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "hint")
        if named and isinstance(node.value, ast.Constant):
            return node.value.value
    return ""


def answers(exercise: NotebookNode, solution: NotebookNode) -> Iterable[str]:
    """What fills the blank, and whatever a solution computes, as it is written: not its bare names and numbers."""
    blank = exercise.source.partition(" = ...")[0]
    for node in ast.walk(ast.parse(solution.source)):
        fills = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == blank
        called = isinstance(node, ast.Call) and bool(node.args)
        if fills or called or isinstance(node, ast.BinOp | ast.Compare | ast.Subscript):
            yield ast.get_source_segment(solution.source, node.value if fills else node) or ""


def occurs(answer: str, hint: str) -> bool:
    """Whether a hint contains an answer, however it is spaced, and not as a part of a longer word."""
    words = r"\s*".join(map(re.escape, re.findall(r"\w+|[^\w\s]", answer)))
    return bool(re.search(rf"(?<!\w){words}(?!\w)", hint))


def figure_problems(code: list[NotebookNode]) -> Iterable[str]:
    for cell in code:
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            if len(alt) < 40:
                yield f"cell {cell.execution_count} draws a figure without a description in mystnb.image.alt"


def ending_problems(notebook: NotebookNode) -> Iterable[str]:
    ending = notebook.cells[-1].source
    if not ending.startswith("## Recap"):
        yield "does not end with a recap"
    if "**Next**" not in ending:
        yield "does not say what comes next"


# --- whom a run asks -------------------------------------------------------------------------------------------------

LOCAL = {"127.0.0.1", "::1", "localhost", socket.gethostname()}  # torchrun looks the machine's own name up
# Python runs this at the start of every process that inherits the variables: servers, kernels, and what these start.
# It notes and does not forbid: who asks in vain, and carries on, has asked all the same.
SPY = """
import os, sys
log = os.open(os.environ["SPIED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def note(event, arguments):
    if event in ("socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg"):
        hosts = [arguments[1][0]] if isinstance(arguments[1], tuple) else []
    else:
        hosts = arguments[:1] if event.startswith(("socket.getaddrinfo", "socket.gethostby")) else []
    for host in hosts:
        os.write(log, f"{host or 'every interface'}\\n".encode())
sys.addaudithook(note)
"""


def spied(folder: Path) -> dict[str, str]:
    """Variables under which every Python process notes in a folder which hosts it asks, looks up or listens for."""
    spy = folder / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(spy), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "SPIED": str(spy / "asked")}


def asked(folder: Path) -> set[str]:
    """The hosts; an error where no process noted anything."""
    return set((folder / "spy" / "asked").read_text(encoding="utf-8").splitlines())


# --- the audit -------------------------------------------------------------------------------------------------------


def asserted_claims(path: Path) -> set[str]:
    """Ids of the claims that a notebook's cells hold against a measurement."""
    found = set()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "expect"
                and isinstance(call := node.func.value, ast.Call)
                and ast.unparse(call.func) == "audit"
            ):
                found.add(ast.literal_eval(call.args[0]))
    return found


def audit_problems(claims: Mapping[str, Claim], notebooks: Iterable[Path]) -> list[str]:
    """Claims that no cell asserts, and assertions of claims that do not exist or belong elsewhere."""
    asserted = {path.stem: asserted_claims(path) for path in notebooks}
    problems = [
        f"{chapter} asserts {claim}, which is " + ("unknown" if claim not in claims else f"of {claims[claim].chapter}")
        for chapter, ids in asserted.items()
        for claim in ids
        if claim not in claims or claims[claim].chapter != chapter
    ]
    for claim in claims.values():
        has_cell = claim.id in asserted.get(claim.chapter, ())
        if has_cell != (claim.verdict not in ("open", "not-testable")):
            problems.append(f"{claim.id} is {claim.verdict}, and {'a' if has_cell else 'no'} cell asserts it")
    return problems


# --- pages -----------------------------------------------------------------------------------------------------------


# Every script that stands in a page, and who put it there. None is ours: those are files, in book/_static.
INLINE = re.compile(
    r"document\.documentElement\.dataset\.mode = "  # pydata-sphinx-theme: the theme, before anything is drawn
    r"|// Activate the search field on page load\n"  # pydata-sphinx-theme: the page of the search
    r"|DOCUMENTATION_OPTIONS\.(pagename = '[\w/]+'|search_as_you_type = false);$"  # pydata-sphinx-theme
    r"|let toggle(HintShow|HintHide|OpenOnPrint) = '[\w ]+';$"  # sphinx-togglebutton
    r"|var togglebuttonSelector = '[\w., -]+';$"  # sphinx-togglebutton
)
HANDLERS = {"toggleFullScreen()", "window.print()"}  # sphinx-book-theme: two buttons above a page


@cache
def parsed(html: str) -> BeautifulSoup:
    """A page, read once for all tests that look at it: they must not change it."""
    return BeautifulSoup(html, "html.parser")


@cache
def anchors(html: str) -> frozenset[str]:
    return frozenset(node["id"] for node in parsed(html).find_all(id=True))


def book_problems(html: Path, pages: Iterable[str]) -> list[str]:
    """Pages that are missing, or that a reader would stumble over."""
    texts: dict[Path, str] = {}
    problems = []
    for page in pages:
        path = html / f"{page}.html"
        if not path.exists():
            problems.append(f"{page} was not rendered")
            continue
        texts[path.resolve()] = path.read_text(encoding="utf-8")
    for path in texts:
        problems += [f"{path.relative_to(html.resolve())}: {problem}" for problem in page_problems(path, texts)]
    return problems


def page_problems(path: Path, texts: Mapping[Path, str]) -> Iterable[str]:
    soup = parsed(texts[path])
    article = soup.find("article")
    if not isinstance(article, Tag) or len(article.find_all("h1")) != 1:
        yield "has no article with one title"
        return
    weight = path.stat().st_size
    for image in article.find_all("img"):
        if len(image.get("alt", "")) < 10:
            yield f"the image {image.get('src')} has no description"
        file = path.parent / unquote(str(image["src"]))
        if not file.is_file():
            yield f"the image {image['src']} is missing"
        else:
            weight += file.stat().st_size
    if weight > 1_500_000:
        yield f"weighs {weight:,} bytes"
    for element, attribute in (("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src")):
        for node in soup.find_all(element, {attribute: True}):
            parts = urlsplit(str(node[attribute]))
            if parts.netloc and "canonical" not in node.get("rel", []):
                yield f"fetches {node[attribute]} from another host"
            elif not parts.scheme and not (path.parent / unquote(parts.path)).is_file():
                yield f"fetches {node[attribute]}, which is not there"
    for script in soup.find_all("script", src=False):
        if address := re.search(r"https?://[^\s\"']+", script.get_text()):
            yield f"has a script that names {address.group()}"
        if not INLINE.match(script.get_text().strip()):
            yield f"has a script that nobody is known to put there: {script.get_text().strip()[:80]}"
    for node in soup.find_all(True):
        for attribute, value in node.attrs.items():
            runs = attribute.startswith("on") or str(value).strip().lower().startswith("javascript:")
            if runs and value not in HANDLERS:
                yield f"has a {node.name} with a script of its own: {value}"
    yield from link_problems(path, article, texts)
    prose = "".join(text for text in article.find_all(string=True) if not text.find_parent(["pre", "code", "math"]))
    if left := re.search(r"\{[a-z:]+\}`|```|:::|\$\$|\\begin\{|\*\*\w", prose):
        yield f"shows raw markup: {left.group()}"


def link_problems(path: Path, article: Tag, texts: Mapping[Path, str]) -> Iterable[str]:
    for link in article.find_all("a", href=True):
        parts = urlsplit(str(link["href"]))
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.is_file():
            yield f"links to {link['href']}, which is not there"
        elif parts.fragment and target in texts and unquote(parts.fragment) not in anchors(texts[target]):
            yield f"links to {link['href']}, which has no such place"
