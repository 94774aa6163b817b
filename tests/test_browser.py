"""The rendered book in a real browser, served on loopback. Needs `make book` and Chromium or Chrome."""

import random
import re
import textwrap
from functools import partial

import pytest
from axe_playwright_python.sync_playwright import Axe
from checks import HTML, OVERFLOW, toc_pages
from playwright.sync_api import expect

from lstm_utils.claims import claims
from lstm_utils.pitfalls import find_pitfalls, pitfalls

VIEWS = {"light, wide": ("light", 1280), "dark, phone": ("dark", 390)}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("name", toc_pages())
def test_page(visit, name, view):
    page = visit(name, *view)
    expect(page.locator("article h1")).to_have_count(1)
    assert page.evaluate(OVERFLOW) <= 0
    for image in page.locator("article img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 200


# Axe looks at each element by itself, and a chapter has thousands of tokens: one of each kind is enough.
ONE_TOKEN_OF_A_KIND = """() => {
  const seen = new Set();
  for (const token of document.querySelectorAll("pre span, code span")) {
    const kind = [token, token.parentElement, token.closest("[class*=cell_]")].map(node => node?.className).join();
    if (seen.has(kind)) token.replaceWith(...token.childNodes);
    seen.add(kind);
  }
}"""


def barriers(page, **options):
    """What axe calls serious or critical."""
    # It would look for style sheets in the wrong place, had it leave to load them.
    found = Axe().run(page, options={"preload": False, **options}).response
    assert sum(len(rule["nodes"]) for rule in found["passes"]) > 0
    grave = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
    return [f"{rule['id']}: {node['html']}" for rule in grave for node in rule["nodes"]]


@pytest.mark.long("axe looks at the whole page, once in each theme")
@pytest.mark.parametrize("name", [*toc_pages(), "search"])
def test_a_page_has_no_barriers(visit, name):
    page = visit(name)
    page.evaluate(ONE_TOKEN_OF_A_KIND)
    assert barriers(page) == []
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 900})
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    # Colours fade, and the theme takes 300 ms to make what now scrolls reachable by keyboard.
    page.wait_for_timeout(500)
    assert barriers(page) == []


BARRIERS = {
    "image-alt": "document.querySelector('article img').removeAttribute('alt')",
    "color-contrast": "document.querySelector('article p').style.color = '#999'",
    "link-name": "document.querySelector('article p a').textContent = ''",
    "button-name": "document.querySelector('article').append(document.createElement('button'))",
}


@pytest.mark.parametrize("rule", BARRIERS)
def test_a_barrier_is_noticed(visit, rule):
    page = visit("book/index")
    page.evaluate(BARRIERS[rule])
    assert [found.partition(":")[0] for found in barriers(page)] == [rule]


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


def other_numbers(message):
    """The message as it would read for other shapes: longer and shorter lists, and decimals."""
    message = re.sub(r"\(\d+, \d+, \d+\)", "(2,64)", message)
    return re.sub(r"(?<!\w\[)\d+(\.\d+)?", lambda number: f"{7 * float(number.group()) + 101}", message)


def traceback(message):
    raised = 'Traceback (most recent call last):\n  File "train.py", line 41, in <module>\n    step(batch[0])\n'
    return f"{raised}RuntimeError: {message}\n\nDuring handling: see https://example.org/a?b=1#c"


def without_words(seed, message):
    """About four of five words, so that some messages are still found and some are not."""
    return " ".join(word for word in message.split() if random.Random(f"{seed} {message} {word}").random() < 0.8)


