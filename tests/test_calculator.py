"""The calculators in a browser, against LSTMSpec, torch and chapter 11. Needs `make book` and Chromium or Chrome."""

import math
import random
from itertools import pairwise

import nbformat
import pytest
import torch
from checks import HTML, OVERFLOW, ROOT
from playwright.sync_api import expect
from strategies import build, no_dropout_warning
from torch import nn

from lstm_utils import LSTMSpec
from lstm_utils.ctc import diagnose_ctc
from lstm_utils.spec import SHOWN_LAYERS, _binary

PAGE = "book/calculator"
FORMS = ("lstm", "ctc", "plan")
DTYPES = ("float32", "float16", "bfloat16", "float64")
FLAGS = ("bias", "batch_first", "bidirectional")
STALE = ". What stands below is the last one that was valid."
# Fills in a form for each case, and tells what the reader then sees.
FILL_EACH = """([name, cases]) => {
  const box = document.getElementById(`calculator-${name}`);
  const texts = (row) => [...row.cells].map((cell) => cell.textContent);
  return cases.map((values) => {
    const form = box.querySelector("form");
    for (const [name, value] of Object.entries(values)) {
      const control = form.elements[name];
      if (control.type === "checkbox") control.checked = value === "True";
      else control.value = value;
    }
    form.elements[Object.keys(values)[0]].dispatchEvent(new Event("input", { bubbles: true }));
    return {
      status: form.querySelector("[role=status]").textContent,
      blamed: [...form.querySelectorAll("[aria-invalid]")].map(({ name }) => name),
      code: box.querySelector("pre")?.textContent.trim(),
      tables: [...box.querySelectorAll("tbody")].map((body) => [...body.rows].map(texts)),
    };
  });
}"""


def fill_each(page, form, cases):
    seen = page.evaluate(FILL_EACH, [form, [{name: str(value) for name, value in case.items()} for case in cases]])
    assert len(seen) == len(cases) > 0
    return seen


# --- nn.LSTM ---------------------------------------------------------------------------------------------------------


def some_lstm(rng, sizes):
    """A valid configuration, as the form has it."""
    hidden_size = rng.choice(sizes)
    return {
        "input_size": rng.choice(sizes),
        "hidden_size": hidden_size,
        "num_layers": rng.choice([1, 1, 2, 3, 4, 8, 9, 20]),
        "bias": rng.random() < 0.7,
        "batch_first": rng.random() < 0.5,
        "dropout": rng.choice([0.0, 0, 1, 1.0, 0.5, 0.3, 1e-4, 3e-5, 1.25e-10, rng.random()]),
        "bidirectional": rng.random() < 0.5,
        "proj_size": rng.choice([0, 0, rng.randrange(hidden_size)]),
        "seq_len": rng.choice(sizes),
        "batch_size": rng.choice([0, *sizes]),
        "unbatched": rng.random() < 0.3,
        "dtype": rng.choice(DTYPES),
    }


def lstm_cases(count, sizes, seed):
    rng = random.Random(seed)
    return [some_lstm(rng, sizes) for _ in range(count)]


SMALL = range(1, 40)
ANY = [1, 2, 3, 31, 64, 100, 127, 128, 512, 1000, 1023, 1024, 4096, 65_537, 10**6]
BEYOND = [2**31, 2**53 + 1, 2**63 - 1, 10**30]


def split(case):
    """The specification, and the call."""
    spec = LSTMSpec(**{name: case[name] for name in LSTMSpec.__dataclass_fields__})
    return spec, case["seq_len"], None if case["unbatched"] else case["batch_size"]


def counted(number, noun):
    return f"{number:,} {noun}{'s' * (number != 1)}"


