"""What the book needs of Sphinx beyond jupyter-book: math without a script, the audit page, and honest caching."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
from base64 import b64decode
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.utils.math import pick_math_environment
from docutils.utils.math.latex2mathml import tex2mathml
from jupyter_cache import get_cache
from myst_nb.ext.glue.crossref import read_glue_cache
from myst_nb.ext.glue.utils import create_pending_glue_ref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

import lstm_utils
from lstm_utils.claims import EXPLAINED_BY, claims
from lstm_utils.measure import hardware, resolve_device

logger = logging.getLogger(__name__)

VERDICT_LABELS = {
    "holds": "holds",
    "holds-if": "holds if",
    "false": "false",
    "depends": "depends",
    "not-testable": "not testable",
    "open": "open",
}


# --- what jupyter-book brings and the book does not want -------------------------------------------------------------


def silence_thebe(app: Sphinx, _: Any) -> None:
    """Take out live cells: jupyter-book always adds them, twice over, with a script from another host."""
    for listeners in app.events.listeners.values():
        listeners[:] = [
            listener for listener in listeners if not listener.handler.__module__.startswith("sphinx_thebe")
        ]
    app.registry.css_files[:] = [entry for entry in app.registry.css_files if entry[0] != "sphinx-thebe.css"]


def mend_roles(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Correct what screen readers are told: entries of a list are its items, an empty corner heads nothing."""
    if "body" in context:
        body = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')
        context["body"] = re.sub(r"<th( class=\"[^\"]*\")?>(<p></p>)?</th>", "<td></td>", body)


# --- caching ---------------------------------------------------------------------------------------------------------


def helpers_digest() -> str:
    """Fingerprint of everything besides its own cells that a notebook's output depends on."""
    digest = hashlib.sha256(str(hardware(resolve_device("auto"))).encode())
    for distribution in ("numpy", "matplotlib", "myst-nb"):
        digest.update(version(distribution).encode())
    for path in sorted(Path(lstm_utils.__file__).parent.iterdir()):
        if path.suffix in {".py", ".yml", ".mplstyle"}:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def stored_outputs(_app: Sphinx, config: Any) -> None:
    """Run nothing where the environment says so: the pages then show the outputs that the notebooks hold."""
    if os.environ.get("STORED_OUTPUTS"):
        config.nb_execution_mode = "off"


def separate_cache(app: Sphinx, config: Any) -> None:
    """Keep one cache, for this machine and these helpers: the cache itself compares nothing but a notebook's cells.

    Sphinx reads every page again when the path changes.
    """
    caches = Path(app.outdir).parent / ".jupyter_cache"
    current = caches / helpers_digest()
    for outdated in caches.glob("*"):
        if outdated != current:
            shutil.rmtree(outdated)
    if current.exists() and not is_sound(current):
        logger.info("The cache %s is damaged: it is deleted, and its chapters run again.", current)
        shutil.rmtree(current)
    config.nb_execution_cache_path = str(current)


def is_sound(folder: Path) -> bool:
    """Whether a cache can be read: a build that was killed, or met a full disk, lists runs that it did not write."""
    cache = get_cache(folder)
    try:
        with cache.db.connect() as database:
            sound = database.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        cache.list_project_records()
        cache.get_cache_limit()
        for record in cache.list_cache_records():
            cache.get_cache_bundle(record.pk)
    except Exception:  # of the database, of JSON, of nbformat: none of them can be lived with
        return False
    finally:
        cache.db.dispose()
    return sound


def forget_unfinished(app: Sphinx, _: Any) -> None:
    """Read and write every page again after a build that was killed: Sphinx would take those that it left as they are.

    It notes what it has read before it writes, and looks at no more than a page's time.
    """
    mark = unfinished(app)
    if mark.exists():
        shutil.rmtree(mark.parent)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def finish(app: Sphinx, failure: Exception | None) -> None:
    """Note that this build came to its end."""
    if not failure:
        unfinished(app).unlink(missing_ok=True)


def unfinished(app: Sphinx) -> Path:
    """The file that is there while a build runs."""
    return Path(app.doctreedir) / "unfinished"


def damaged_doctrees(app: Sphinx, env: BuildEnvironment, *_: set[str]) -> list[str]:
    """Pages to read again because Sphinx could not load what it kept of them; it looks only whether that is there."""
    damaged = []
    for page in env.all_docs:
        try:
            pickle.loads(Path(app.doctreedir, f"{page}.doctree").read_bytes())
        except Exception:  # whatever a damaged pickle raises
            damaged.append(page)
    return damaged