PASTED = {
    "verbatim": str,
    "other numbers": other_numbers,
    "traceback": traceback,
    "traceback of other numbers": lambda message: traceback(other_numbers(message)),
    "broken into lines, in capitals": lambda message: textwrap.fill(message, 30).upper(),
    "without the last word": lambda message: message.rpartition(" ")[0],
    "in another order": lambda message: " ".join(reversed(message.split())),
    **{f"without some words, seed {seed}": partial(without_words, seed) for seed in range(3)},
}
# Types each text into the box, and tells what the reader then sees: rows from top to bottom, and those marked as best.
SEARCH_EACH = """texts => texts.map(text => {
  const box = document.querySelector("#pitfall-query");
  box.value = text;
  box.dispatchEvent(new Event("input", {bubbles: true}));
  const rows = [...document.querySelectorAll("table.pitfalls tbody tr")].filter(row => row.checkVisibility());
  const ids = rows => rows.map(row => row.cells[0].textContent.trim());
  return {
    ids: ids(rows),
    best: ids(rows.filter(row => row.querySelector(".pitfall-best"))),
    said: ids(rows.filter(row => row.querySelector(".pitfall-hit"))),
  };
})"""


@pytest.mark.parametrize("how", PASTED)
def test_the_error_index_finds_what_python_finds(visit, how):
    sources = [(known.id, message) for known in pitfalls().values() for message in known.messages]
    texts = [PASTED[how](message) for _, message in sources]
    found = visit("book/errors").evaluate(SEARCH_EACH, texts)
    for (source, _), text, seen in zip(sources, texts, found, strict=True):
        expected = [known.id for known in find_pitfalls(text)]
        assert seen["said"] == expected, text
        if expected:  # a text that holds no message is a search for words, which Python does not know
            assert seen["ids"] == expected, text
            assert seen["best"] == expected[: len(seen["best"])] != []
        if "without" not in how:
            assert source in seen["ids"], text
        if "order" not in how and "without" not in how:
            assert source in seen["best"], text


def test_the_error_index_finds_ids_and_words(visit):
    page = visit("book/errors")
    ids = list(pitfalls())
    assert [seen["ids"] for seen in page.evaluate(SEARCH_EACH, ids)] == [[name] for name in ids]
    words = {
        "forget bias": ["P17"],
        "NumPy's default": ["P29"],
        "DROPOUT  layer": ["P18"],
        "quantization, bare": ["P24"],
        "RuntimeError: expected target size [64, 10": ["P14"],
        "silent": [known.id for known in pitfalls().values() if known.silent],
    }
    for text, expected in words.items():
        [seen] = page.evaluate(SEARCH_EACH, [text])
        assert seen["ids"][: len(expected)] == expected, text
        assert seen["said"] == []


def test_the_error_index_is_restored(visit):
    page = visit("book/errors")
    rows = page.locator("table.pitfalls tbody tr:visible")
    box, status, clear = page.get_by_label("Paste an error"), page.get_by_role("status"), page.get_by_text("Clear")
    expect(clear).to_be_hidden()
    for restore in (lambda: page.keyboard.press("Escape"), clear.click):
        box.fill("batch_first is not what quux expects")
        expect(rows).to_have_count(0)
        expect(status).to_contain_text("Nothing matches")
        box.fill("int8")
        expect(status).to_have_text(f"2 of {len(pitfalls())} pitfalls")
        assert rows.first.get_attribute("id") == "p24"
        expect(page.locator(".pitfall-best")).to_have_text(["Best match"])
        page.wait_for_url("**/errors.html?find=int8")
        restore()
        expect(box).to_be_focused()
        expect(box).to_have_value("")
        expect(status).to_have_text(f"{len(pitfalls())} pitfalls")
        expect(page.locator(".pitfall-best, .pitfall-hit")).to_have_count(0)
        assert rows.evaluate_all("rows => rows.map(row => row.id.toUpperCase())") == list(pitfalls())
        page.wait_for_url("**/errors.html")


def test_the_error_index_opens_with_a_question(visit):
    message = "RuntimeError: Expected hidden[0] size (2, 64, 128),\ngot [64, 2, 128] & 100 % of it #1"
    page = visit("book/errors")
    page.get_by_label("Paste an error").fill(message)
    page.wait_for_url("**/errors.html?find=*")
    again = visit("book/index", "dark", 390)
    again.goto(page.url)
    expect(again.get_by_label("Paste an error")).to_have_value(message)
    expected = [known.id.lower() for known in find_pitfalls(message)]
    rows = again.locator("table.pitfalls tbody tr:visible")
    assert rows.evaluate_all("rows => rows.map(row => row.id)") == expected
    count = len(expected)
    expect(again.locator(".pitfall-best")).to_have_text([f"Best match, {n} of {count}" for n in range(1, count + 1)])
    assert again.evaluate(OVERFLOW) <= 0
    # A card: what a wide screen shows side by side stands in one column.
    lefts = rows.first.locator("td").evaluate_all("cells => cells.map(cell => cell.getBoundingClientRect().left)")
    assert len(set(lefts)) == 1
    again.get_by_role("link", name="P01").click()
    expect(again.locator("#p01")).to_be_in_viewport()


