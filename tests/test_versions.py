"""The page "What changed between versions", rendered alone; the program that writes its reports; the stated range."""

import copy
import io
import json
import tomllib
from pathlib import Path

import nbformat
import pytest
import versions
from bs4 import BeautifulSoup
from checks import ROOT
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace
from version_reports import PARTS, VersionReportError, Versions, load, numbers

from lstm_utils.claims import claims
from lstm_utils.pitfalls import pitfall, pitfalls

pytestmark = pytest.mark.long("starts kernels, and pytest in a process of its own")

# --- the page --------------------------------------------------------------------------------------------------------

OLD, NEW = "torch 2.9.0, Python 3.11", "torch 2.10.0, Python 3.11"
REPORT = {
    "schema": 1,
    "date": "2026-01-31",
    "python": "3.11.7",
    "versions": {"torch": "2.9.0+cpu", "numpy": "2.4.0"},
    "hardware": "CPU · some processor",
    "chapters": {"01_cell": {"cells": 30, "errors": {}, "changed": {"4": {"stored": "a\nb", "now": "a\nquick"}}}},
    "claims": {"G01": "", "G02": ""},
    "pitfalls": {"P13": {"error": "", "says": ["RuntimeError: old words", "RuntimeError: same"]}},
    "tests": {"test_x": {"passed": 1234, "failed": {}, "skipped": {"test_b": "no compiler"}}},
}


def report(torch="2.9.0+cpu", python="3.11.7", **changes):
    return copy.deepcopy(REPORT) | {"versions": {"torch": torch, "numpy": "2.4.0"}, "python": python} | changes


@pytest.fixture
def site(tmp_path):
    """A repository with the page alone: save(report) adds one, build() gives the text of each part."""
    (tmp_path / "reports").mkdir()
    (tmp_path / "notebooks").mkdir()
    for name in ("conf.py", "notebooks/01_cell.ipynb"):
        (tmp_path / name).touch()
    (tmp_path / "requirements.lock").write_text("numpy==2.4.0\ntorch==2.9.0\n", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy", "torch>=2.9.0"]\nclassifiers = [\n'
        '"Programming Language :: Python :: 3.11", "Programming Language :: Python :: 3.13"]\n',
        encoding="utf-8",
    )
    parts = "".join(f"\n{part}\n{'-' * len(part)}\n\n.. version-reports:: {part}\n" for part in PARTS)
    (tmp_path / "index.rst").write_text(f"Page\n====\n{parts}", encoding="utf-8")

    class Site:
        folder = tmp_path / "reports"

        def save(self, content):
            (self.folder / versions.report_name(content)).write_text(json.dumps(content), encoding="utf-8")

        def build(self):
            warned, settings = io.StringIO(), {"extensions": ["version_reports"], "version_reports_folder": "reports"}
            out = str(tmp_path / "html")
            with docutils_namespace():
                doctrees = f"{out}/.doctrees"
                Sphinx(str(tmp_path), None, out, doctrees, "html", settings, status=None, warning=warned).build()
            assert warned.getvalue() == ""
            page = BeautifulSoup(Path(out, "index.html").read_text(encoding="utf-8"), "html.parser")
            return {part: page.select_one(f"section#{part}") for part in PARTS}

    return Site()


def rows(section):
    """The cells of a table, each a list of its paragraphs; the titles first."""
    return [[[p.get_text() for p in cell.select("p")] for cell in row.select("th, td")] for row in section.select("tr")]


def said(section):
    return " ".join(section.get_text(" ").split())


def test_without_a_report_nothing_is_claimed(site):
    parts = site.build()
    assert rows(parts["combinations"]) == [
        [[], ["Python 3.11"], ["Python 3.13"]],
        [["torch 2.9.0", "pinned, oldest accepted"], ["not run"], ["not run"]],
    ]
    assert "Nothing was run, so no range" in said(parts["supported"])
    assert "The pinned torch was not run." in said(parts["messages"])
    assert "Nothing was run." in said(parts["runs"])


def test_a_combination_without_a_file_is_named(site):
    site.save(report())
    parts = site.build()
    assert rows(parts["combinations"])[1][1:] == [["all as recorded"], ["not run"]]
    assert f"message and test is as recorded with: {OLD}." in said(parts["supported"])
    assert "Whole runs support torch 2.9.0, with Python 3.11. No whole run here supports Python 3.13." in said(
        parts["supported"]
    )
    for part, text in {"verdicts": "No verdict", "failures": "Every chapter ran", "tests": "No test failed"}.items():
        assert text in said(parts[part])
    assert rows(parts["runs"])[1] == [
        [OLD],
        ["cells: 30", "claims: 2", "pitfalls: 1", "test modules: 1", "tests passed: 1,234", "tests skipped: 1"],
        ["CPU · some processor"],
        ["numpy 2.4.0"],
        ["2026-01-31"],
    ]