def sources_version(book: Path) -> int:
    """A number that changes with every extension, template, style sheet and script, whichever of them it is.

    Sphinx reads every page again when it changes, so no change is missed. By itself Sphinx looks at none of them, and
    copies a style sheet only along with a changed page.
    """
    digest = hashlib.sha256()
    for path in sorted(path for name in ("_ext", "_static", "_templates") for path in (book / name).glob("*.*")):
        digest.update(path.name.encode() + path.read_bytes())
    return int.from_bytes(digest.digest()[:4])


# --- math ------------------------------------------------------------------------------------------------------------


def visit_math(translator: Any, node: nodes.math) -> None:
    """Write inline math as MathML, which every current browser renders by itself."""
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    """Write a displayed formula as MathML; it scrolls by itself where the page is narrower."""
    source = node.astext()
    if pick_math_environment(source).startswith("align") and r"\begin" not in source:
        source = rf"\begin{{aligned}}{source}\end{{aligned}}"
    translator.body.append(f'<div class="math-block" tabindex="0">{tex2mathml(source, as_block=True)}</div>')
    raise nodes.SkipNode


# --- a figure of another page ----------------------------------------------------------------------------------------


class GluedFigure(SphinxDirective):
    """A figure that a notebook glued, with alternative text and a caption: ``glue:figure`` reads its own page only."""

    required_arguments = 1  # the key
    option_spec: ClassVar[dict[str, Any]] = {"doc": directives.unchanged_required, "alt": directives.unchanged_required}
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Leave a reference that myst-nb resolves once every notebook has run."""
        notebook = self.options["doc"]
        self.env.note_dependency(self.env.relfn2path(notebook)[1])  # a changed figure rewrites this page too
        reference = create_pending_glue_ref(self.state.document, notebook, self.lineno, notebook, self.arguments[0])
        caption = nodes.caption("", "", *self.parse_inline(" ".join(self.content))[0])
        return [nodes.figure("", reference, caption, glued=(reference.refdoc, reference.key), alt=self.options["alt"])]


def finish_glued_figures(app: Sphinx, doctree: nodes.document, _: str) -> None:
    """Give the image its alternative text and its file, which myst-nb expects the notebook's page to have copied."""
    for figure in doctree.findall(lambda node: isinstance(node, nodes.figure) and "glued" in node):
        for image in figure.findall(nodes.image):
            document, key = figure["glued"]
            data = read_glue_cache(app.env.mystnb_config.output_folder, document)[key]["data"]["image/png"]
            target = Path(app.outdir) / app.builder.imagedir / Path(image["uri"]).name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(b64decode(data))
            image["alt"] = figure["alt"]


# --- a number of another page -----------------------------------------------------------------------------------------


class Measured(SphinxRole):
    """What a notebook glued, on another page: {measured}`15_text_classification text_width_64`."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Leave a reference that myst-nb resolves once every notebook has run."""
        chapter, key = self.text.split()
        notebook = f"../notebooks/{chapter}.ipynb"
        self.env.note_dependency(self.env.relfn2path(notebook)[1])  # a changed number rewrites this page too
        document, kind = self.inliner.document, {"inline": True, "gtype": "text", "fmt_spec": ""}
        return [create_pending_glue_ref(document, notebook, self.lineno, notebook, key, **kind)], []


# --- the audit -------------------------------------------------------------------------------------------------------


def anchor_cells(_: Sphinx, doctree: nodes.document) -> None:
    """Give cells that links lead to an anchor: #g07 is the first that says audit("G07"), #p07 pitfall("P07")."""
    seen = set()
    for cell in doctree.findall(lambda node: isinstance(node, nodes.container) and "cell" in node["classes"]):
        source = next((node.astext() for node in cell.findall(nodes.literal_block)), "")
        for name in re.findall(r"""(?:audit\(["'](?=G)|pitfall\(["'](?=P))(\w+)["']\)""", source):
            if name not in seen:
                seen.add(name)
                cell["ids"].append(name.lower())


# A verdict on the map of claims, for those who do not tell the colours apart.
SIGNS = {"holds": "✓", "holds-if": "(✓)", "depends": "±", "false": "✗", "not-testable": "–", "open": "…"}