def by_spec(case):
    """What the page must say of a configuration, if it agrees with LSTMSpec."""
    spec, seq_len, batch_size = split(case)
    dtype = getattr(torch, case["dtype"])
    flops = spec.flops(seq_len, 1 if batch_size is None else batch_size)
    rows = [
        [name, str(shape), f"{math.prod(shape):,}"]
        for name, shape in LSTMSpec(**spec.as_dict() | {"num_layers": min(spec.num_layers, SHOWN_LAYERS)})
        .parameter_shapes()
        .items()
    ]
    if (more := spec.num_layers - SHOWN_LAYERS) > 0:
        rows.append([f"… and {more:,} more layers, each with the shapes of layer {SHOWN_LAYERS - 1}", "", ""])
    return {
        "code": spec.describe(seq_len, batch_size).partition("\n")[0],
        "blamed": [],
        "tables": [
            [
                ["parameters", f"{spec.num_parameters():,}"],
                ["memory", f"{spec.nbytes(dtype):,} bytes, {_binary(spec.nbytes(dtype))}"],
                ["training", f"{_binary(4 * spec.nbytes(dtype))} with gradients and both moments of Adam"],
                ["forward", f"{flops:,} FLOPs in matrix products"],
            ],
            [[name, str(shape)] for name, shape in spec.shapes(seq_len, batch_size)._asdict().items()],
            rows,
        ],
    }


def differences(page, cases):
    """The configurations of which the page says something else than LSTMSpec does."""
    seen = fill_each(page, "lstm", cases)
    expected = [by_spec(case) for case in cases]
    return [
        (case, {key: (found[key], wanted[key]) for key in wanted if found[key] != wanted[key]})
        for case, found, wanted in zip(cases, seen, expected, strict=True)
        if any(found[key] != wanted[key] for key in wanted)
    ]


def test_shapes_counts_and_code_are_those_of_lstm_spec(visit):
    assert differences(visit(PAGE), [*lstm_cases(600, ANY, seed=0), *lstm_cases(200, SMALL, seed=1)]) == []


def test_numbers_beyond_64_bits_are_exact(visit):
    cases = [case | {"num_layers": n} for n, case in zip([1, 2, 10**30] * 20, lstm_cases(60, BEYOND, 2), strict=True)]
    for case, seen in zip(cases, fill_each(visit(PAGE), "lstm", cases), strict=True):
        expected = by_spec(case)
        assert seen["code"] == expected["code"]
        assert seen["tables"][1:] == expected["tables"][1:]
        for place in (0, 3):  # memory has no unit for as much; its bytes come first
            assert seen["tables"][0][place] == expected["tables"][0][place]
        assert seen["tables"][0][1][1].partition(" ")[0] == f"{split(case)[0].nbytes(getattr(torch, case['dtype'])):,}"


def test_every_tensor_is_the_one_that_torch_makes(visit):
    cases = [case | {"seq_len": 1 + case["seq_len"] % 3} for case in lstm_cases(400, SMALL, seed=3)]
    cases = [case for case in cases if case["num_layers"] <= SHOWN_LAYERS]
    assert len(cases) > 250
    for place, (case, seen) in enumerate(zip(cases, fill_each(visit(PAGE), "lstm", cases), strict=True)):
        spec, seq_len, batch_size = split(case)
        module = build(spec, device="meta")
        named = [[name, str(tuple(p.shape)), f"{p.numel():,}"] for name, p in module.named_parameters()]
        assert seen["tables"][2] == named
        assert seen["tables"][0][0][1] == f"{sum(p.numel() for p in module.parameters()):,}"
        with no_dropout_warning():
            assert eval(seen["code"], {"nn": nn}).extra_repr() == module.extra_repr()
        if place % 4 == 0:  # a call takes long on this device
            x = torch.zeros(spec.shapes(seq_len, batch_size).input, device="meta")
            output, (h_n, c_n) = module(x)
            assert [shape for _, shape in seen["tables"][1]] == [str(tuple(t.shape)) for t in (x, output, h_n, c_n)]