def test_another_version_stands_above_with_all_that_differs(site):
    broken = {"cells": 9, "errors": {"7": "TypeError: no"}, "changed": {"3": {"stored": "c\nd", "now": "c\ne"}}}
    says = {"error": "PitfallError: P13 is recorded as", "says": ["RuntimeError: new words", "RuntimeError: same"]}
    tests = {"test_x": {"passed": 3, "failed": {"test_y": "assert 1 == 2"}, "skipped": {}}}
    new = report("2.10.0+cu130", claims={"G01": "AuditError: G01 holds: no", "G02": ""}, tests=tests)
    site.save(report())
    site.save(new | {"chapters": {"01_cell": broken}, "pitfalls": {"P13": says}})
    parts = site.build()
    table = rows(parts["combinations"])
    assert [row[0][0] for row in table[1:]] == ["torch 2.10.0", "torch 2.9.0"]  # as numbers, not as texts
    assert table[1][1] == ["cell failed: 1", "verdict differs: 1", "message differs: 1", "test failed: 1"]
    assert f"Something of that fails, or no test was run, with: {NEW}." in said(parts["supported"])
    assert "Whole runs support torch 2.9.0, with" in said(parts["supported"])
    assert rows(parts["verdicts"])[1] == [["G01"], ["AuditError: G01 holds: no"], [NEW]]
    assert rows(parts["failures"])[1] == [["01 cell, cell 7"], ["TypeError: no"], [NEW]]
    assert rows(parts["messages"]) == [
        [["Pitfall"], [f"With {OLD}"], ["With another version"], ["Where"]],
        [["P13"], ["RuntimeError: old words"], ["RuntimeError: new words"], [NEW]],
    ]
    # The quick form changes cell 4 under the pinned torch alone, where the new one prints what is stored.
    assert rows(parts["facts"])[1:] == [
        [["01 cell, cell 3"], ["d"], ["e"], [NEW]],
        [["01 cell, cell 4"], ["quick"], ["b"], [NEW]],
    ]
    assert rows(parts["tests"])[1] == [["test_x::test_y"], ["assert 1 == 2"], [NEW]]


def test_the_same_difference_in_two_versions_is_one_row(site):
    site.save(report())
    for torch in ("2.10.0", "2.11.0"):
        site.save(report(torch, pitfalls={"P13": {"error": "x", "says": []}}))
    [_, row] = rows(site.build()["messages"])
    assert row[1:3] == [["RuntimeError: old words", "RuntimeError: same"], ["x"]]
    assert row[3] == ["torch 2.11.0, Python 3.11", NEW]


def test_the_range_ends_before_the_first_torch_that_fails(site):
    failed = {"test_x": {"passed": 3, "failed": {"test_y": "no"}, "skipped": {}}}
    for torch, tests in {"2.8.0": failed, "2.9.0": REPORT["tests"], "2.10.0": REPORT["tests"]}.items():
        site.save(report(torch, tests=tests))
    assert "Whole runs support torch 2.9.0 to 2.10.0, with Python 3.11." in said(site.build()["supported"])
    site.save(report("2.10.0", python="3.13.0", tests=failed))
    site.save(report("2.11.0"))
    assert "Whole runs support torch 2.9.0, with Python 3.11." in said(site.build()["supported"])
    site.save(report("2.9.0", tests=failed))
    assert "No whole run supports that bound." in said(site.build()["supported"])


def test_a_message_that_differs_leaves_the_range(site):
    site.save(report())
    site.save(report("2.10.0", pitfalls={"P13": {"error": "PitfallError: x", "says": []}}))
    assert "support torch 2.9.0 to 2.10.0" in said(site.build()["supported"])
    assert f"message and test is as recorded with: {OLD}." in said(site.build()["supported"])


