"""Print the rendered book as one PDF: ``make pdf``.

The pages of ``make book`` are joined in the order of ``_toc.yml`` and printed by the system's Chromium, so nothing runs
again, and paper shows what the screen shows. Sphinx's own single page (``--builder singlehtml``) would give all
chapters the same anchors (#recap, #exercises): links would lead to the wrong one. LaTeX would need an installation of
TeX, and writes the math, the tables and the parts of this book that are HTML otherwise or not at all.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Error, Page, sync_playwright
from pypdf import PdfReader

from lstm_utils.files import whole_file

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MARGINS = {"top": "16mm", "bottom": "18mm", "left": "17mm", "right": "17mm"}
WIDTH = round((210 - 2 * 17) / 25.4 * 96)  # of the text on A4, in the browser's pixels
FOOTER = '<div style="width: 100%; text-align: center; font: 8pt sans-serif"><span class="pageNumber"></span></div>'
# What only a screen can use.
INTERACTIVE = "a.headerlink, button, script, .audit-filter, .pitfall-search, .calculator-form"
# The innermost elements that are wider than the paper, or than the box that holds them: their right end would be cut.
CUT = """() => {
  const paper = document.documentElement.clientWidth + 1;
  const cut = [...document.querySelectorAll("article *")].filter(node =>
    node.getBoundingClientRect().right > paper || node.getBoundingClientRect().left + node.scrollWidth > paper
    || (node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).overflowX !== "visible"));
  return cut.filter(node => !cut.some(other => other !== node && node.contains(other)))
    .map(node => `${node.closest("article").id} <${node.localName}> ${node.textContent.trim().slice(0, 60)}`);
}"""


class PdfError(Exception):
    """Why there is no PDF, in a line for the reader."""


def browser_path() -> str:
    """Where Chromium or Chrome is."""
    wanted = os.environ.get("CHROMIUM")
    path = shutil.which(wanted) if wanted else next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        named = f"CHROMIUM is {wanted!r}, which cannot be run" if wanted else "no Chromium or Chrome found"
        raise PdfError(f"{named}: install one (Debian: apt-get install chromium), or set CHROMIUM to its path")
    return path


def parts() -> Iterator[tuple[str, list[str]]]:
    """The captions of _toc.yml, each with its pages; the first page stands alone."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    yield "", [toc["root"]]
    for part in toc["parts"]:
        yield part["caption"], [chapter["file"] for chapter in part["chapters"]]


def anchor(page: str, place: str = "") -> str:
    """The name of a place of a page, unique in the whole book."""
    return f"{page.replace('/', '-')}--{place}"


def article(html: Path, page: str, pages: list[str]) -> Tag:
    """The text of a page: images and links lead to where they led, what only a screen can use is gone."""
    path = html / f"{page}.html"
    if not path.is_file():
        raise PdfError(f"the page {str(path)!r} is missing: run `make book` first")
    node = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").select_one("article")
    for useless in node.select(INTERACTIVE):
        useless.decompose()
    for named in node.find_all(id=True):
        named["id"] = anchor(page, named["id"])
    for image in node.find_all("img"):
        image["src"] = (path.parent / unquote(image["src"])).resolve().as_uri()
    for link in node.find_all("a", href=True):
        to = urlsplit(link["href"])
        if to.scheme or to.netloc:
            continue
        target = (path.parent / unquote(to.path)).resolve() if to.path else path.resolve()
        target_page = target.relative_to(html.resolve()).with_suffix("").as_posix()
        if target_page in pages:
            link["href"] = "#" + anchor(target_page, to.fragment)
        else:  # a file to download
            del link["href"]
    for details in node.find_all("details"):  # paper cannot be opened: every solution is shown, and says that it is one
        details["open"] = ""
        details.summary.string = "Solution"
    for token in node.select("pre span.n, pre span.p, pre span.w"):  # without a colour; each would be a tag in the PDF
        token.unwrap()
    number = Path(page).name.partition("_")[0]
    if number.isdecimal():
        node.h1.insert(0, f"{int(number)} ")
    node["id"] = anchor(page)
    return node


