"""Under a chapter's question: what it needs, and how long it takes, from the notebook itself and from its run."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from typing import Any

import nbformat
from docutils import nodes
from nbformat import NotebookNode
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

WORDS_A_MINUTE = 200  # code is read along, and its words count too


def packages(notebook: NotebookNode) -> list[str]:
    """The distributions that the cells import, as pip names them; none that come with Python or with the book."""
    found = set()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found.add(str(node.module).partition(".")[0])
    distributions = packages_distributions()
    named = {distributions[name][0] for name in found - sys.stdlib_module_names if name in distributions}
    return sorted(named - {"lstm-utils", "lstm_utils"})


def reading_minutes(notebook: NotebookNode) -> int:
    """How long the cells take to read, what they print left out."""
    return math.ceil(sum(len(cell.source.split()) for cell in notebook.cells) / WORDS_A_MINUTE)


def spoken(seconds: float) -> str:
    """A run time in the unit that one would say it in."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} minute{'s' * (minutes > 1)}"


def needed(docname: str, notebook: NotebookNode) -> Iterable[nodes.Node]:
    """A link to each chapter whose ideas are used, by its title."""
    try:
        names = notebook.metadata["measured"]["needs"]
    except KeyError as error:
        raise ExtensionError(f'{docname}: the notebook\'s metadata lacks "measured": {{"needs": […]}}') from error
    if not names:
        yield nodes.Text("no other chapter; you know what a tensor is, and have trained some network in PyTorch")
    for index, name in enumerate(names):
        if index:
            yield nodes.Text(" · ")
        target = {"refdoc": docname, "reftype": "doc", "reftarget": f"/notebooks/{name}"}
        yield pending_xref("", nodes.inline(), refdomain="std", refexplicit=False, refwarn=True, **target)


def add_head(app: Sphinx, doctree: nodes.document) -> None:
    """Put the lines between a chapter's question and what one will learn."""
    docname = app.env.docname
    if not docname.startswith("notebooks/"):
        return
    notebook = nbformat.read(app.env.doc2path(docname), as_version=4)
    minutes = reading_minutes(notebook)
    takes = f"about {minutes} minutes to read"
    # Present where the build ran the cells, or found them run.
    runtime = (app.env.nb_metadata[docname].get("exec_data") or {}).get("runtime")
    if runtime:
        takes += f"; {spoken(runtime)} to run, on the machine that built this page"
    lines = {
        "You need": [*needed(docname, notebook)],
        "It imports": [nodes.Text(", ".join(packages(notebook)))],
        "It takes": [nodes.Text(takes)],
    }
    fields = [
        nodes.field("", nodes.field_name(text=name), nodes.field_body("", nodes.paragraph("", "", *line)))
        for name, line in lines.items()
    ]
    question = next(doctree.findall(nodes.paragraph))
    question.parent.insert(question.parent.index(question) + 1, nodes.field_list("", *fields, classes=["chapter-head"]))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the part."""
    app.connect("doctree-read", add_head)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