def test_a_partial_run_is_called_so(site, tmp_path):
    (tmp_path / "notebooks" / "02_more.ipynb").touch()
    site.save(report())
    parts = site.build()
    assert rows(parts["combinations"])[1][1] == ["all as recorded", "1 of 2 chapters not run"]
    assert "message and test is as recorded with: none." in said(parts["supported"])
    assert f"Only a part was run with: {OLD}." in said(parts["supported"])
    assert "No whole run supports that bound." in said(parts["supported"])
    site.save(report("2.10.0", chapters={"02_more": REPORT["chapters"]["01_cell"]}))
    parts = site.build()
    assert "No compared cell differs." in said(parts["facts"])  # none was run in both
    site.save(report("2.10.0", tests={}))
    parts = site.build()
    assert rows(parts["combinations"])[1][1][1:] == ["1 of 2 chapters not run", "1 of 1 test modules not run"]
    assert f"Something of that fails, or no test was run, with: {NEW}." in said(parts["supported"])


def test_a_new_or_changed_report_changes_the_page(site):
    site.save(report())
    site.build()
    site.save(report(claims={"G01": "AuditError: new", "G02": ""}))
    assert "AuditError: new" in said(site.build()["verdicts"])
    site.save(report(python="3.13.0"))
    assert rows(site.build()["combinations"])[1][2] == ["all as recorded"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "2.9.0-py3.11.json is no report of `make versions`"),
        ("[]", "is not of type 'object'"),
        (json.dumps(report() | {"schema": 2}), "1 was expected"),
        (json.dumps(report() | {"chapters": {}}), "should be non-empty|does not have enough properties"),
        (json.dumps(report() | {"more": 1}), "'more' was unexpected"),
        (
            json.dumps(report(tests={"test_x": {"passed": -1, "failed": {}, "skipped": {}}})),
            "tests.test_x.passed: -1 is",
        ),
        (json.dumps({name: value for name, value in report().items() if name != "tests"}), "'tests' is a required"),
        (json.dumps(report("2.10.0")), "2.9.0-py3.11.json holds the report of torch 2.10.0, Python 3.11"),
    ],
)
def test_a_malformed_report_stops_the_build(site, text, message):
    (site.folder / "2.9.0-py3.11.json").write_text(text, encoding="utf-8")
    with pytest.raises(VersionReportError, match=message):
        site.build()


# --- the reports of the book -----------------------------------------------------------------------------------------


def test_the_stated_range_has_its_evidence():
    stated = Versions.of(ROOT, versions.REPORTS)
    assert stated.baseline.holds
    assert stated.missing(stated.baseline) == []
    assert not stated.reports[stated.oldest, stated.pythons[0]].failed
    assert not stated.reports[stated.oldest, stated.pythons[0]].contradicted
    assert any(numbers(torch) > numbers(stated.pinned) for torch, _ in stated.reports)
    assert any(numbers(torch) < numbers(stated.pinned) for torch, _ in stated.reports)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={stated.pythons[0]}"


