"""That `make mutate` would see a promise that nobody keeps, in the book and in the source."""

import json
import subprocess
import sys

import mutate_source
import nbformat
import pytest
from checks import ROOT
from mutate_book import astray, flipped, mutants, unasserted

from lstm_utils.claims import claims
from lstm_utils.findings import Diagnosis, Finding
from lstm_utils.pitfalls import pitfalls


def test_numbers_shapes_truth_values_and_lines_are_altered_one_at_a_time():
    assert list(mutants("h_n (2, 64): True\nshare 0.5\n")) == [
        ("numbers", "h_n (3, 64): True\nshare 0.5\n"),
        ("numbers", "h_n (2, 65): True\nshare 0.5\n"),
        ("numbers", "h_n (2, 64): True\nshare 0.6\n"),
        ("shapes", "h_n (1, 2, 64): True\nshare 0.5\n"),
        ("truth values", "h_n (2, 64): False\nshare 0.5\n"),
        ("messages", "h_n (2, 64): tRUE\nshare 0.5\n"),
        ("messages", "h_n (2, 64): True\nSHARE 0.5\n"),
        ("missing lines", "share 0.5\n"),
        ("missing lines", "h_n (2, 64): True\n"),
    ]


def test_every_verdict_has_mutants_with_each_other_verdict():
    for name, claim in claims().items():
        verdicts = {entry["verdict"] for _, entry in flipped(name)}
        assert len(verdicts) == 5
        assert claim.verdict not in verdicts
    assert list(unasserted()) == []


def test_every_message_of_a_pitfall_and_every_finding_has_mutants():
    seen = Diagnosis((Finding("P11", "a warning"), Finding("P05", "lengths 3, 5")))
    for pitfall in pitfalls().values():
        altered = astray(pitfall, "expect", (seen,))
        records = [record for what, record, _ in altered if not what.startswith("seen")]
        assert all(record != pitfall for record in records)
        for message in pitfall.messages:
            assert any(message not in record.messages for record in records)
    given = [given for what, _, given in astray(pitfalls()["P05"], "expect", (seen,)) if what.startswith("seen")]
    assert (Diagnosis((Finding("P11", "a warning"),)),) in given  # not found any more
    assert (Diagnosis((Finding("P11", "a warning"), Finding("P05", "lengths 4, 5"))),) in given


CHAPTER = [
    ("from lstm_utils import audit, check, error_of\nfrom lstm_utils.pitfalls import pitfall", [], ""),
    ('audit("G20").expect(claimed=42_240, measured=42_496)', [], "G20 false: claimed 42,240, measured 42,496\n"),
    ('_ = pitfall("P15").expect("shapes cannot be multiplied" and str(pitfall("P15").messages[0]))', [], ""),
    ("double = ...", ["exercise"], ""),
    ("if double is ...:\n\n    def double(n):\n        return 2 * n", ["solution"], ""),
    ('check("1.1", lambda: double(1) > 0, hint="twice")', ["check"], "Passed, exercise 1.1.\n"),
    ("print('noise 3')", ["nbval-ignore-output"], "noise 4\n"),
]


@pytest.mark.long("runs a small chapter, and its mutants")
def test_what_a_careless_chapter_would_let_pass_is_listed(tmp_path):
    notebook = nbformat.v4.new_notebook()
    for number, (source, tags, text) in enumerate(CHAPTER, start=1):
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": tags}, execution_count=number)
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
        notebook.cells.append(cell)
    nbformat.write(notebook, tmp_path / "01_careless.ipynb")
    command = [sys.executable, "tests/mutate_book.py", str(tmp_path / "01_careless.ipynb")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    missed = [line for line in result.stdout.splitlines() if line.startswith("01_careless")]
    assert "01_careless: answers: 1.1: offset: Passed, exercise 1.1." in missed  # 3 is as good as 2
    assert any("pitfalls: P15 cause: " in line for line in missed)  # the symptom is not displayed
    assert not any(kind in line for line in missed for kind in ("verdicts", "numbers", "nothing", "opposite", "noise"))
    assert "ignore-output: 3\n" in result.stdout


KNOWN = "f: a < b ⇒ a <= b"


@pytest.fixture
def report():
    fared = {"mutants": 10, "survived": {"x_f__mutmut_1": KNOWN}}
    return {"spec": fared}


def test_what_is_said_of_a_module_that_was_never_run_stands(report):
    known = {"spec": [{"why": "they are never equal", "changes": [KNOWN]}]}
    assert mutate_source.problems(report, known | {"files": [{"why": "x", "changes": ["f: a ⇒ b"]}]}) == []


@pytest.mark.parametrize("module", ["spec", "every"])
@pytest.mark.parametrize("what", [{"changes": [KNOWN]}, {"patterns": ["<.*⇒.*<=", "⇒ a <= b$"]}])
def test_a_survivor_that_is_justified_is_no_problem(report, module, what):
    assert mutate_source.problems(report, {module: [{"why": "they are never equal", **what}]}) == []


@pytest.mark.parametrize(
    ("fared", "justified", "problem"),
    [
        ({}, {}, f"spec: survives, and nothing says why: {KNOWN}"),
        ({}, {"files": [{"why": "x", "changes": [KNOWN]}]}, f"spec: survives, and nothing says why: {KNOWN}"),
        ({}, {"every": [{"why": "x", "changes": ["a < b"]}]}, f"spec: survives, and nothing says why: {KNOWN}"),
        ({"survived": {}}, {"spec": [{"why": "x", "changes": [KNOWN]}]}, "spec: justified, and does not survive"),
        ({}, {"every": [{"why": "x", "patterns": ["c <"]}]}, "every: justified, and does not survive: c <"),
        ({}, {"spec": [{"why": " ", "changes": [KNOWN]}]}, "without a reason"),
        (
            {"mutants": 5},
            {"spec": [{"why": "x", "changes": [KNOWN]}]},
            "80.0% of its mutants are noticed, and 90% must",
        ),
        ({}, {"sepc": [{"why": "x", "changes": [KNOWN]}]}, "sepc: justified, and is no module"),
    ],
)
def test_a_survivor_that_nothing_explains_is_noticed(report, fared, justified, problem):
    found = mutate_source.problems({"spec": report["spec"] | fared}, justified)
    assert any(problem in line for line in found)


MUTANTS = """
def f(n: int) -> str:
    return n + 1
def x_f__mutmut_orig(n: int) -> str:
    return n + 1
def x_f__mutmut_1(n: int) -> str:
    return n + 2
def x_f__mutmut_2(n: int) -> str:
    return n.missing
"""


def test_mypy_notices_a_mutant_where_it_says_what_it_does_not_say_of_the_unchanged_function(tmp_path):
    (tmp_path / "one.py").write_text(MUTANTS, encoding="utf-8")
    command = [sys.executable, "-c", mutate_source.TYPES, "mypy", "--output=json", "--cache-dir=cache", "one.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [json.loads(line)["message"].split()[-1] for line in said] == ['"missing"']


def test_the_tests_of_every_module_exist():
    for module in mutate_source.modules():
        for path in mutate_source.tests_of(module):
            assert (ROOT / path).is_file()
