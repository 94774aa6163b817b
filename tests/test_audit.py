"""The audit: every verdict is asserted by a cell of its chapter, and nothing else is asserted."""

from dataclasses import replace

import nbformat
import pytest
from checks import NOTEBOOKS, audit_problems

from lstm_utils.claims import claims


def test_every_verdict_has_its_cell():
    assert audit_problems(claims(), NOTEBOOKS) == []


def test_all_claims_of_the_guide_are_listed():
    assert list(claims()) == [*(f"G{number:02}" for number in range(1, 41)), "G40b", "G41"]
    assert [claim.id for claim in claims().values() if claim.verdict == "not-testable"] == ["G41"]


def test_every_claim_but_one_is_settled():
    assert {claim.id for claim in claims().values() if claim.verdict in ("open", "not-testable")} == {"G41"}


@pytest.mark.parametrize(
    "claim",
    [
        replace(claims()["G41"], verdict="holds", explanation="x"),  # settled without a cell
        replace(claims()["G01"], verdict="open", explanation=""),  # a cell asserts it all the same
        replace(claims()["G01"], chapter="03_layers_bias_batch_first"),  # asserted in another chapter
    ],
    ids=["no cell", "open", "elsewhere"],
)
def test_a_claim_without_its_cell_is_noticed(claim):
    assert audit_problems({**claims(), claim.id: claim}, NOTEBOOKS)


def test_an_unknown_claim_and_a_missing_assertion_are_noticed(tmp_path):
    notebook = nbformat.read(NOTEBOOKS[1], as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('audit("G01").expect(', 'audit("G01").says; audit("G99").expect(')
    nbformat.write(notebook, tmp_path / NOTEBOOKS[1].name)
    problems = audit_problems(claims(), [NOTEBOOKS[0], tmp_path / NOTEBOOKS[1].name, *NOTEBOOKS[2:]])
    assert any("G99" in problem and "unknown" in problem for problem in problems)
    assert any("G01" in problem and "no cell" in problem for problem in problems)