# A mistake in the script, and what it changes.
MUTATIONS = {
    "no bias": ("...(bias && { bias_ih: [gates], bias_hh: [gates] }),", ""),
    "bias in the FLOPs": ('name.startsWith("weight") ?', "true ?"),
    "one direction above": ("layer ? directions * width", "layer ? width"),
    "unprojected above": ("spec.width = spec.proj_size || spec.hidden_size", "spec.width = spec.hidden_size"),
    "one layer too many": ("(spec.num_layers - 1n) * above", "spec.num_layers * above"),
    "batch always second": ("batch_first ? [batch, steps]", "false ? [batch, steps]"),
    "float16 of four bytes": ("float16: 2n, bfloat16", "float16: 4n, bfloat16"),
    "numbers as floats": ("product * size, 1n)", "BigInt(Math.fround(Number(product * size))), 1n)"),
    "code with defaults": ("spec[name] !== DEFAULTS[name]", "true"),
}


@pytest.mark.parametrize(("right", "wrong"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_mistake_in_the_script_is_noticed(visit, right, wrong):
    script = (ROOT / "book" / "_static" / "calculators.js").read_text(encoding="utf-8")
    assert script.count(right) == 1
    page = visit(PAGE)
    page.route("**/calculators.js*", lambda route: route.fulfill(body=script.replace(right, wrong)))
    page.reload()
    assert differences(page, lstm_cases(100, ANY, seed=4))


# Texts, and what Python makes of them.
LITERALS = ("-1", "0", "1", "2", "+3", "1_000", "2.5", "100.0", "-0.0", "0.5", "1.5", "1e22", "-.5", "1.", "2E1")
TYPED = {text: eval(text) for text in (*LITERALS, "True", "False", "None", str(10**30))}
TYPED |= {text: float(text) for text in ("nan", "inf", "-inf")}
TYPED |= {
    text: text for text in ("", "abc", "it's", 'a "b"', "'\"", "a\\b", "1,000", "1 000", "0x1F", "1e", "true", "½")
}


def refusal(case):
    """LSTMSpec's own words on the texts of a form, or None."""
    values = {name: TYPED.get(value, value) for name, value in case.items()}
    try:
        spec = LSTMSpec(**{name: values[name] for name in LSTMSpec.__dataclass_fields__})
        spec.shapes(values["seq_len"], None if case["unbatched"] else values["batch_size"])
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def as_typed(message, case):
    """Python prints what it made of a number; the page repeats what was typed."""
    name = message.partition(" ")[0]
    value = TYPED.get(case[name])
    if not isinstance(value, str):
        message = message.replace(f"got {value!r}", f"got {case[name]}")
    return message


def test_what_lstm_spec_refuses_is_refused_in_its_words(visit):
    rng, cases = random.Random(5), []
    numeric = ("input_size", "hidden_size", "num_layers", "dropout", "proj_size", "seq_len", "batch_size")
    for _ in range(600):
        case = some_lstm(rng, SMALL)
        cases.append(case | {name: rng.choice(list(TYPED)) for name in rng.sample(numeric, rng.choice([1, 1, 2, 3]))})
    cases += [some_lstm(rng, SMALL) | {name: text} for name in numeric for text in TYPED]
    cases = [case for case in cases if case["batch_size"] != "None"]  # in Python, that is an unbatched call
    cases = [case for case in cases if case["hidden_size"] != "True"]  # which one message calls True, and the page 1
    refused = 0
    for case, seen in zip(cases, fill_each(visit(PAGE), "lstm", cases), strict=True):
        if (message := refusal(case)) is None:
            assert STALE not in seen["status"], case
            assert seen["blamed"] == []
        else:
            refused += 1
            assert seen["status"] == as_typed(message, case) + STALE, case
            assert seen["blamed"] == [message.partition(" ")[0]]
    assert 300 < refused < len(cases) - 100


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize(("text", "value"), [("1", 1), ("true", "true"), ("None", None), ("0.0", 0.0), ("", "")])
def test_an_address_with_a_bad_flag_is_refused_in_its_words(visit, name, text, value):
    with pytest.raises(TypeError) as caught:
        LSTMSpec(**{"input_size": 100, "hidden_size": 64, name: value})
    page = visit(PAGE)
    page.goto(f"{page.url}?{name}={text}")
    expect(page.get_by_role("alert")).to_have_text(
        f"The address of this page was not used, since {caught.value}. These are the defaults."
    )


# --- the form --------------------------------------------------------------------------------------------------------


def table(page, form, number=0):
    return dict(
        page.locator(f"#calculator-{form} table")
        .nth(number)
        .locator("tbody tr")
        .evaluate_all("rows => rows.map(row => [...row.cells].slice(0, 2).map(cell => cell.textContent))")
    )


def test_the_example_is_what_the_script_computes(visit):
    still, live = visit(PAGE, java_script_enabled=False), visit(PAGE)
    for form in FORMS:
        expect(still.locator(f"#calculator-{form} form")).to_be_hidden()
        expect(live.locator(f"#calculator-{form} form")).to_be_visible()
        for kind in ("table", ".highlight pre"):
            found, shown = (page.locator(f"#calculator-{form} {kind}").all_text_contents() for page in (still, live))
            assert ["".join(text.split()) for text in found] == ["".join(text.split()) for text in shown]
            assert found or (kind, form) != ("table", form)


def test_typing_is_followed_and_remembered_in_the_address(visit):
    page = visit(PAGE)
    box = page.get_by_label("hidden_size", exact=True)
    box.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("128")
    spec = LSTMSpec(100, 128, 2)
    assert table(page, "lstm")["parameters"] == f"{spec.num_parameters():,}"
    expect(page.locator("#calculator-lstm [role=status]")).to_contain_text(f"{spec.num_parameters():,} parameters")
    page.get_by_label("bidirectional").check()
    page.get_by_label("dtype").first.select_option("float64")
    page.wait_for_url("**/calculator.html?hidden_size=128&dtype=float64&bidirectional=True")
    box.fill("none")
    expect(page.locator("#calculator-lstm [role=status]")).to_have_text(
        f"hidden_size must be an int, got 'none' of type str{STALE}"
    )
    expect(box).to_have_attribute("aria-invalid", "true")
    page.wait_for_timeout(400)
    assert page.url.endswith("?hidden_size=128&dtype=float64&bidirectional=True")  # the last one that was valid
    page.locator("#calculator-lstm").get_by_role("button", name="Reset").click()
    page.wait_for_url("**/calculator.html")
    expect(box).to_have_value("64")
    expect(box).not_to_have_attribute("aria-invalid", "true")
    assert table(page, "lstm")["parameters"] == "75,776"


@pytest.mark.long("opens the page for every form")
def test_an_address_restores_every_form(visit):
    rng = random.Random(6)
    page = visit(PAGE)
    start = page.url
    for _ in range(4):
        lstm = some_lstm(rng, SMALL)
        wanted = {
            "lstm": lstm,
            "ctc": {"given": "characters", "labels": "é & ü=1?#%+", "frames": rng.randrange(99)},
            "plan": {"steps": rng.randrange(1, 9999), "precision": "bfloat16", "budget": rng.randrange(1, 99)},
        }
        page.goto(start)
        seen = {form: fill_each(page, form, [values])[0] for form, values in wanted.items()}
        page.wait_for_url("**/calculator.html?*")
        page.wait_for_timeout(400)
        again = visit(PAGE, "dark", 390)
        again.goto(page.url)
        expect(again.get_by_role("alert")).to_have_count(0)
        for form in FORMS:
            controls = "#calculator-{} form [name]"
            values = "nodes => nodes.map(node => [node.name, node.value, node.checked, node.disabled])"
            assert again.locator(controls.format(form)).evaluate_all(values) == page.locator(
                controls.format(form)
            ).evaluate_all(values)
            tables = again.locator(f"#calculator-{form} tbody tr").evaluate_all(
                "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
            )
            assert tables == [row for rows in seen[form]["tables"] for row in rows]
        assert again.evaluate(OVERFLOW) <= 0


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("hidden_size=0", "since hidden_size must be at least 1, got 0. These are the defaults."),
        ("hidden_size=8&proj_size=8", "proj_size must be smaller than hidden_size (8), got 8; 0 means no projection"),
        ("dtype=int8", "since dtype must be one of float32, float16, bfloat16, float64, got 'int8'"),
        ("seq_len=two%20words", "since seq_len must be an int of at least 1, got 'two words'"),
        ("unbatched=yes", "since unbatched must be True or False, got 'yes' of type str"),
        ("given=letters", "since given must be one of characters, numbers, counts, got 'letters'"),
        ("given=numbers&labels=1+0", "since labels must be integers of at least 1 (0 is the blank), got 0"),
        ("given=counts&count=3&repeats=3", "since repeats must be at most 2, one less than the labels, got 3"),
        ("budget=-1", "since budget must be a number from 0.001 to 10**12, got -1"),
        ("hiden_size=3&num_layers=2", "The address of this page names hiden_size, which is nothing here."),
        ("hidden_size=%3Cimg%20src=x%3E", "since hidden_size must be an int, got '<img src=x>' of type str"),
    ],
)
def test_a_bad_address_says_so_and_falls_back(visit, query, message):
    page = visit(PAGE)
    shown = {form: table(page, form) for form in FORMS}
    page.goto(f"{page.url}?{query}")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(message)
    assert {form: table(page, form) for form in FORMS} == shown
    box = page.locator(".calculator", has=alert).get_attribute("id")
    first = page.locator(f"#{box} input").first
    first.fill("7")
    expect(alert).to_have_count(0)
    page.wait_for_url(f"**/calculator.html?{first.get_attribute('name')}=7")