class AuditTable(SphinxDirective):
    """All claims with their verdicts; each leads to the cell that would fail if the verdict were wrong."""

    def run(self) -> list[nodes.Node]:
        """Render ``claims.yml``."""
        verdicts = [claim.verdict for claim in claims().values()]
        choices = [(v, VERDICT_LABELS[v], verdicts.count(v)) for v in EXPLAINED_BY if v in verdicts]
        radios = (
            f'<label><input type="radio" name="verdict" value="all" checked> all ({len(verdicts)})</label>'
            + "".join(
                f'<label><input type="radio" name="verdict" value="{v}"> {label} ({n})</label>'
                for v, label, n in choices
            )
        )
        legend = "<legend>Show the claims whose verdict is</legend>"
        table = nodes.table(classes=["audit", "colwidths-given"])
        group = nodes.tgroup(cols=4)
        table += group
        group += [nodes.colspec(colwidth=width) for width in (8, 36, 14, 42)]
        head = nodes.row(
            "",
            *[
                nodes.entry("", nodes.paragraph(text=t))
                for t in ("Id", "The guide says", "Verdict", "What the cells found")
            ],
        )
        group += [nodes.thead("", head), nodes.tbody("", *[self.row(claim) for claim in claims().values()])]
        return [nodes.raw("", f'<fieldset class="audit-filter">{legend}{radios}</fieldset>', format="html"), table]

    def row(self, claim: Any) -> nodes.row:
        """One claim: id, paraphrase, verdict, and what was found with a link to the cell."""
        row = nodes.row(classes=[f"verdict-{claim.verdict}"])
        found = self.parse_inline(claim.explanation)[0] if claim.explanation else []
        chapter = f"notebooks/{claim.chapter}"
        evidence = nodes.paragraph("", "", *found)
        if claim.verdict not in ("open", "not-testable"):
            target = self.env.app.builder.get_relative_uri(self.env.docname, chapter) + f"#{claim.id.lower()}"
            evidence += [
                nodes.Text(" "),
                nodes.reference("", f"See the cell for {claim.id}", refuri=target, internal=True),
            ]
        elif claim.verdict == "open":
            evidence += nodes.emphasis(
                "", f"To be measured in chapter {int(claim.chapter[:2])}, {claim.chapter[3:].replace('_', ' ')}."
            )
        cells = [
            nodes.paragraph("", "", nodes.strong(text=claim.id)),
            nodes.paragraph("", "", *self.parse_inline(claim.says)[0]),
            nodes.paragraph("", "", nodes.inline("", VERDICT_LABELS[claim.verdict], classes=["verdict"])),
            evidence,
        ]
        row += [nodes.entry("", cell) for cell in cells]
        return row


class AuditScore(SphinxDirective):
    """How many claims there are, how many have which verdict, and a map of them in the order of the guide."""

    def run(self) -> list[nodes.Node]:
        """Count and draw ``claims.yml``."""
        verdicts = [claim.verdict for claim in claims().values()]
        present = [v for v in EXPLAINED_BY if v in verdicts]
        parts = [f"{VERDICT_LABELS[v]} {verdicts.count(v)}" for v in present]
        score = nodes.paragraph("", "", nodes.strong(text=f"{len(verdicts)} claims: {' · '.join(parts)}"))
        rows = "".join(
            f"<dt>{section}</dt><dd>{''.join(map(self.tile, group))}</dd>"
            for section, group in groupby(claims().values(), key=lambda claim: claim.section)
        )
        legend = "".join(f'<span class="tile verdict-{v}">{SIGNS[v]} {VERDICT_LABELS[v]}</span>' for v in present)
        caption = f"The claims by section of the guide; each leads to its cell. {legend}"
        figure = f'<figure class="audit-map"><dl>{rows}</dl><figcaption>{caption}</figcaption></figure>'
        return [score, nodes.raw("", figure, format="html")]

    def tile(self, claim: Any) -> str:
        """A claim on the map, linked to the cell that asserts it."""
        text = f"{claim.id}&nbsp;{SIGNS[claim.verdict]}"
        told = f'class="tile verdict-{claim.verdict}" title="{claim.id}: {VERDICT_LABELS[claim.verdict]}"'
        if claim.verdict in ("open", "not-testable"):
            return f"<span {told}>{text}</span>"
        chapter = self.env.app.builder.get_relative_uri(self.env.docname, f"notebooks/{claim.chapter}")
        return f'<a {told} href="{chapter}#{claim.id.lower()}">{text}</a>'


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the parts."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for kernels that make did not start: see the Makefile
    app.connect("config-inited", silence_thebe)
    app.connect("config-inited", separate_cache)
    app.connect("config-inited", stored_outputs)
    app.connect("config-inited", forget_unfinished)
    app.connect("env-get-outdated", damaged_doctrees)
    app.connect("build-finished", finish, priority=900)  # after everybody who writes
    app.connect("html-page-context", mend_roles)
    app.connect("doctree-read", anchor_cells)
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None))
    app.connect("doctree-resolved", finish_glued_figures)
    app.add_directive("glued-figure", GluedFigure)
    app.add_role("measured", Measured())
    app.add_directive("audit-table", AuditTable)
    app.add_directive("audit-score", AuditScore)
    return {
        "version": lstm_utils.__version__,
        "env_version": sources_version(Path(__file__).parent.parent),
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
