"""The calculators: the forms are rendered here, ``_static/calculators.js`` computes what stands below them.

What a page shows inside the directive is an example, for readers without a script; with one, it is kept up to date.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def number(name: str, label: str, value: float, low: float, high: float, step: float = 1) -> str:
    """A box that takes any number, and a slider over the usual ones."""
    return _field(
        name,
        label,
        f'<input id="calc-{name}" name="{name}" value="{value}" inputmode="{"numeric" if step == 1 else "decimal"}" '
        'autocomplete="off" spellcheck="false">'
        f'<input type="range" aria-label="{escape(label)}, slider" data-for="{name}" '
        f'value="{value}" min="{low}" max="{high}" step="{step}">',
    )


def choice(name: str, label: str, options: Sequence[str]) -> str:
    """A list to choose from; the first is the default."""
    listed = "".join(f"<option>{escape(option)}</option>" for option in options)
    return _field(name, label, f'<select id="calc-{name}" name="{name}">{listed}</select>')


def text(name: str, label: str, value: str) -> str:
    """A box for a line of text."""
    box = f'<input id="calc-{name}" name="{name}" value="{escape(value)}" autocomplete="off" spellcheck="false">'
    return _field(name, label, box)


def flags(named: Mapping[str, bool]) -> str:
    """Boxes to tick, in a row, and which of them are ticked at first."""
    boxes = (
        f'<label><input type="checkbox" name="{name}"{" checked" * checked}> {name}</label>'
        for name, checked in named.items()
    )
    return f'<div class="calculator-flags">{"".join(boxes)}</div>'


def _field(name: str, label: str, controls: str) -> str:
    return f'<div class="calculator-field"><label for="calc-{name}">{escape(label)}</label>{controls}</div>'


# The names are those of the address, and those that messages begin with.
DTYPES = ("float32", "float16", "bfloat16", "float64")
FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lstm": (
        "Arguments of nn.LSTM, and of a call",
        (
            number("input_size", "input_size", 100, 1, 1024),
            number("hidden_size", "hidden_size", 64, 1, 1024),
            number("num_layers", "num_layers", 2, 1, 8),
            number("proj_size", "proj_size", 0, 0, 63),
            number("dropout", "dropout", 0.0, 0, 1, 0.05),
            number("seq_len", "T (seq_len)", 20, 1, 512),
            number("batch_size", "N (batch_size)", 32, 0, 256),
            choice("dtype", "dtype", DTYPES),
            flags({"bias": True, "batch_first": False, "bidirectional": False, "unbatched": False}),
        ),
    ),
    "ctc": (
        "Frames and labels of one sample",
        (
            number("frames", "frames", 20, 0, 512),
            number("subsampling", "subsampling", 1, 1, 16),
            choice("given", "labels as", ("characters", "numbers", "counts")),
            text("labels", "labels", "hello"),
            number("count", "count", 5, 0, 128),
            number("repeats", "repeats", 1, 0, 127),
        ),
    ),
    "plan": (
        "A training step, and the memory for it",
        (
            number("steps", "T, steps", 4096, 1, 16384),
            number("batch", "N, batch", 8, 1, 256),
            number("features", "I, features", 16, 1, 1024),
            number("units", "H, units", 128, 1, 1024),
            number("layers", "L, layers", 1, 1, 8),
            choice("precision", "dtype", DTYPES),
            number("budget", "budget, MiB", 16, 1, 4096),
            number("kept", "kept a unit and step", 16, 6, 40),
        ),
    ),
}
# Hidden until the script has arrived: without one, a reader gets the example and no dead boxes.
FORM = """
<form class="calculator-form" aria-label="{legend}" autocomplete="off" hidden>
  <fieldset><legend>{legend}</legend>{controls}</fieldset>
  <div class="calculator-foot"><p role="status"></p><button type="reset">Reset</button></div>
</form>
"""


class Calculator(SphinxDirective):
    """One of the forms; the content is the example whose tables and code the script keeps up to date."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Render the form and the example."""
        name = directives.choice(self.arguments[0], tuple(FORMS))
        legend, controls = FORMS[name]
        form = FORM.format(legend=escape(legend), controls="".join(controls))
        result = nodes.container("", *self.parse_content_to_nodes(), classes=["calculator-result"])
        box = nodes.container("", nodes.raw("", form, format="html"), result, classes=["calculator"])
        box["ids"].append(f"calculator-{name}")
        return [box]


def add_script(
    app: Sphinx, _page: str, _template: str, _context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load the script on the page that has calculators, and nowhere else."""
    if doctree and any("calculator" in node["classes"] for node in doctree.findall(nodes.container)):
        # Deferred instead of a module: browsers refuse modules to a page that is opened from the disk.
        app.add_js_file("calculators.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the directive."""
    app.add_directive("calculator", Calculator)
    app.connect("html-page-context", add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
