"""The rendered book, as files. Needs `make book`."""

import re
import shutil
from itertools import pairwise
from pathlib import Path

import chapter_head
import measured
import nbformat
import pytest
from checks import GENERATED, HTML, NOTEBOOKS, ROOT, book_problems, parsed, toc_pages

from lstm_utils.claims import claims
from lstm_utils.pitfalls import pitfalls


@pytest.fixture(scope="module", autouse=True)
def built():
    assert (HTML / "book" / "index.html").is_file(), "there is no rendered book: run `make book` first"


def page(name):
    return parsed((HTML / f"{name}.html").read_text(encoding="utf-8"))


@pytest.mark.long("reads every page, and looks up the target of every link")
def test_every_page_is_there_and_sound():
    assert book_problems(HTML, toc_pages()) == []


def test_each_page_leads_to_the_next_and_back():
    for before, after in pairwise(toc_pages()):
        for name, link, target in ((before, "a.right-next", after), (after, "a.left-prev", before)):
            led = (HTML / name).parent / page(name).select_one(link)["href"]
            assert led.resolve() == (HTML / f"{target}.html").resolve()


def test_no_page_is_left_from_an_earlier_state():
    rendered = {
        str(path.relative_to(HTML).with_suffix("")) for path in HTML.rglob("*.html") if "_static" not in path.parts
    }
    assert rendered == set(toc_pages()) | GENERATED


DAMAGES = {
    "a deleted page": lambda html: (html / "notebooks" / "03_layers_bias_batch_first.html").unlink(),
    "a deleted figure": lambda html: (html / "book" / page("book/index").select_one("article img")["src"]).unlink(),
    "a deleted style sheet": lambda html: (html / "_static" / "measured.css").unlink(),
    "a dangling link": lambda html: edit(html, "book/audit", "batch_first.html#g07", "batch_first.html#g77"),
    "raw markup": lambda html: edit(html, "book/index", "<strong>Read it.", "{glue:text}`x` <strong>Read it."),
    "another host": lambda html: edit(
        html, "book/index", "</head>", '<script src="https://x.org/x.js"></script></head>'
    ),
    "a strange script": lambda html: edit(html, "book/index", "</head>", "<script>track()</script></head>"),
    "a script in a link": lambda html: edit(html, "book/index", "</main>", '<a href="javascript:x()">x</a></main>'),
    "a script in a button": lambda html: edit(html, "book/index", "</main>", '<b onclick="x()">x</b></main>'),
    "a figure without alt": lambda html: edit(html, "book/index", 'alt="Three panels', 'title="Three panels'),
}


def edit(html, name, old, new):
    path = html / f"{name}.html"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_book_is_noticed(damage, tmp_path):
    pages = ["book/index", "book/audit", "notebooks/03_layers_bias_batch_first"]  # with what the damages need
    copy = tmp_path / "html"
    shutil.copytree(HTML, copy, ignore=shutil.ignore_patterns("_sources"))
    assert book_problems(copy, pages) == []
    damage(copy)
    assert book_problems(copy, pages)


def test_the_audit_page_shows_every_claim_and_leads_to_its_cell():
    rows = page("book/audit").select("table.audit tbody tr")
    assert len(rows) == len(claims())
    for row, claim in zip(rows, claims().values(), strict=True):
        assert f"verdict-{claim.verdict}" in row["class"]
        links = [a["href"] for a in row.select("a") if a.get_text().startswith("See the cell")]
        if claim.verdict in ("open", "not-testable"):
            assert not links
            continue
        chapter, _, anchor = links[0].partition("#")
        cell = page(f"notebooks/{Path(chapter).stem}").find(id=anchor)
        assert f'audit("{claim.id}")' in cell.get_text()


def test_the_error_index_lists_every_pitfall_and_leads_to_its_cell():
    rows = page("book/errors").select("table.pitfalls tbody tr")
    assert [row["id"] for row in rows] == [known.id.lower() for known in pitfalls().values()]
    for row, known in zip(rows, pitfalls().values(), strict=True):
        assert tuple(code.get_text() for code in row.select(".pitfall-message code")) == known.messages
        text = " ".join(row.get_text().replace("’", "'").split())
        for part in (known.title, known.silent, known.cause, known.cure, known.undetected, known.unexecuted):
            assert part.replace("`", "") in text
        assert ("Silent:" in text, "Not executed here:" in text) == (bool(known.silent), bool(known.unexecuted))
        assert ("Found by diagnose" in text, "Beyond diagnose:" in text) == (
            not known.undetected,
            bool(known.undetected),
        )
        chapter, _, anchor = row.select_one("a")["href"].partition("#")
        cell = page(f"notebooks/{Path(chapter).stem}").find(id=anchor)
        assert "cell" in cell["class"]
        assert f'pitfall("{known.id}")' in cell.get_text()


