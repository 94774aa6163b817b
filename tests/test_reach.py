"""How readers reach the book: book/_ext/reach.py, with and without the two addresses of the book."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urljoin
from xml.etree import ElementTree

import nbformat
import pytest
import reach
import yaml
from checks import HTML, NOTEBOOKS, ROOT, parsed, toc_pages
from IPython.core.inputtransformer2 import TransformerManager
from sphinx.errors import ConfigError

pytestmark = pytest.mark.long("builds a small book three times, for all tests")

SMALL = ["book/index", "notebooks/01_inside_the_cell", "notebooks/21_beyond_one_machine"]
URL, BASE = "https://github.com/someone/some.book", "https://someone.example/some-book"


def page(html, name):
    return parsed((html / f"{name}.html").read_text(encoding="utf-8"))


def meta(soup):
    return {node.get("property") or node["name"]: node["content"] for node in soup.select("meta[property], meta[name]")}


def notebook(path):
    return json.loads(path.read_text(encoding="utf-8"))


def question(path):
    opening = nbformat.read(path, as_version=4).cells[0].source
    return re.search(r"^\*\*(.+\?)\*\*$", opening, re.M).group(1).replace("`", "").replace("'", "’")


@pytest.fixture(scope="module")
def small_books(tmp_path_factory):
    """Three pages, built without addresses, then with both, then without again: what each build left behind."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").mkdir()
    for name in ("01_inside_the_cell.ipynb", "21_beyond_one_machine.ipynb", "distributed_training.py"):
        shutil.copy(ROOT / "notebooks" / name, folder / "notebooks")
    toc = {"format": "jb-book", "root": SMALL[0], "parts": [{"caption": "Part", "chapters": []}]}
    toc["parts"][0]["chapters"] = [{"file": name} for name in SMALL[1:]]
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["execute"]["execute_notebooks"] = "off"
    found = {}
    for state, url, base in (("without", "", ""), ("with", URL, BASE), ("without again", "", "")):
        config["repository"]["url"], config["html"]["baseurl"] = url, base
        (folder / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [Path(sys.executable).with_name("jupyter-book"), "build", "."]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        found[state] = folder / "built" / state
        shutil.copytree(folder / "_build" / "html", found[state])
    return found


@pytest.mark.parametrize("state", ["without", "without again"])
def test_without_addresses_nothing_needs_one(small_books, state):
    html = small_books[state]
    assert not (html / "sitemap.xml").exists()
    for path in html.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"mybinder|colab|canonical|og:url|og:image|github\.com/[^\"]*/blob", text), path
    for name in SMALL[1:]:
        assert (html / "_sources" / f"{name}.ipynb").read_bytes() == (ROOT / f"{name}.ipynb").read_bytes()
        assert f"]({name}.html): " in (html / "llms.txt").read_text(encoding="utf-8")


def test_with_a_repository_each_chapter_is_launched(small_books):
    launched = {name: page(small_books["with"], name).select(".dropdown-launch-buttons a") for name in SMALL}
    assert launched.pop("book/index") == []
    for name, links in launched.items():
        assert [link["href"] for link in links] == [
            f"https://mybinder.org/v2/gh/someone/some.book/launch?urlpath=lab/tree/{name}.ipynb",
            f"https://colab.research.google.com/github/someone/some.book/blob/launch/{name}.ipynb",
        ]


def test_with_a_repository_a_notebook_installs_what_it_imports(small_books):
    for name in SMALL[1:]:
        served = notebook(small_books["with"] / "_sources" / f"{name}.ipynb")
        nbformat.validate(nbformat.from_dict(served))
        install = served["cells"].pop(1)
        assert served == notebook(ROOT / f"{name}.ipynb")
        source = "".join(install["source"])
        assert f"git clone --quiet --depth 1 --branch launch {URL} measured-lstm" in source
        assert "%cd measured-lstm/notebooks" in source
        # Here the helpers are installed: the cell must not call the shell, which this scope does not have.
        exec(TransformerManager().transform_cell(source), {})


def test_with_a_public_address_the_site_names_it(small_books):
    html = small_books["with"]
    sitemap = ElementTree.parse(html / "sitemap.xml")
    assert [node.text for node in sitemap.findall(".//{*}loc")] == [f"{BASE}/{name}.html" for name in sorted(SMALL)]
    for name in SMALL:
        soup, address = page(html, name), f"{BASE}/{name}.html"
        assert [link["href"] for link in soup.select("link[rel=canonical]")] == [address]
        assert meta(soup)["og:url"] == address
        assert f"]({address}): " in (html / "llms.txt").read_text(encoding="utf-8")
        picture = meta(soup)["og:image"]
        assert picture.startswith(f"{BASE}/")
        landing = page(html, "book/index").select_one("article figure img")["src"]
        shown = html / "book" / landing
        assert (html / picture.removeprefix(f"{BASE}/")).read_bytes() == shown.read_bytes()


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_public_address_may_end_in_a_slash(slash):
    config = SimpleNamespace(html_theme_options={"repository_url": ""}, html_baseurl=BASE + slash)
    reach.check_addresses(None, config)
    assert urljoin(config.html_baseurl, "llms.txt") == f"{BASE}/llms.txt"


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("git@github.com:someone/book", ""),
        ("https://github.com/someone/book.git", ""),
        ("https://github.com/someone/book/", ""),
        ("https://github.com/someone", ""),
        ("https://gitlab.com/someone/book", ""),
        ("", "someone.example/book"),
        ("", "https://someone.example/book?page=1"),
    ],
)
def test_an_address_that_would_give_dead_links_is_refused(url, base):
    config = SimpleNamespace(html_theme_options={"repository_url": url}, html_baseurl=base)
    with pytest.raises(ConfigError, match=re.escape(repr(url or base))):
        reach.check_addresses(None, config)


# --- the whole book, after `make book` -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_offers_its_notebook(path):
    [button] = page(HTML, f"notebooks/{path.stem}").select("a.btn-download-source-button")
    served = notebook(HTML / "notebooks" / button["href"])
    served["cells"] = [cell for cell in served["cells"] if cell["id"] != "install"]
    assert served == notebook(path)


def test_chapter_21_offers_its_script():
    [link] = page(HTML, SMALL[2]).select("article a.download")
    script = ROOT / "notebooks" / "distributed_training.py"
    assert (HTML / "notebooks" / link["href"]).read_bytes() == script.read_bytes()


def test_every_page_describes_itself():
    for name in toc_pages():
        soup = page(HTML, name)
        told = meta(soup)
        assert told["og:title"] in soup.select_one("article h1").get_text()
        assert told["og:description"] == told["description"]
        assert len(told["description"]) > 10
    for path in NOTEBOOKS:
        assert meta(page(HTML, f"notebooks/{path.stem}"))["description"] == question(path)


def test_the_index_for_language_models_lists_every_page():
    text = (HTML / "llms.txt").read_text(encoding="utf-8")
    lines = re.findall(r"^- \[.+\]\((.+)\.html\): (.+)$", text, re.M)
    base = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["html"]["baseurl"]
    assert [address.removeprefix(base).strip("/") for address, _ in lines] == toc_pages()
    told = dict(lines)
    for path in NOTEBOOKS:
        assert question(path) in told.values()