def test_the_error_index_is_a_table_without_script(visit):
    page = visit("book/errors", java_script_enabled=False)
    expect(page.locator("table.pitfalls tbody tr:visible")).to_have_count(len(pitfalls()))
    expect(page.get_by_label("Paste an error")).to_be_hidden()


@pytest.fixture
def dialog(visit):
    """Open the error index, by its key, on a page that is not its own."""

    def dialog(name="notebooks/07_padding_and_packing", scheme="light", width=1280):
        page = visit(name, scheme, width)
        page.keyboard.press("e")
        expect(page.get_by_role("dialog", name="Find your error")).to_be_visible()
        return page

    return dialog


@pytest.mark.parametrize("name", [*toc_pages(), "search"])
def test_the_error_index_is_one_key_away(visit, name):
    page = visit(name)
    button = page.get_by_role("link", name="Find your error e", exact=True)
    expect(button).to_be_visible()
    assert button.evaluate("link => new URL(link.href).pathname") == "/book/errors.html"
    for find in (lambda: page.keyboard.press("e"), button.click):
        find()
        expect(page.get_by_label("Paste an error")).to_be_focused()
        expect(page.get_by_label("Paste an error")).to_have_value("")
        expect(page.get_by_role("dialog")).to_have_count(int(name != "book/errors"))
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.evaluate("document.activeElement.blur()")


@pytest.mark.parametrize("how", ["verbatim", "traceback of other numbers", "without the last word"])
def test_the_dialog_finds_what_python_finds(dialog, how):
    texts = [PASTED[how](message) for known in pitfalls().values() for message in known.messages]
    found = dialog().evaluate(SEARCH_EACH, texts)
    for text, seen in zip(texts, found, strict=True):
        expected = [known.id for known in find_pitfalls(text)]
        assert seen["said"] == expected, text
        assert seen["ids"] == expected or not expected, text


def test_the_dialog_leads_to_the_cell_even_on_the_same_page(dialog):
    page = dialog("notebooks/08_error_gallery")
    page.get_by_label("Paste an error").fill("int8")
    page.get_by_role("dialog").get_by_role("link", name="P24").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("#p24")).to_be_in_viewport()


def test_the_dialog_goes_on_as_a_page(dialog):
    page = dialog()
    page.get_by_label("Paste an error").fill("int8")
    page.get_by_role("link", name="As a page").click()
    page.wait_for_url("**/book/errors.html?find=int8")
    expect(page.get_by_label("Paste an error")).to_have_value("int8")


def test_the_dialog_keeps_the_focus_and_gives_it_back(visit):
    page = visit("notebooks/07_padding_and_packing")
    before = page.locator("article p a").first
    before.focus()
    page.keyboard.press("e")
    page.get_by_label("Paste an error").fill("int8")
    within = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        # Between the last and the first, the browser's own buttons have it; the page then says "body".
        at = "element => element.closest('dialog[open]') ? element.textContent || element.tagName : element.tagName"
        within.add(page.locator("*:focus, body:not(:has(*:focus))").evaluate(at))
    assert within - {"BODY"} == {"Close", "TEXTAREA", "Clear", "P24", "P31", "INPUT", "As a page"}
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(before).to_be_focused()
    page.keyboard.press("e")
    expect(page.get_by_label("Paste an error")).to_have_value("int8")
    page.keyboard.insert_text("x")  # what was there is selected
    expect(page.get_by_label("Paste an error")).to_have_value("x")
    page.get_by_role("button", name="Close").click()
    expect(before).to_be_focused()