def test_the_error_index_is_on_every_page_as_a_small_script():
    scripts = {script["src"] for name in toc_pages() for script in page(name).select("script[src*='pitfall_index.js']")}
    assert len(scripts) == 1
    assert all(page(name).select("script[src*='pitfalls.js'][defer]") for name in [*toc_pages(), "search"])
    data = (HTML / "_static" / "pitfall_index.js").read_text(encoding="utf-8")
    assert len(data.encode()) < 60_000
    data = re.sub(r"\\(.)", r"\1", data)  # as the browser reads it
    rows = [row.get_text() for row in page("book/errors").select("table.pitfalls tr")]
    assert [row.get_text() for row in parsed(data).select("table.pitfalls tr")] == rows
    assert not parsed(data).select("[id^=p0]")  # they would be the cells' on the page of the gallery


def test_no_other_page_loads_the_script_of_the_calculators():
    assert [name for name in toc_pages() if page(name).select("script[src*='calculators.js']")] == ["book/calculator"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_was_executed_by_the_builder(path):
    # The hardware line is ignored by nbval, so the rendered one shows who ran the cells.
    soup = page(f"notebooks/{path.stem}")
    outputs = [node.get_text() for node in soup.select("div.cell_output")]
    assert any(re.search(r"CPU|NVIDIA|MPS", text) and "torch" in text for text in outputs)
    hidden = soup.select("div.cell.tag_solution")
    assert hidden
    assert all("tag_hide-cell" in cell["class"] for cell in hidden)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_says_what_it_needs_and_takes(path):
    notebook = nbformat.read(path, as_version=4)
    head = page(f"notebooks/{path.stem}").select_one("article section > dl.chapter-head")
    assert head.find_previous_sibling("p").get_text().endswith("?")
    needs, imports, takes = head.find_all("dd")
    assert [Path(link["href"]).stem for link in needs.select("a")] == notebook.metadata.measured.needs
    assert "torch" in imports.get_text(strip=True).split(", ")
    words = sum(len(cell.source.split()) for cell in notebook.cells)
    read, minutes, run = re.match(
        r"about ((\d+) minutes) to read(?:; (\d+ (?:s|minutes?)) to run)?", takes.p.text
    ).groups()
    assert (int(minutes) - 1) * 200 < words <= int(minutes) * 200, read
    executed = any((HTML.parent / ".jupyter_cache").glob("*/global.db"))
    assert bool(run) == executed


def test_how_long_a_chapter_takes_is_said_in_words():
    assert [chapter_head.spoken(s) for s in (0.2, 59, 59.5, 60, 61, 119.9, 601)] == [
        "1 s", "59 s", "60 s", "1 minute", "2 minutes", "2 minutes", "11 minutes",
    ]  # fmt: skip


def test_packages_are_named_as_pip_names_them():
    source = "import os, numpy.linalg\nfrom sklearn import svm\nfrom lstm_utils import check\nfrom myst_nb import glue"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    assert chapter_head.packages(notebook) == ["myst-nb", "numpy", "scikit-learn"]


def test_measured_numbers_reached_the_prose():
    text = page("notebooks/01_inside_the_cell").get_text()
    assert re.search(r"naive loop took\s+\d+\.\d\d× \(\d+\.\d\d–\d+\.\d\d\)", text)


def test_formulas_are_mathml():
    soup = page("book/notation")
    assert len(soup.find_all("math")) > 20
    assert soup.select_one("div.math-block math[display=block]")


def test_the_cache_notices_a_changed_helper(tmp_path, monkeypatch):
    package = tmp_path / "lstm_utils"
    shutil.copytree(ROOT / "lstm_utils", package)
    monkeypatch.setattr(measured.lstm_utils, "__file__", str(package / "__init__.py"))
    before = measured.helpers_digest()
    assert before == measured.helpers_digest()
    for name in ("spec.py", "claims.yml", "measured.mplstyle"):
        with (package / name).open("a", encoding="utf-8") as file:
            file.write("\n# changed\n")
        assert measured.helpers_digest() != before
        before = measured.helpers_digest()


@pytest.mark.parametrize("name", ["_ext/reach.py", "_static/calculators.js", "_templates/find_error.html"])
def test_sphinx_notices_what_makes_the_pages(name, tmp_path):
    for folder in ("_ext", "_static", "_templates"):
        shutil.copytree(ROOT / "book" / folder, tmp_path / folder)
    before = measured.sources_version(tmp_path)
    assert before == measured.sources_version(tmp_path)
    with (tmp_path / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert measured.sources_version(tmp_path) != before


def test_every_line_of_the_guide_to_choosing_has_its_evidence_and_its_numbers():
    rows = page("book/choose").select("table tbody tr")
    assert len(rows) >= 20
    for row in rows:
        assert row.select('a[href*="notebooks/"]'), row.get_text()
    asked = (ROOT / "book" / "choose.md").read_text(encoding="utf-8").count("{measured}`")
    assert sum(len(row.select(".pasted-text")) for row in rows) == asked > 40


def test_the_map_of_the_audit_has_a_tile_for_each_claim():
    tiles = page("book/audit").select(".audit-map dd .tile")
    assert [tile["title"].partition(":")[0] for tile in tiles] == list(claims())
    for tile, claim in zip(tiles, claims().values(), strict=True):
        assert f"verdict-{claim.verdict}" in tile["class"]
        assert (tile.name == "a") == (claim.verdict != "not-testable")
