"""The table of ``make bench``, from the report that it wrote, with the hardware that it ran on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from lstm_utils.bench import Comparison, load_report

HEAD = ("What", "lstm_utils, against what instead", "Ours ÷ instead", "So ours is")


class BenchTable(SphinxDirective):
    """Every comparison of a report; the file is named relative to the page."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Render the report, or stop the build when there is none."""
        path = self.env.relfn2path(self.arguments[0])[1]
        self.env.note_dependency(path)
        try:
            report = load_report(Path(path))
        except ValueError as error:
            raise ExtensionError(f"{self.env.docname}: {error}") from error
        words = Counter(f"{row.measure}, {row.word}" for row in report.comparisons)
        score = " · ".join(f"{word}: {count}" for word, count in sorted(words.items(), reverse=True))
        versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
        table = nodes.table(classes=["bench", "colwidths-auto"])
        group = nodes.tgroup(cols=len(HEAD))
        table += group
        group += [nodes.colspec(colwidth=1) for _ in HEAD]
        head = nodes.row("", *[nodes.entry("", nodes.paragraph(text=title)) for title in HEAD])
        group += [nodes.thead("", head), nodes.tbody("", *map(self.row, report.comparisons))]
        return [
            nodes.paragraph("", "", nodes.strong(text=f"{len(report.comparisons)} comparisons · {score}")),
            table,
            nodes.paragraph(text=f"Measured on {report.hardware} · {versions}."),
        ]

    def row(self, comparison: Comparison) -> nodes.row:
        """One comparison, in fewer and taller cells than a terminal has: a page is narrow."""
        name, ours, instead, sizes, ratio, word = comparison.cells()
        texts = ([sizes], [ours, f"against {instead}"], [ratio], [word])
        cells = [[nodes.paragraph("", "", *_inline(line)) for line in lines] for lines in texts]
        cells[0].insert(0, nodes.paragraph("", "", nodes.strong(text=name)))
        return nodes.row("", *[nodes.entry("", *cell) for cell in cells])


def _inline(text: str) -> list[nodes.Node]:
    """What stands between backticks is code; no line ends before or after an equals sign."""
    parts = enumerate(text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}").split("`"))
    return [nodes.literal(text=part) if at % 2 else nodes.Text(part) for at, part in parts if part]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the directive."""
    app.add_directive("bench-table", BenchTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
