"""The error index: every pitfall of ``pitfalls.yml`` in one table, searched by ``_static/pitfalls.js``.

It has a page of its own, and is one key away on every other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from lstm_utils.pitfalls import Pitfall, pitfalls

PAGE = "book/errors"
GALLERY = "notebooks/08_error_gallery"
DATA = "pitfall_index.js"

# Hidden until the script that makes it work has arrived: without one, a reader gets the whole table and no dead box.
SEARCH = """
<div class="pitfall-search" role="search" aria-label="Pitfalls" hidden>
  <label for="pitfall-query">Paste an error message, or type a few words</label>
  <textarea id="pitfall-query" rows="3" autocomplete="off" autocapitalize="off" spellcheck="false"></textarea>
  <div><p role="status">{count} pitfalls</p><button type="button" aria-keyshortcuts="Escape">Clear</button></div>
</div>
"""


class PitfallIndex(SphinxDirective):
    """All pitfalls with what they look like, cause and cure; each leads to the cell that shows it."""

    def run(self) -> list[nodes.Node]:
        """Render ``pitfalls.yml``."""
        table = nodes.table(classes=["pitfalls", "colwidths-given"])
        group = nodes.tgroup(cols=3)
        table += group
        group += [nodes.colspec(colwidth=width) for width in (8, 45, 47)]
        titles = ("Id", "What it looks like", "Cause and cure")
        head = nodes.row("", *[nodes.entry("", nodes.paragraph(text=title)) for title in titles])
        group += [nodes.thead("", head), nodes.tbody("", *[self.row(entry) for entry in pitfalls().values()])]
        search = nodes.raw("", SEARCH.format(count=len(pitfalls())), format="html")
        return [nodes.container("", search, table, classes=["pitfall-index"])]

    def row(self, pitfall: Pitfall) -> nodes.row:
        """One pitfall: its id with a link to the cell, how it shows itself, and what to do."""
        anchor = pitfall.id.lower()
        target = self.env.app.builder.get_relative_uri(self.env.docname, GALLERY) + f"#{anchor}"
        link = nodes.reference("", pitfall.id, refuri=target, internal=True, reftitle="The cell that shows it")
        cells = [
            [nodes.paragraph("", "", nodes.strong("", "", link))],
            [*self.looks(pitfall)],
            [*self.advice(pitfall)],
        ]
        return nodes.row("", *[nodes.entry("", *cell) for cell in cells], ids=[anchor])

    def looks(self, pitfall: Pitfall) -> Iterable[nodes.Node]:
        """The title, each message by itself, and what happens in silence."""
        yield nodes.paragraph("", "", *self.parse_inline(pitfall.title)[0], classes=["pitfall-title"])
        for message in pitfall.messages:
            # A literal node keeps every character, backticks too; the script compares with what stands here.
            yield nodes.paragraph("", "", nodes.literal(text=message), classes=["pitfall-message"])
        if pitfall.silent:
            yield self.labelled("Silent", pitfall.silent)

    def advice(self, pitfall: Pitfall) -> Iterable[nodes.Node]:
        """Cause and cure, and who notices."""
        yield self.labelled("Cause", pitfall.cause)
        yield self.labelled("Cure", pitfall.cure)
        if pitfall.undetected:
            yield self.labelled("Beyond `diagnose`", pitfall.undetected, "pitfall-note")
        else:
            # The loss of a speech recogniser has a diagnosis of its own, which its cure names.
            finder = "diagnose_ctc" if "diagnose_ctc" in pitfall.cure else "diagnose"
            found = self.parse_inline(f"Found by `{finder}`")[0]
            yield nodes.paragraph("", "", *found, classes=["pitfall-note", "pitfall-found"])
        if pitfall.unexecuted:
            yield self.labelled("Not executed here", pitfall.unexecuted, "pitfall-note")

    def labelled(self, label: str, text: str, *classes: str) -> nodes.paragraph:
        """A paragraph that opens with what it is about."""
        return nodes.paragraph("", "", *self.parse_inline(f"**{label}:** {text}")[0], classes=list(classes))


def write_script(app: Sphinx, env: BuildEnvironment) -> None:
    """Write the index, as its page shows it, into a script: a page opened from the disk may load nothing else."""
    if app.builder.name != "html" or PAGE not in env.found_docs:  # as in a book made of a few of the pages
        return
    doctree = env.get_doctree(PAGE)
    [index] = doctree.findall(lambda node: isinstance(node, nodes.container) and "pitfall-index" in node["classes"])
    for row in index.findall(nodes.row):
        row["ids"] = []  # on the page of the gallery, they are its cells'
    html = app.builder.render_partial(index)["fragment"]
    literal = re.sub(r"\\|`|\$\{", r"\\\g<0>", html)
    script = Path(app.outdir, "_static", DATA)
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"window.pitfallIndex = `{literal}`;\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the parts."""
    app.add_directive("pitfall-index", PitfallIndex)
    # Deferred instead of modules: browsers refuse modules to a page that is opened from the disk.
    for script in (DATA, "pitfalls.js"):
        app.add_js_file(script, loading_method="defer")
    app.connect("env-updated", write_script)  # before the pages, which name it with a checksum
    return {"parallel_read_safe": True, "parallel_write_safe": True}
