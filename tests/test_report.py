"""Hardware reports: checked before they are kept or shown, with errors that say where and what would do."""

import contextlib
import copy
import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import record, report

from lstm_utils.report import (
    ReportError,
    _validator,
    as_json,
    check_record,
    load_reports,
    machine_name,
    merge_records,
    report_name,
    save_record,
    save_report,
)


def changed(value, path, new):
    """A copy with another value at the path; a call changes the one that is there."""
    result = copy.deepcopy(value)
    *parents, last = path
    target = result
    for step in parents:
        target = target[step]
    if new is KeyError:
        del target[last]
    else:
        target[last] = new
    return result


# Records -------------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(tmp_path):
    path = save_record(tmp_path / "one.json", record())
    assert json.loads(path.read_text(encoding="utf-8")) == record()
    assert list(tmp_path.iterdir()) == [path]  # no half of a file is left


def test_a_spread_may_be_nothing():
    steady = changed(
        record(), ("timings", 0), record()["timings"][0] | dict.fromkeys(["low_s", "median_s", "high_s"], 1)
    )
    steady["projection"][0] |= {"low": 1.5, "ratio": 1.5, "high": 1.5}
    assert check_record(steady, "x") == steady


def test_a_file_is_read_line_by_line_in_any_language():
    assert as_json({"processor": "Größe", "cores": [1]}) == '{\n "processor": "Größe",\n "cores": [\n  1\n ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json([math.nan])


def test_tuples_are_lists_and_what_was_not_measured_is_null():
    sparse = record() | {"timings": tuple(record()["timings"]), "projection": ()}
    sparse["roofline"]["cache_bytes"] = 2**20
    sparse["versions"]["onnxruntime"] = None
    assert check_record(sparse, "x")["timings"] == record()["timings"]


WRONG = {
    "no mapping": ((), None, r"the record is \[1\]; expected the record of one run"),
    "another schema": (("schema",), 2, "schema is 2; expected 1, the version of this schema"),
    "a missing part": (("timings",), KeyError, "the record has no 'timings'; it needs schema, hardware, versions"),
    "an unknown part": (("extra",), 1, "the record has the unknown field 'extra'; the known ones are schema, hardware"),
    "zero threads": (
        ("settings", "threads"),
        0,
        "settings.threads is 0; expected the number of threads used, 1 or mor",
    ),
    "auto": (("settings", "device"), "auto", 'settings.device is "auto"; expected cpu, cuda, cuda:1 or mps'),
    "true for a number": (("settings", "seed"), True, "settings.seed is true; expected a whole number"),
    "a missing field": (("timings", 2, "flops"), KeyError, r"timings\[2\] has no 'flops'; it needs runtime, batch_siz"),
    "no time": (("timings", 1, "median_s"), 0, r"timings\[1\].median_s is 0; expected a finite number above 0"),
    "NaN": (("timings", 1, "median_s"), math.nan, r"timings\[1\].median_s is NaN; expected a finite number above 0"),
    "infinity": (("roofline", "bandwidth"), math.inf, "roofline.bandwidth is Infinity; expected bytes a second"),
    "NaN where null may be": (
        ("roofline", "gemm_flops", "bfloat16"),
        math.nan,
        "roofline.gemm_flops.bfloat16 is NaN; expected",
    ),
    "no timing": (("timings",), [], r"timings is \[\]; expected at least one timing"),
    "no base": (("runtimes", "eager fp32"), KeyError, "runtimes has no 'eager fp32'; it needs eager fp32"),
    "a base of another precision": (
        ("runtimes", "eager fp32", "precision"),
        "int8",
        'is "int8"; the base of all ratios has to run',
    ),
    "a base that did not run": (
        ("runtimes", "eager fp32"),
        {"ran": False, "reason": "x"},
        "is null; the base",
    ),
    "an unknown precision": (
        ("runtimes", "eager fp32", "precision"),
        "fp32",
        'is "fp32"; expected float32, bfloat16',
    ),
    "no reason": (("runtimes", "OpenVINO fp32", "reason"), KeyError, r"runtimes\['OpenVINO fp32'\] has no 'reason'"),
    "no kernel": (("runtimes", "eager fp32", "kernel"), KeyError, r"runtimes\['eager fp32'\] has no 'kernel'"),
    "a reason for what ran": (("runtimes", "eager fp32", "reason"), "x", "has the unknown field 'reason'"),
    "two lines": (("runtimes", "OpenVINO fp32", "reason"), "a\nb", r'is "a\\nb"; expected one line of text, without'),
    "a private path": (("runtimes", "OpenVINO fp32", "reason"), "no /home/me/x.so", "without a path of this machine"),
    "a long text": (("hardware", "processor"), "x" * 999, r'hardware.processor is "x{56}...; expected a name on one'),
    "60 characters": (("settings", "device"), "ß" * 58, 'settings.device is "ß{58}"; expected cpu, cuda'),
    "61 characters": (("settings", "device"), "ß" * 59, r'settings.device is "ß{56}\.\.\.; expected cpu, cuda'),
    "a set": (("projection",), {1}, "Object of type set is not JSON serializable; a record holds numbers, texts"),
    "an unknown runtime": (("timings", 0, "runtime"), "TVM", r"timings\[0\].runtime is 'TVM', which runtimes does not"),
    "one that did not run": (("timings", 0, "runtime"), "OpenVINO fp32", r"timings\[0\].runtime is 'OpenVINO fp32', w"),
    "a wrong spread": (("timings", 3, "low_s"), 1.0, r"timings\[3\] has its median_s outside low_s to high_s"),
    "a timing twice": (("timings", 0), record()["timings"][1], r"timings\[1\] repeats \('eager fp32', 16, 128\)"),
    "no base at a shape": (("timings", 0), KeyError, "has 'ONNX Runtime fp32' at batch 1, length 32, and 'eager fp32'"),
    "one that was not timed": (
        ("runtimes", "TVM"),
        record()["runtimes"]["eager fp32"],
        "says that 'TVM' ran, and timings has no",
    ),
    "a wrong ratio": (("projection", 0, "high"), 0.1, r"projection\[0\] has its ratio outside low to high"),
}