def test_the_key_is_left_to_those_who_type(visit):
    page = visit("notebooks/07_padding_and_packing")
    page.keyboard.press("Control+k")
    expect(page.locator("input[type=search]:visible")).to_be_focused()
    page.keyboard.press("e")
    expect(page.locator("input[type=search]:visible")).to_have_value("e")
    expect(page.locator(".find-error-dialog")).to_have_count(0)
    page.keyboard.press("Escape")
    for combination in ("Alt+e", "Control+Shift+e", "E"):
        page.keyboard.press(combination)
    expect(page.locator(".find-error-dialog")).to_have_count(0)


def test_the_key_can_be_switched_off(dialog):
    page = dialog()
    page.get_by_role("checkbox", name="The key e opens this").uncheck()
    page.keyboard.press("Escape")
    page.reload()
    page.keyboard.press("e")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".find-error kbd")).to_be_hidden()
    page.locator(".find-error").click()
    page.get_by_role("checkbox", name="The key e opens this").check()
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    expect(page.get_by_role("dialog")).to_be_visible()


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_the_dialog_has_no_barriers_and_fits(dialog, view):
    page = dialog("book/index", *view)
    page.get_by_label("Paste an error").fill(traceback(pitfalls()["P01"].messages[0]))
    assert barriers(page) == []
    assert page.evaluate(OVERFLOW) <= 0
    assert page.locator(".find-error-dialog").evaluate("box => box.scrollWidth - box.clientWidth") <= 0
    left, right = page.locator(".find-error-dialog").evaluate(
        "box => [box.offsetLeft, box.offsetLeft + box.offsetWidth]"
    )
    assert 0 <= left < right <= view[1]


def test_the_dialog_works_from_the_disk(browser):
    context = browser.new_context()
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.goto((HTML / "notebooks" / "07_padding_and_packing.html").as_uri())
    page.keyboard.press("e")
    page.get_by_label("Paste an error").fill(traceback(pitfalls()["P13"].messages[0]))
    page.get_by_role("dialog").get_by_role("link", name="P13").click()
    page.wait_for_url("file:///**/notebooks/08_error_gallery.html#p13")
    context.close()
    assert complaints == []


def test_without_script_the_button_is_a_link(visit):
    page = visit("notebooks/07_padding_and_packing", java_script_enabled=False)
    page.locator(".find-error").click()
    page.wait_for_url("**/book/errors.html")


def test_reading_on(visit):
    page = visit("book/index")
    for expected in toc_pages()[1:6]:
        page.locator("a.right-next").click()
        assert page.url.endswith(f"{expected}.html")


# What of an article takes no room on the page: texts and formulas that a reader without scripts would miss.
UNSEEN = """article => [...article.querySelectorAll("h1, h2, h3, p, li, td, pre, math, img")]
  .filter(node => node.textContent.trim() || node.localName === "img")
  .filter(node => !node.closest(".tag_hide-cell details:not([open]), .pitfall-search"))
  .filter(node => !node.checkVisibility() || !node.getBoundingClientRect().height)
  .map(node => node.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("name", toc_pages())
def test_the_text_needs_no_script(visit, name):
    page = visit(name, java_script_enabled=False)
    expect(page.locator("article h1")).to_be_visible()
    assert page.locator("article").evaluate(UNSEEN) == []
    solutions = page.locator(".tag_solution")
    assert bool(solutions.count()) == name.startswith("notebooks/")
    for solution in solutions.all():
        solution.locator("summary").click()
        expect(solution.locator("pre").first).to_be_visible()


def test_a_solution_is_hidden_until_asked_for(visit):
    page = visit("notebooks/01_inside_the_cell")
    solution = page.locator(".tag_solution").first
    expect(solution.locator("pre").first).to_be_hidden()
    solution.locator("summary").click()
    expect(solution.locator("pre").first).to_be_visible()


@pytest.mark.parametrize("paper", ["A4", "Letter"])
def test_the_cheat_sheet_is_one_page_to_print(visit, paper):
    printed = visit("book/cheat_sheet").pdf(format=paper)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1