@pytest.mark.parametrize("path", sorted(versions.REPORTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_report_is_of_this_book(path):
    content = load(path).content
    ran, known = set(content["chapters"]), {notebook.stem for notebook in versions.NOTEBOOKS}
    judged = {claim.id for claim in claims().values() if claim.verdict not in ("open", "not-testable")}
    shown = {entry.id for entry in pitfalls().values() if not entry.unexecuted}
    assert versions.GALLERY in ran <= known
    assert set(content["claims"]) == {name for name in judged if claims()[name].chapter in ran}
    assert set(content["pitfalls"]) == shown
    assert str(Path.home()) not in path.read_text(encoding="utf-8")


# --- the program -----------------------------------------------------------------------------------------------------


def chapter(folder, *cells):
    """A chapter of such cells, (source, stored output), which stand after its parameters."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("quick = False", metadata={"tags": ["parameters"]})]
    for source, stored in cells:
        notebook.cells.append(nbformat.v4.new_code_cell(source))
        notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=stored)] if stored else []
    nbformat.write(notebook, folder / "06_parameter_counting.ipynb")
    return folder / "06_parameter_counting.ipynb"


def test_a_chapter_is_run_to_its_end_and_tells_what_differs(tmp_path):
    known = pitfall("P13").messages[0]
    path = chapter(
        tmp_path,
        ("from lstm_utils import audit, pitfall\nprint(quick, device)", "False auto\n"),
        ("print('as before')", "as before\n"),
        ("audit('G20').expect(claimed=42_240, measured=42_496)", "G20 false: claimed 42,240, measured 42,496\n"),
        ("audit('G21').expect(claimed=1, measured=1)", ""),
        (f"pitfall('P13').expect({'RuntimeError: ' + known!r})", ""),
        ("pitfall('P14').expect('RuntimeError: other words')", ""),
        ("raise OSError('\\x1b[31mno ' + __import__('sys').prefix)", ""),
    )
    ran = versions.run_chapter(path)
    assert ran["cells"] == 8
    assert list(ran["errors"]) == ["5", "7", "8"]
    assert ran["errors"]["8"].startswith("OSError: no ")
    assert ran["changed"] == {"2": {"stored": "False auto\n", "now": "True cpu"}}
    told = versions.held({path.stem: ran["notes"]}, ["G20", "G21", "G22", "P13", "P14"])
    assert told["G20"]["error"] == ""
    assert told["G21"]["error"].startswith("AuditError: G21 ")
    assert told["G22"]["error"] == versions.UNREACHED
    assert told["P13"] == {"error": "", "says": [f"RuntimeError: {known}"]}
    assert told["P14"]["error"].startswith("PitfallError: P14 is recorded as saying")
    assert told["P14"]["says"] == ["RuntimeError: other words"]


def test_a_kernel_that_dies_is_an_error_of_its_cell(tmp_path):
    path = chapter(tmp_path, ("print(1)", "1\n"), ("import os; os._exit(1)", ""), ("print(2)", "2\n"))
    ran = versions.run_chapter(path)
    assert ran["errors"] == {"3": "DeadKernelError: Kernel died"}
    assert "4" not in ran["changed"]


TESTS = """
import pytest
def test_passes(): assert True
def test_fails(): assert 1 == 2
def test_skips(): pytest.skip("no compiler")
"""


def test_tests_are_counted_and_failures_named(tmp_path):
    module = tmp_path / "test_one.py"
    module.write_text(TESTS, encoding="utf-8")
    assert versions.run_tests(module) == {
        "passed": 1,
        "failed": {"test_fails": "assert 1 == 2"},
        "skipped": {"test_skips": "no compiler"},
    }
    module.write_text("import no_such_package", encoding="utf-8")
    [error] = versions.run_tests(module)["failed"].values()
    assert "collection failure" in error
    module.write_text("import os\nos.abort()", encoding="utf-8")
    assert versions.run_tests(module)["failed"]["test_one"].startswith("pytest ended with status -6: ")


def test_every_module_of_the_package_that_has_tests_is_tested():
    names = {path.stem for path in versions.package_tests()}
    assert {"test_spec", "test_pitfalls", "test_diagnose", "test_reference"} <= names
    assert not {"test_sweep", "test_book", "test_browser", "test_notebooks", "test_pdf", "test_versions"} & names


GOOD, BAD = ({"passed": 1, "failed": failed, "skipped": {}} for failed in ({}, {"test_y": "assert 1 == 2"}))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command with made-up chapters and tests: what run_chapter and run_tests return, by name."""
    results = {
        "06_parameter_counting": {"cells": 2, "errors": {}, "changed": {}, "notes": []},
        "01_inside_the_cell": {"cells": 3, "errors": {"2": "TypeError: no"}, "changed": {}, "notes": []},
        "test_spec": GOOD,
        "test_reference": BAD,
    }
    for name in ("run_chapter", "run_tests"):
        monkeypatch.setattr(versions, name, lambda path: copy.deepcopy(results[path.stem]))

    def command(*arguments):
        status = versions.main(["--folder", str(tmp_path / "new"), *arguments])
        [path] = (tmp_path / "new").iterdir()
        return status, load(path).content

    return command


def test_the_command_runs_what_it_is_asked_for_and_says_what_differs(command, capsys):
    status, content = command("--only", "test_spec", "06_parameter_counting", "test_reference")
    assert status == 1
    assert content["tests"] == {"test_spec": GOOD, "test_reference": BAD}
    assert set(content["claims"].values()) == {versions.UNREACHED}
    printed = capsys.readouterr().out
    assert "test_reference::test_y: assert 1 == 2\n" in printed
    assert f"G20: {versions.UNREACHED}\n" in printed
    assert f"{len(content['claims']) + 1} differences from the record" in printed


def test_a_run_begins_anew_or_adds(command):
    assert command("--only", "01_inside_the_cell", "test_reference")[0] == 1
    status, content = command("--add", "--only", "06_parameter_counting", "test_spec")
    assert (status, len(content["chapters"]), len(content["tests"])) == (1, 2, 2)
    status, content = command("--only", "06_parameter_counting", "test_spec")
    assert (len(content["chapters"]), len(content["tests"])) == (1, 1)


@pytest.mark.parametrize("name", ["python", "versions", "hardware"])
def test_nothing_is_added_to_the_report_of_other_versions(name):
    with pytest.raises(ValueError, match=f"the report has {name} .* run all, without --add"):
        versions.added(report(), report() | {name: "another"})
