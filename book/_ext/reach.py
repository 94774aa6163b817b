"""How readers reach the book: launch buttons, downloads, and what search engines, previews and language models read.

Two addresses in ``_config.yml`` decide, ``repository.url`` and ``html.baseurl``. What needs one that is empty is left
out, so that no page has a dead link.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from docutils import nodes
from myst_nb.ext.glue.crossref import read_glue_cache
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ConfigError

from lstm_utils.files import write_whole

PICTURE = "_images/landing.png"

# The extra packages are those that a chapter imports: see pyproject.toml.
INSTALL = """\
# Where the book's helpers are missing, as on Colab, this fetches and installs them; elsewhere it does nothing.
from importlib.util import find_spec

if find_spec("lstm_utils") is None:
    !git clone --quiet --depth 1 --branch {branch} {url} measured-lstm
    %pip install --quiet "./measured-lstm[notebooks]"
    %cd measured-lstm/{folder}"""


def check_addresses(_: Sphinx, config: Any) -> None:
    """Refuse an address that would give dead links, and leave out what needs one that is not there."""
    theme = config.html_theme_options
    url = theme.get("repository_url", "")
    if not url:
        theme.pop("launch_buttons", None)
    elif not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+(?<!\.git)", url):
        raise ConfigError(
            f"repository.url in _config.yml is {url!r}: launch buttons take https://github.com/OWNER/NAME, or nothing"
        )
    if base := config.html_baseurl:
        if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", base):
            raise ConfigError(
                f"html.baseurl in _config.yml is {base!r}: it takes an address, https://example.org/book/, or nothing"
            )
        config.html_baseurl = base.rstrip("/") + "/"


def opening(doctree: nodes.document) -> str:
    """The first sentence of a page; a chapter's is its question."""
    text = " ".join(next(doctree.findall(nodes.paragraph)).astext().split())
    return re.split(r"(?<=[.?!])\s", text, maxsplit=1)[0]


def add_metadata(
    app: Sphinx, page: str, _template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Describe the page to search engines, and to those who show a preview of a link (Open Graph).

    Not by sphinxext-opengraph, whose descriptions are the first 200 characters, cut wherever they end.
    """
    if doctree is None:  # the search page and the index
        return
    base = app.config.html_baseurl
    tags = {
        "og:type": "article" if page.startswith("notebooks/") else "website",
        "og:site_name": app.config.html_title,
        "og:title": app.env.titles[page].astext(),
        "og:description": opening(doctree),
    }
    if base:  # a preview takes whole addresses only
        tags |= {"og:url": base + app.builder.get_target_uri(page), "og:image": base + PICTURE}
    lines = [f'<meta property="{name}" content={quoteattr(text)} />' for name, text in tags.items()]
    lines.append(f'<meta name="description" content={quoteattr(tags["og:description"])} />')
    context["metatags"] = context.get("metatags", "") + "\n".join(lines) + "\n"


def add_install_cells(app: Sphinx) -> None:
    """Give each notebook to download a cell, after its title, that installs what it imports from the repository."""
    theme = app.config.html_theme_options
    if not theme.get("repository_url"):
        return
    for page in sorted(app.env.found_docs):
        source = Path(app.env.doc2path(page))
        if source.suffix != ".ipynb":
            continue
        text = INSTALL.format(
            branch=theme["repository_branch"], url=theme["repository_url"], folder=PurePosixPath(page).parent
        )
        notebook = json.loads(source.read_text(encoding="utf-8"))
        cell = {"cell_type": "code", "execution_count": None, "id": "install", "metadata": {}, "outputs": []}
        notebook["cells"].insert(1, {**cell, "source": text.splitlines(keepends=True)})
        written = json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
        write_whole(Path(app.outdir) / "_sources" / f"{page}.ipynb", written)


def index_lines(app: Sphinx) -> Iterator[str]:
    """The book as a text in the form of llmstxt.org: each page with what it answers."""
    env, root = app.env, app.config.root_doc

    def line(page: str) -> str:
        address = app.config.html_baseurl + app.builder.get_target_uri(page)
        return f"- [{env.titles[page].astext()}]({address}): {opening(env.get_doctree(page))}"

    yield f"# {app.config.html_title}\n\n> {opening(env.get_doctree(root))}\n"
    yield line(root)
    for part in env.get_doctree(root).findall(addnodes.toctree):
        yield f"\n## {part['caption']}\n"
        yield from map(line, part["includefiles"])


def write_sitemap(app: Sphinx) -> None:
    """List the pages by their public addresses."""
    addresses = [app.config.html_baseurl + app.builder.get_target_uri(page) for page in sorted(app.env.found_docs)]
    urls = "".join(f"  <url><loc>{escape(address)}</loc></url>\n" for address in addresses)
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
    write_whole(Path(app.outdir) / "sitemap.xml", f"{head}{urls}</urlset>\n")


def write_picture(app: Sphinx) -> None:
    """Keep the figure of the first page under a name that does not change: previews of links show it."""
    doctree = app.env.get_doctree(app.config.root_doc)
    figure = next(doctree.findall(lambda node: isinstance(node, nodes.figure) and "glued" in node))
    document, key = figure["glued"]
    data = read_glue_cache(app.env.mystnb_config.output_folder, document)[key]["data"]["image/png"]
    write_whole(Path(app.outdir) / PICTURE, b64decode(data))


def finish(app: Sphinx, failure: Exception | None) -> None:
    """Write what stands beside the pages."""
    if failure or app.builder.name != "html":
        return
    add_install_cells(app)
    write_whole(Path(app.outdir) / "llms.txt", "\n".join(index_lines(app)) + "\n")
    if app.config.html_baseurl:
        write_sitemap(app)
        write_picture(app)
    else:  # of an earlier build
        (Path(app.outdir) / "sitemap.xml").unlink(missing_ok=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the parts."""
    app.connect("config-inited", check_addresses)
    app.connect("html-page-context", add_metadata)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