def contents(titles: Mapping[str, str], numbers: Mapping[str, int]) -> Iterator[str]:
    """The table of contents, with the numbers of pages that are known."""
    for caption, pages in parts():
        yield f"<h2>{caption}</h2>" if caption else ""
        for page in pages:
            yield f'<p><a href="#{anchor(page)}">{titles[page]}</a><span>{numbers.get(page, "")}</span></p>'


def joined(html: Path) -> dict[str, Tag]:
    """The text of every page, in the order of the book."""
    pages = [page for _, some in parts() for page in some]
    return {page: article(html, page, pages) for page in pages}


def document(html: Path, articles: Mapping[str, Tag], numbers: Mapping[str, int]) -> str:
    """The book as one page of HTML."""
    titles = {page: node.h1.decode_contents() for page, node in articles.items()}
    first = html / f"{next(iter(articles))}.html"
    head = BeautifulSoup(first.read_text(encoding="utf-8"), "html.parser").head
    title = head.title.string.rpartition("—")[2].strip()
    sheets = [first.parent / urlsplit(link["href"]).path for link in head.select('link[rel="stylesheet"]')]
    links = [f'<link rel="stylesheet" href="{sheet.resolve().as_uri()}">' for sheet in [*sheets, ROOT / "book/pdf.css"]]
    return "\n".join(
        [
            f'<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8"><title>{title}</title>',
            *links,
            f'<main class="bd-content"><nav class="pages"><h1>{title}</h1>',
            *contents(titles, numbers),
            "</nav>",
            *map(str, articles.values()),
            "</main></html>",
        ]
    )


def first_pages(pdf: Path) -> dict[str, int]:
    """The number of the page on which each page of the book begins."""
    reader = PdfReader(pdf)
    places = reader.named_destinations
    return {
        page: reader.get_destination_page_number(places[f"/{anchor(page)}"]) + 1 for _, some in parts() for page in some
    }


def print_page(page: Page, source: Path, pdf: Path, *, finished: bool) -> None:
    """Print what stands in a file, unless something would be cut."""
    page.goto(source.as_uri())
    if cut := page.evaluate(CUT):
        raise PdfError("wider than the paper:\n  " + "\n  ".join(cut))
    page.pdf(
        path=pdf,
        format="A4",
        margin=MARGINS,
        outline=finished,
        tagged=finished,
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=FOOTER,
    )


def make_pdf(html: Path, target: Path) -> None:
    """Print the book: once to learn the numbers of the pages, and once with them in the table of contents."""
    if not html.is_dir():
        raise PdfError(f"there is no rendered book in {str(html)!r}: run `make book` first")
    path = browser_path()
    try:
        with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder, whole_file(target) as half:
            browser = playwright.chromium.launch(executable_path=path)
            options = {"java_script_enabled": False, "color_scheme": "light"}
            page = browser.new_context(viewport={"width": WIDTH, "height": 1000}, **options).new_page()
            page.emulate_media(media="print")
            page.set_default_timeout(600_000)  # hundreds of pages, perhaps on a slow machine
            articles = joined(html)
            source = Path(folder) / "book.html"
            numbers: dict[str, int] = {}
            for finished in (False, True):
                source.write_text(document(html, articles, numbers), encoding="utf-8")
                print_page(page, source, half, finished=finished)
                numbers = first_pages(half)
            browser.close()
    except Error as error:
        raise PdfError(f"{path} could not print the book: {error.message}") from error
    except OSError as error:  # such as a full disk
        raise PdfError(str(error)) from error


if __name__ == "__main__":
    target = ROOT / "_build" / "measured-lstm.pdf"
    try:
        make_pdf(ROOT / "_build" / "html", target)
    except PdfError as error:
        sys.exit(f"No PDF was made: {error}")
    print(f"The PDF is at {target}")
