"""The book as a PDF: book/pdf.py. Needs `make book` (or `make pages`), and Chromium or Chrome."""

import re
from itertools import pairwise

import pdf
import pytest
from checks import HTML, NOTEBOOKS, parsed, toc_pages
from pypdf import PdfReader

pytestmark = pytest.mark.long("prints or reads the whole book")


def title(name):
    heading = parsed((HTML / f"{name}.html").read_text(encoding="utf-8")).select_one("article h1")
    number = re.match(r"notebooks/0?(\d+)", name)
    return (f"{number.group(1)} " if number else "") + heading.get_text().removesuffix("#")


def packed(text):
    """Without white space: where a line of code wraps, the PDF does not say whether there was any."""
    return "".join(text.split())


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("pdf") / "book.pdf"
    pdf.make_pdf(HTML, path)
    assert [file.name for file in path.parent.iterdir()] == ["book.pdf"]
    return path


@pytest.fixture(scope="module")
def joined():
    return parsed(pdf.document(HTML, pdf.joined(HTML), {}))


@pytest.fixture(scope="module")
def reader(book):
    return PdfReader(book)


@pytest.mark.stress
def test_it_has_every_page_of_the_book_in_order(book, reader):
    chapters = [entry for entry in reader.outline if not isinstance(entry, list)]
    titles = [title(name) for name in toc_pages()]
    assert [packed(entry.title) for entry in chapters] == [packed(name) for name in [titles[0], *titles]]
    begins = pdf.first_pages(book)
    assert list(begins) == toc_pages()
    assert all(first < second for first, second in pairwise(begins.values()))
    contents = packed("".join(reader.pages[number].extract_text() for number in range(begins["book/index"] - 1)))
    for name, text in zip(toc_pages(), titles, strict=True):
        assert f"{packed(text)}{begins[name]}" in contents
        assert packed(text) in packed(reader.pages[begins[name] - 1].extract_text())


def bookmarks(outline):
    for entry in outline:
        if isinstance(entry, list):
            yield from bookmarks(entry)
        else:
            yield packed(entry.title)


@pytest.mark.stress
def test_the_bookmarks_are_the_headings_each_once(reader, joined):
    headings = [packed(node.get_text()) for node in joined.find_all(re.compile("^h[1-6]$"))]
    assert list(bookmarks(reader.outline)) == [text for text in headings if text]


@pytest.mark.stress
def test_it_can_be_sent_around(book):
    assert book.stat().st_size < 40e6


@pytest.mark.stress
def test_no_line_of_code_is_cut(book, reader):
    longest = {}
    for path in NOTEBOOKS:
        soup = parsed((HTML / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8"))
        lines = [line for code in soup.select(".cell pre") for line in code.get_text().splitlines()]
        longest[f"notebooks/{path.stem}"] = max(lines, key=len)
    begins = [*pdf.first_pages(book).items()]
    sample = sorted(longest, key=lambda name: len(longest[name]))[-6:]
    assert min(len(longest[name]) for name in sample) > 110
    for (name, first), (_, following) in pairwise(begins):
        if name in sample:
            text = "".join(page.extract_text() for page in reader.pages[first - 1 : following - 1])
            assert packed(longest[name]) in packed(text), longest[name]


def test_every_solution_is_printed_and_no_control_is(joined):
    solutions = joined.select(".tag_solution details")
    assert len(solutions) >= 2 * len(NOTEBOOKS)
    assert all(node.has_attr("open") and node.summary.get_text() == "Solution" for node in solutions)
    assert joined.select("button, script, input, textarea, .headerlink") == []


def test_every_link_inside_the_book_has_a_target(joined):
    names = [node["id"] for node in joined.find_all(id=True)]
    assert len(names) == len(set(names))
    inside = {link["href"][1:] for link in joined.select('a[href^="#"]')}
    assert len(inside) > 200
    assert inside <= set(names)
    assert all(re.match(r"#|https?:|mailto:", link["href"]) for link in joined.select("a[href]"))


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Makes a book of one page, whose text is given, and prints it beside an earlier PDF, which must stay as it was."""
    monkeypatch.setattr(pdf, "parts", lambda: iter([("", ["page"])]))
    html, target = tmp_path / "html", tmp_path / "book.pdf"
    html.mkdir()
    target.write_bytes(b"earlier")

    def tiny(text):
        page = f"<head><title>A — B</title></head><article><h1>Title</h1>{text}</article>"
        (html / "page.html").write_text(page, encoding="utf-8")
        pdf.make_pdf(html, target)

    yield tiny
    assert {file.name for file in tmp_path.iterdir()} == {"html", "book.pdf"}
    assert target.read_bytes() == b"earlier"


@pytest.mark.parametrize(
    "text",
    [
        '<p style="width: 900px">too wide</p>',
        '<div style="overflow: auto"><p style="width: 900px">too wide</p></div>',
        '<pre style="white-space: pre !important">' + "long " * 80 + "</pre>",
    ],
    ids=["paragraph", "scrolled", "code"],
)
def test_what_would_be_cut_is_not_printed(tiny, text):
    with pytest.raises(pdf.PdfError, match=r"wider than the paper:\n  page-- <p(re)?> (too|long)"):
        tiny(text)


def test_a_missing_browser_is_one_clear_line(tiny, monkeypatch):
    monkeypatch.setenv("CHROMIUM", "/no/such/chromium")
    with pytest.raises(pdf.PdfError, match="CHROMIUM is '/no/such/chromium', which cannot be run: install one"):
        tiny("text")
    monkeypatch.delenv("CHROMIUM")
    monkeypatch.setattr(pdf, "BROWSERS", ("no-such-browser",))
    with pytest.raises(pdf.PdfError, match="no Chromium or Chrome found: install one"):
        tiny("text")


def test_a_browser_that_fails_is_named(tiny, monkeypatch):
    monkeypatch.setenv("CHROMIUM", "/bin/false")
    with pytest.raises(pdf.PdfError, match="/bin/false could not print the book"):
        tiny("text")


def test_a_missing_page_is_named(tiny, monkeypatch, tmp_path):
    with pytest.raises(pdf.PdfError, match="run `make book` first"):
        pdf.make_pdf(tmp_path / "nothing", tmp_path / "book.pdf")
    monkeypatch.setattr(pdf, "parts", lambda: iter([("", ["page"]), ("Part", ["other"])]))
    with pytest.raises(pdf.PdfError, match=r"other\.html' is missing: run `make book` first"):
        tiny("text")
