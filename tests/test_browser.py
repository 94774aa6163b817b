"""The rendered book in a real browser, served on loopback. Needs `make book` and Chromium or Chrome."""

import random
import re
import textwrap
from functools import partial

import pytest
from checks import OVERFLOW, toc_pages
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
  const ids = rows => rows.map(row => row.id.toUpperCase());
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


@pytest.mark.parametrize("paper", ["A4", "Letter"])
def test_the_cheat_sheet_is_one_page_to_print(visit, paper):
    printed = visit("book/cheat_sheet").pdf(format=paper)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1
