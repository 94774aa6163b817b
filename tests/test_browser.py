"""The rendered book in a real browser, served on loopback. Needs `make book` and Chromium or Chrome."""

import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from checks import HTML, toc_pages
from playwright.sync_api import expect, sync_playwright

from lstm_utils.claims import claims

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VIEWS = {"light, wide": ("light", 1280), "dark, phone": ("dark", 390)}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail("no Chromium or Chrome found: install one (Debian: apt-get install chromium), or set CHROMIUM")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """Open a page; what it fetched elsewhere, and every error in its console, ends the test in red."""
    contexts, complaints = [], []

    def visit(name, scheme="light", width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or complaints.append(r.url))
        page.on("response", lambda r: r.status < 400 or complaints.append(f"{r.status} {r.url}"))
        page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{address}/{name}.html")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("name", toc_pages())
def test_page(visit, name, view):
    page = visit(name, *view)
    expect(page.locator("article h1")).to_have_count(1)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) <= 0
    for image in page.locator("article img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 200


def test_the_theme_switches(visit):
    page = visit("book/index")
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    button = page.locator("button.theme-switch-button:visible").first
    for _ in range(3):  # light, dark and automatic take turns
        button.click()
        if page.evaluate(background) != before:
            break
    assert page.evaluate(background) != before
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_figures_are_inverted_in_the_dark(visit):
    for name, selector in (("book/index", "figure img"), ("notebooks/02_input_and_hidden_size", ".cell_output img")):
        of_figure = f"getComputedStyle(document.querySelector('article {selector}')).filter"
        assert visit(name, "light").evaluate(of_figure) == "none"
        assert "invert(1)" in visit(name, "dark").evaluate(of_figure)


def test_search_finds_a_chapter(visit):
    page = visit("search")
    page.goto(page.url + "?q=projection")
    hit = page.locator("#search-results a[href*='04_dropout_and_projection']").first
    expect(hit).to_be_visible(timeout=10_000)


def test_the_audit_filter(visit):
    page = visit("book/audit")
    rows = page.locator("table.audit tbody tr:visible")
    expect(rows).to_have_count(len(claims()))
    page.get_by_role("radio", name="false").check()
    expect(rows).to_have_count(sum(claim.verdict == "false" for claim in claims().values()))
    page.get_by_role("link", name="See the cell for G07").click()
    assert page.url.endswith("notebooks/03_layers_bias_batch_first.html#g07")
    expect(page.locator("#g07")).to_be_in_viewport()


def test_reading_on(visit):
    page = visit("book/index")
    for expected in toc_pages()[1:]:
        page.locator("a.right-next").click()
        assert page.url.endswith(f"{expected}.html")


def test_the_text_needs_no_script(visit):
    page = visit("notebooks/03_layers_bias_batch_first", java_script_enabled=False)
    expect(page.get_by_text("20 sequences", exact=False).first).to_be_visible()
    expect(page.locator("article img").first).to_be_visible()


def test_a_solution_is_hidden_until_asked_for(visit):
    page = visit("notebooks/01_inside_the_cell")
    solution = page.locator(".tag_solution").first
    expect(solution.locator("pre").first).to_be_hidden()
    solution.locator("summary").click()
    expect(solution.locator("pre").first).to_be_visible()