def test_the_code_is_copied_as_it_stands(visit):
    page = visit(PAGE, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("num_layers", exact=True).fill("3")
    page.get_by_label("dropout", exact=True).fill("0.25")
    button = page.locator("#calculator-lstm button.copybtn")
    expect(button).to_have_css("opacity", "1")
    button.click()
    code = "nn.LSTM(input_size=100, hidden_size=64, num_layers=3, dropout=0.25)"
    page.wait_for_function("async text => (await navigator.clipboard.readText()).trim() === text", arg=code)


def test_a_slider_works_from_the_keyboard_and_moves_its_box(visit):
    page = visit(PAGE)
    slider = page.get_by_role("slider", name="num_layers, slider")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("num_layers", exact=True)).to_have_value("3")
    assert len(table(page, "lstm", 2)) == 12
    page.get_by_label("hidden_size", exact=True).fill("12")
    projection = page.get_by_role("slider", name="proj_size, slider")
    projection.focus()
    page.keyboard.press("End")  # as far as nn.LSTM takes it
    expect(page.get_by_label("proj_size", exact=True)).to_have_value("11")
    expect(page.locator("#calculator-lstm [aria-invalid]")).to_have_count(0)
    page.get_by_label("unbatched").check()
    expect(page.get_by_label("N (batch_size)", exact=True)).to_be_disabled()
    page.get_by_label("unbatched").press("Enter")  # submits nothing
    assert page.url.split("?")[0].endswith("calculator.html")


CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const rgba = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const paper = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgba(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const over = (top, share, below) => top.slice(0, 3).map((c, i) => share * c + (1 - share) * below[i]);
  const selector = "label, legend, input:not([type=range]), select, button, td, th, pre, figcaption, text, p";
  return [...document.querySelectorAll(".calculator")].flatMap((box) => [...box.querySelectorAll(selector)])
    .filter((node) => node.checkVisibility() && !node.disabled && !node.matches(".copybtn"))
    .map((node) => {
      const style = getComputedStyle(node);
      let below = paper(node);
      const strip = node.matches(".calc-letter") && getComputedStyle(node.previousElementSibling);
      if (strip) below = over(rgba(strip.fill), Number(strip.fillOpacity), below);
      const [a, b] = [light(rgba(node.matches("text") ? style.fill : style.color)), light(below)];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 90)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_named_and_reached(visit, scheme):
    page = visit(PAGE, scheme)
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 100
    assert [found for found in ratios if found[0] < 4.5] == []
    nameless = "nodes => nodes.filter(node => !node.labels?.length && !node.ariaLabel).map(node => node.outerHTML)"
    controls = page.locator(".calculator form :is(input, select)")
    assert controls.evaluate_all(nameless) == []
    identifiers = page.locator("[id]").evaluate_all("nodes => nodes.map(node => node.id)")
    assert len(identifiers) == len(set(identifiers))
    assert page.locator(".calculator-drawing svg").get_attribute("aria-label").startswith("input (20, 32, 100), output")
    # Tab goes through all that is shown, in their order, and shows where it is.
    shown = "nodes => nodes.filter(node => node.checkVisibility() && !node.disabled).length"
    count = page.locator("#calculator-lstm form :is(input, select, button)").evaluate_all(shown)
    page.locator("#calculator-lstm form input").first.focus()
    for _ in range(count):
        inside, width = page.evaluate("""() => {
          const at = document.activeElement;
          return [at.closest("#calculator-lstm form") !== null, parseFloat(getComputedStyle(at).outlineWidth)];
        }""")
        assert inside
        assert width >= 2
        page.keyboard.press("Tab")
    assert not page.evaluate("document.activeElement.closest('#calculator-lstm form') !== null")


def test_it_works_from_the_disk(browser):
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((HTML / f"{PAGE}.html").as_uri() + "?hidden_size=32")
    expect(page.get_by_label("hidden_size", exact=True)).to_have_value("32")
    page.get_by_label("input_size", exact=True).fill("10")
    page.wait_for_url("file:///**/calculator.html?input_size=10&hidden_size=32")
    assert table(page, "lstm")["parameters"] == f"{LSTMSpec(10, 32, 2).num_parameters():,}"
    assert errors == []
    page.close()


# --- the drawing -----------------------------------------------------------------------------------------------------

MEASURE = """() => {
  const svg = document.querySelector("#calculator-lstm svg");
  const frame = svg.getBoundingClientRect();
  const outside = [...svg.children].filter((node) => {
    const { left, right, top, bottom } = node.getBoundingClientRect();
    return Math.max(frame.left - left, right - frame.right, frame.top - top, bottom - frame.bottom) > 1;
  });
  const sides = (node) => [+node.getAttribute("width"), +node.getAttribute("height")];
  return {
    outside: outside.map((node) => node.outerHTML),
    gates: [...svg.querySelectorAll(".calc-gate")].map(sides),
    texts: [...svg.querySelectorAll("text")].map((node) => node.textContent),
  };
}"""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_drawing_follows_and_stays_in_its_frame(visit, scheme, width):
    page = visit(PAGE, scheme, width)
    to_scale = 0
    for case in [*lstm_cases(60, ANY, seed=7), *lstm_cases(40, SMALL, seed=8), *lstm_cases(10, BEYOND, seed=9)]:
        fill_each(page, "lstm", [case])
        seen = page.evaluate(MEASURE)
        spec, seq_len, batch_size = split(case)
        assert seen["outside"] == [], case
        assert page.evaluate(OVERFLOW) <= 0, case
        cells = min(spec.num_layers, 2) * spec.num_directions
        assert len(seen["gates"]) == cells * 4 * (4 if spec.bias else 2)
        for shape in (*spec.shapes(seq_len, batch_size), (4 * spec.hidden_size, spec.input_size)):
            assert str(shape) in seen["texts"]
        wide, tall = seen["gates"][0]
        if min(wide, tall) > 3:
            to_scale += 1
            assert wide / tall == pytest.approx(spec.input_size / spec.hidden_size, rel=1e-6)
    assert to_scale > 20


# --- CTC -------------------------------------------------------------------------------------------------------------


def ctc_cases(count, seed):
    """Cases of the form, each with the labels as numbers."""
    rng = random.Random(seed)
    for _ in range(count):
        labels = rng.choices(range(1, rng.choice([2, 3, 6])), k=rng.randrange(9))
        frames, factor = rng.randrange(25), rng.choice([1, 1, 2, 3, 5])
        case = {"frames": frames, "subsampling": factor, "given": rng.choice(["characters", "numbers", "counts"])}
        case |= {
            "characters": {"labels": "".join(" aß語𝄞"[label - 1] for label in labels)},
            "numbers": {"labels": rng.choice([" ", ", ", ","]).join(map(str, labels))},
            "counts": {"count": len(labels), "repeats": sum(a == b for a, b in pairwise(labels))},
        }[case["given"]]
        yield case, labels


def test_ctc_fits_exactly_where_the_loss_of_torch_is_finite(visit):
    cases = list(ctc_cases(500, seed=0))
    verdicts = []
    for (case, labels), seen in zip(cases, fill_each(visit(PAGE), "ctc", [case for case, _ in cases]), strict=True):
        rows = dict(seen["tables"][0])
        frames = torch.randn(case["frames"], 1, 7, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
        kept = frames[:: case["subsampling"]]
        padded = torch.cat([kept, frames.new_zeros(1, 1, 7)])  # torch takes no tensor of no frames
        arguments = (
            padded,
            torch.tensor([labels], dtype=torch.long),
            torch.tensor([len(kept)]),
            torch.tensor([len(labels)]),
        )
        fits = bool(nn.CTCLoss(reduction="none")(*arguments).isfinite())
        verdicts.append(fits)
        assert (rows["fits"], rows["loss"]) == (("yes", "finite") if fits else ("no", "inf")), (case, labels)
        assert rows["frames after subsampling"] == str(len(kept))
        assert seen["status"].startswith("Fits: " if fits else "Does not fit: ")
        repeats = sum(a == b for a, b in pairwise(labels))
        assert (rows["labels"], rows["repeats"]) == (str(len(labels)), str(repeats))
        assert (not diagnose_ctc(*arguments).findings) == fits
        needed = len(labels) + repeats
        able = [s for s in range(1, 60) if len(range(0, case["frames"], s)) >= needed]
        coarsest = "none" if not able else "any" if able[-1] == 59 else str(able[-1])
        assert rows["coarsest subsampling that fits"] == coarsest
    assert 100 < sum(verdicts) < 400


def test_ctc_refuses_what_is_no_label(visit):
    bad = {
        "labels must be integers of at least 1 (0 is the blank), got 'x'": {"given": "numbers", "labels": "3 x"},
        "labels must be integers of at least 1 (0 is the blank), got -3": {"given": "numbers", "labels": "1,-3"},
        "frames must be an int of at least 0, got ''": {"given": "characters", "frames": ""},
        "repeats must be at most 0, one less than the labels, got 1": {
            "frames": 9,
            "given": "counts",
            "count": 0,
            "repeats": 1,
        },
    }
    seen = fill_each(visit(PAGE), "ctc", list(bad.values()))
    assert [one["status"] for one in seen] == [message + STALE for message in bad]
    assert [one["blamed"] for one in seen] == [[message.split()[0]] for message in bad]


# --- checkpoints -----------------------------------------------------------------------------------------------------


def plan_of_the_book():
    """The function that chapter 11 defines."""
    notebook = nbformat.read(ROOT / "notebooks" / "11_gradient_checkpointing.ipynb", as_version=4)
    [source] = [cell.source for cell in notebook.cells if "def plan(" in cell.source]
    names = {"math": math}
    exec(source.partition("\n\n\n")[0], names)
    return names["plan"]


def plan_cases(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        yield {
            "steps": rng.choice([rng.randrange(1, 60), rng.randrange(1, 3000)]),
            "batch": rng.randrange(1, 20),
            "features": rng.randrange(1, 300),
            "units": rng.randrange(1, 300),
            "layers": rng.randrange(1, 5),
            "precision": rng.choice(DTYPES),
            "budget": round(rng.choice([0.01, 0.1, 1, 10, 100]) * rng.uniform(1, 10), 3),
            "kept": rng.choice([6, 16, 16, 7.667, 20.5]),
        }


class Formula:
    """What chapter 11 says of a case, by trying every number of segments."""

    def __init__(self, case, batch):
        self.steps, itemsize = case["steps"], getattr(torch, case["precision"]).itemsize
        numbers = case["layers"] * batch * case["units"] * itemsize
        self.a, self.b = -(-round(case["kept"] * 1000) * numbers // 1000), 2 * numbers
        self.budget = round(case["budget"] * 1000) * 2**20 // 1000

    def bytes(self, k):
        return self.a * self.steps / k + self.b * k

    def fits(self, k):
        return self.a * self.steps + self.b * k * k <= self.budget * k

    def run(self):
        """The number of segments, 1 for the plain run, 0 where there is no plan."""
        if self.a * self.steps <= self.budget:
            return 1
        return next(filter(self.fits, range(1, self.steps + 1)), 0)


def test_the_planner_is_the_formula_of_the_book(visit):
    plan, cases, runs = plan_of_the_book(), list(plan_cases(500, seed=0)), []
    for case, seen in zip(cases, fill_each(visit(PAGE), "plan", cases), strict=True):
        rows, here = dict(seen["tables"][0]), Formula(case, case["batch"])
        runs.append(k := here.run())
        said = {0: "smaller batch", 1: "plain"}.get(k, f"{k} segments")
        told = plan(here.steps, here.budget, here.a, here.b)
        # Between the two roots of the equation there may be no whole number, and the chapter rounds up.
        assert told == said or (k == 0 and not here.fits(int(told.split()[0]))), case
        assert rows["run"] == (said if k else "no plan: a smaller batch, or truncated BPTT"), case

        plain, best = here.a * here.steps, min(range(1, here.steps + 1), key=here.bytes)
        assert rows["activations of a plain run"] == _binary(plain)
        assert rows["activations"] == {0: "–", 1: _binary(plain)}.get(k, _binary(here.bytes(k or 1)))
        assert rows["longest segment"] == (counted(-(-here.steps // k), "step") if k else "–")
        assert rows[f"least memory, at {counted(best, 'segment')}"] == _binary(here.bytes(best))
        itemsize = getattr(torch, case["precision"]).itemsize
        assert rows["input, in any case"] == _binary(here.steps * case["batch"] * case["features"] * itemsize)
        forward = LSTMSpec(case["features"], case["units"], case["layers"]).flops(here.steps, case["batch"])
        again = {0: "–", 1: "nothing"}.get(k, f"{forward:,} FLOPs, one forward call")
        assert rows["computed again"] == again
        most = int(rows["largest batch with any plan"].replace(",", ""))
        assert most == 0 or Formula(case, most).run()
        assert not Formula(case, most + 1).run()
    for found in (runs.count(0), runs.count(1), sum(k > 1 for k in runs)):
        assert found > 50


def test_the_planner_is_right_beyond_the_precision_of_floats(visit):
    # So many segments that a float does not tell one from the next.
    case = {"steps": 5 * 10**34, "batch": 1, "features": 1, "units": 1, "layers": 1, "precision": "float16"}
    case |= {"budget": 10**12, "kept": 0.001}
    [seen] = fill_each(visit(PAGE), "plan", [case])
    k = int(dict(seen["tables"][0])["run"].partition(" ")[0].replace(",", ""))
    here = Formula(case, 1)
    assert k > 2**53
    assert (here.fits(k), here.fits(k - 1)) == (True, False)


def test_the_planner_refuses_what_is_no_amount(visit):
    texts = {"0": "0", "lots": "'lots'", "nan": "nan", "True": "True"}
    seen = fill_each(visit(PAGE), "plan", [{"budget": typed} for typed in texts])
    assert [one["status"] for one in seen] == [
        f"budget must be a number from 0.001 to 10**12, got {text}{STALE}" for text in texts.values()
    ]