@pytest.mark.parametrize(("path", "new", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_record_is_refused_with_the_file_the_field_and_the_cure(tmp_path, path, new, message):
    wrong = changed(record(), path, new) if path else [1]
    with pytest.raises(ReportError, match=f"^one.json: (.* )?{message}"):
        save_record(tmp_path / "one.json", wrong)
    assert list(tmp_path.iterdir()) == []


def places(value, path=()):
    """The path of everything in it."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@given(st.sampled_from(list(places(record()))), st.sampled_from([KeyError, [], {}, "", -1, math.nan, "x\ny", [None]]))
def test_whatever_is_damaged_is_refused_with_a_report_error_or_kept_as_it_is(path, new):
    damaged = changed(record(), path, new)
    with contextlib.suppress(ReportError):
        assert check_record(damaged, "x") == json.loads(json.dumps(damaged, allow_nan=False))


def test_a_wrong_record_leaves_the_earlier_one(tmp_path):
    path = save_record(tmp_path / "one.json", record())
    with pytest.raises(ReportError):
        save_record(path, {})
    assert json.loads(path.read_text(encoding="utf-8")) == record()


def test_a_full_disk_leaves_the_earlier_record(tmp_path, monkeypatch):
    path = save_record(tmp_path / "one.json", record())

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        save_record(path, record(threads=2))
    assert json.loads(path.read_text(encoding="utf-8")) == record()
    assert list(tmp_path.iterdir()) == [path]


def test_without_jsonschema_the_extra_is_named(monkeypatch):
    _validator.cache_clear()
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lstm-utils\[notebooks\]"'):
        check_record(record(), "x")


# Reports -------------------------------------------------------------------------------------------------------------


def test_records_are_merged_in_order_with_what_they_have_in_common():
    merged = merge_records([record(hidden_size=256), record(threads=2), record("cuda"), record()])
    order = [(cell["settings"]["device"], cell["settings"]["threads"]) for cell in merged["cells"]]
    assert order == [("cpu", 1), ("cpu", 1), ("cpu", 2), ("cuda", 1)]
    assert merged["hardware"]["devices"] == ["CPU", "CUDA"]
    assert merged["hardware"]["processor"] == record()["hardware"]["processor"]
    assert "threads" not in merged["hardware"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "a report needs at least one record, got none$"),
        (
            [record(cores=5), record(hidden_size=256, cores=7)],
            r"the report: cells\[1\].hardware.cores is 7, and the report's is 5; a report has one machine$",
        ),
        ([record(), record()], r"the report: cells\[1\] repeats the device, threads and hidden_size \('cpu', 1, 64\)"),
        (
            [record(), changed(record(threads=2), ("timings", 0, "low_s"), 9)],
            r"the report: cells\[1\].timings\[0\] has its median",
        ),
    ],
    ids=["none", "two machines", "twice", "an unsound record"],
)
def test_records_that_are_no_report_are_refused(records, message):
    with pytest.raises(ReportError, match=f"^{message}"):
        merge_records(records)


def test_a_device_that_the_head_lacks_is_noticed(tmp_path):
    with pytest.raises(ReportError, match=r'cells\[0\].hardware.device is "CPU", which hardware.devices lacks'):
        save_report(tmp_path, changed(report(), ("hardware", "devices"), ["GPU"]))


def test_a_report_is_named_after_its_hardware_and_nothing_else():
    there = {"processor": "Fast(R) CPU(TM) @ 2.50GHz", "cores": 1, "instruction_set": "AVX2", "system": "Linux x86_64"}
    one = report(record(**there), record("cuda", called="GPU X-1 80GB", **there))
    assert report_name(one) == "fast-cpu-2-50ghz-1-core-avx2-linux-x86-64-cpu-gpu-x-1-80gb.json"
    assert machine_name(there | {"cores": 16}) == "fast-cpu-2-50ghz-16-cores-avx2-linux-x86-64"
    odd = there | {"processor": "(Core(TM)2 Duo)", "system": "Linux (x86_64)"}
    assert machine_name(odd) == "core2-duo-1-core-avx2-linux-x86-64"


def test_reports_come_back_by_name(tmp_path):
    few = report(record(cores=1))
    paths = [save_report(tmp_path, report()), save_report(tmp_path, few)]
    (tmp_path / "README.md").write_text("no report", encoding="utf-8")
    (tmp_path / ".report.123.json").write_text("{", encoding="utf-8")
    assert load_reports(tmp_path) == {path.name: one for path, one in zip(sorted(paths), [few, report()], strict=True)}
    assert save_report(tmp_path, few).read_bytes() == paths[1].read_bytes()


def test_no_folder_means_no_report(tmp_path):
    assert load_reports(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "^wrong.json: no JSON .*write reports with `make sweep`"),
        ("[]", r"^wrong.json: the report is \[\]; expected all records of one machine"),
        (json.dumps(record()), "^wrong.json: the report has no 'cells'; it needs schema, hardware, cells"),
        (json.dumps(report()), "^wrong.json: the hardware in it calls for the name .*-cpu.json$"),
    ],
    ids=["no JSON", "no report", "a record", "another name"],
)
def test_a_file_that_is_no_report_is_named(tmp_path, text, message):
    save_report(tmp_path, report())
    (tmp_path / "wrong.json").write_text(text, encoding="utf-8")
    with pytest.raises(ReportError, match=message):
        load_reports(tmp_path)


def test_a_run_in_two_files_is_refused(tmp_path):
    save_report(tmp_path, report())
    save_report(tmp_path, report(record("cuda", called="GPU X")))  # another device: no conflict
    assert len(load_reports(tmp_path)) == 2
    save_report(tmp_path, report(record("cuda", called="GPU X"), record()))
    with pytest.raises(ReportError, match=r"cpu-gpu-x.json has a run of .* CPU cpu 1 64 too; keep one of them"):
        load_reports(tmp_path)
