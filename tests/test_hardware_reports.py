"""The page that compares machines, rendered alone: what it says, when it is read again, and that it refuses errors."""

import io
import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from records import record, report
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from lstm_utils.report import report_name, save_report

PARTS = ("sources", "limits", "fastest", "fastest-float32", "roof", "absent")


@pytest.fixture
def build(tmp_path):
    """Render a page with every part; returns the page and what the builder printed."""
    (tmp_path / "page").mkdir()
    text = "Page\n====\n" + "".join(f"\n{part}\n{'-' * len(part)}\n\n.. hardware-reports:: {part}\n" for part in PARTS)
    (tmp_path / "page" / "index.rst").write_text(text, encoding="utf-8")
    (tmp_path / "reports").mkdir()

    def build():
        printed, warned = io.StringIO(), io.StringIO()
        source, output = str(tmp_path / "page"), str(tmp_path / "html")
        settings = {"extensions": ["hardware_reports"], "hardware_reports_folder": "../reports"}
        with docutils_namespace():
            app = Sphinx(source, None, output, f"{output}/.doctrees", "html", settings, status=printed, warning=warned)
            app.build()
        assert warned.getvalue() == ""
        page = BeautifulSoup(Path(output, "index.html").read_text(encoding="utf-8"), "html.parser")
        return page, printed.getvalue()

    return build


@pytest.fixture
def reports(tmp_path):
    return tmp_path / "reports"


def texts(page, part):
    """The table of a part: rows of texts, the titles first."""
    rows = page.select(f"section#{part} table.hardware tr")
    return [[" ".join(cell.get_text(" ").split()) for cell in row.select("th, td")] for row in rows]


def said(page, part):
    return " ".join(page.select_one(f"section#{part}").get_text(" ").split())


def test_without_a_report_the_page_says_so(build):
    page, _ = build()
    assert "0 reports. CPU: no report yet. CUDA: no report yet. MPS: no report yet." in said(page, "sources")
    for part in PARTS[1:]:
        assert "There is no report yet." in said(page, part)


def test_the_page_names_the_hardware_and_what_is_missing(build, reports):
    one, gpu = report(), report(record("cuda", called="GPU X", cores=7))
    save_report(reports, one)
    save_report(reports, gpu)
    page, _ = build()
    assert "2 reports. CPU: 1 report. CUDA: 1 report. MPS: no report yet." in said(page, "sources")
    rows = {row[1]: row for row in texts(page, "sources")}
    assert rows["CPU"][-2:] == ["3", report_name(one)]
    assert rows["GPU X"][0].endswith(", 7 cores")
    assert rows["GPU X"][-2:] == ["1", report_name(gpu)]


def test_the_fastest_runtime_is_named_with_its_ratio_to_eager(build, reports):
    save_report(reports, report(record(), record(threads=2, speed=2)))
    page, _ = build()
    titles, *rows = texts(page, "fastest")
    assert titles[0] == "Shape"
    assert [re.search(r"CPU, .*", title).group() for title in titles[1:]] == ["CPU, 1 thread", "CPU, 2 threads"]
    assert rows == [
        ["H 64, N 1, T 32", "ONNX Runtime int8 0.10× (100 µs)", "ONNX Runtime int8 0.10× (50 µs)"],
        ["H 64, N 16, T 128", "ONNX Runtime fp32 0.50× (4 ms)", "ONNX Runtime fp32 0.50× (2 ms)"],
    ]
    assert [row[1] for row in texts(page, "fastest-float32")[1:]] == [
        "ONNX Runtime fp32 0.50× (500 µs)",
        "ONNX Runtime fp32 0.50× (4 ms)",
    ]
    assert "The fastest at 2 shapes: ONNX Runtime int8 at 1, ONNX Runtime fp32 at 1." in said(page, "fastest")


def test_what_the_spread_does_not_tell_apart_is_named_together(build, reports):
    close = record()
    for timing in close["timings"]:
        if timing["batch_size"] == 1:
            timing |= {"low_s": 1e-4, "high_s": 2e-3}
    save_report(reports, report(close))
    page, _ = build()
    assert texts(page, "fastest")[1][1].startswith("ONNX Runtime int8 or ONNX Runtime fp32 or eager fp32 0.10×")
    assert "at 2 shapes: too close to call at 1, ONNX Runtime fp32 at 1." in said(page, "fastest")


def test_limits_are_the_highest_of_the_runs(build, reports):
    higher = record(hidden_size=256)
    higher["roofline"] = {"gemm_flops": {"float32": 2e12, "bfloat16": 5e12}, "bandwidth": 3e9, "cache_bandwidth": 2e11}
    save_report(reports, report(record(), higher, record(threads=2)))
    page, _ = build()
    assert [row[1:] for row in texts(page, "limits")[1:]] == [
        ["2,000.0", "5,000.0", "10.0", "100.0", "200.0"],
        ["100.0", "–", "10.0", "100.0", "–"],
    ]


def test_the_roof_is_a_share_of_the_time_and_names_the_limit(build, reports):
    save_report(reports, report(record()))
    page, _ = build()
    # H 64, I 32, N 1, T 32: 4 * 64 * 64 bytes of int8 a step, 8,192 once, and 4 * 32 * (32 + 64) of activations,
    # at 1e11 bytes a second: 5.4 of 100 microseconds.
    assert texts(page, "roof")[1] == ["H 64, N 1, T 32", "5% of bandwidth ONNX Runtime int8"]
    assert texts(page, "roof")[2][1].startswith("25% of compute ONNX Runtime fp32")


def test_what_did_not_run_is_told_with_the_reason(build, reports):
    save_report(reports, report())
    page, _ = build()
    assert [row[1:] for row in texts(page, "absent")] == [
        ["Did not run", "Why"],
        ["OpenVINO fp32", "openvino is not installed"],
        ["OpenVINO fp32", "openvino is not installed"],
    ]
    complete = record(cores=3)
    del complete["runtimes"]["OpenVINO fp32"]
    for path in reports.iterdir():
        path.unlink()
    save_report(reports, report(complete))
    assert "Every runtime ran everywhere." in said(build()[0], "absent")


def test_shapes_that_one_machine_lacks_are_left_blank(build, reports):
    save_report(reports, report(record(), record(threads=2, hidden_size=256)))
    page, _ = build()
    assert [[cell == "–" for cell in row[1:]] for row in texts(page, "fastest")[1:]] == [
        [False, True],
        [False, True],
        [True, False],
        [True, False],
    ]


def test_machines_with_the_same_name_are_told_apart_and_quick_runs_are_marked(build, reports):
    for instructions in ("AVX2", "AVX512"):
        save_report(reports, report(record(instruction_set=instructions, cores=1, quick=True)))
    save_report(reports, report(record(cores=8)))
    page, _ = build()
    names = [row[0] for row in texts(page, "sources")[1:]]
    assert [re.search(r"\d core.*", name).group() for name in sorted(names)] == [
        "1 core, AVX2",
        "1 core, AVX512",
        "8 cores",
    ]
    assert sorted(row[5] for row in texts(page, "sources")[1:]) == ["1", "1 (quick)", "1 (quick)"]
    assert sum("CPU, 1 thread (quick)" in title for title in texts(page, "fastest")[0]) == 2


def test_several_gpus_of_a_machine_are_told_apart(build, reports):
    save_report(reports, report(*[record(f"cuda:{index}", called="GPU X") for index in range(2)]))
    titles = texts(build()[0], "fastest")[0]
    assert [re.search(r"GPU.*", title).group() for title in titles[1:]] == ["GPU X (cuda:0)", "GPU X (cuda:1)"]


def test_rows_and_columns_have_header_cells(build, reports):
    save_report(reports, report())
    page, _ = build()
    tables = page.select("table.hardware")
    assert len(tables) == len(PARTS)
    for one in tables:
        assert not one.select("thead td")
        assert all(row.find(True, recursive=False).name == "th" for row in one.select("tbody tr"))


def test_the_page_is_read_again_when_a_report_comes_changes_or_goes_and_only_then(build, reports):
    build()
    assert "no targets are out of date" in build()[1]
    path = save_report(reports, report())
    assert "1 report." in said(build()[0], "sources")
    assert "no targets are out of date" in build()[1]
    save_report(reports, report(record(speed=2), record(threads=2), record(hidden_size=256)))
    assert "(50 µs)" in said(build()[0], "fastest")
    path.unlink()
    assert "0 reports." in said(build()[0], "sources")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "../reports/wrong.json: no JSON"),
        ('{"schema": 1}', "../reports/wrong.json: the report has no 'hardware'; it needs schema, hardware, cells"),
    ],
)
def test_an_unsound_report_stops_the_build(build, reports, text, message):
    (reports / "wrong.json").write_text(text, encoding="utf-8")
    with pytest.raises(Exception, match=message) as caught:
        build()
    assert caught.value.category == "Hardware report"


def test_an_unknown_part_is_an_error(build, tmp_path):
    (tmp_path / "page" / "index.rst").write_text("Page\n====\n\n.. hardware-reports:: all\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="no part 'all'; there are sources, limits"):
        build()
