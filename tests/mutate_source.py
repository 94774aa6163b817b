"""Mutants of `lstm_utils`: mutmut changes one thing at a time, and mypy or the tests of the changed module must notice.

`make mutate MUTATE_ARGS="spec sequences"` runs these modules, `MUTATE_ARGS=all` every module (hours); `--again` tries
only what survived the last time, where the source is still the same. How each fared stands in results/mutation.json;
tests/survivors.yml says of every mutant that nobody noticed why that is no fault. mutmut changes the bodies of
functions and their defaults: not what stands outside them, nor a function under a decorator other than staticmethod
and classmethod.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lstm_utils"
REPORT = ROOT / "results" / "mutation.json"
SURVIVORS = ROOT / "tests" / "survivors.yml"
WORK = ROOT / "_build" / "mutation"
ENOUGH = 0.9
# Every function is called by one of mutmut's own: a warning cannot point at the caller then, and a process that a test
# starts in another folder looks there for mutmut's settings, in vain.
LEFT_OUT = "not points_at_the_caller and not killed_sweep_goes_on and not workers_of_a_cluster"
# The source of these modules' functions is run in another process, which does not know mutmut's.
LEFT_OUT_TOO = dict.fromkeys(
    ["other_runtimes", "torch_runtimes"], " and not fresh_process and not start_without_pytorch"
)
# Where the tests of a module do not have its name.
TESTS = {
    "__main__": ["main"],
    "alternatives": ["bench"],
    "detectors": ["diagnose"],
    "findings": ["diagnose"],
    "memory": ["measure"],
    "onnx_calls": ["onnx_export"],
    "onnx_files": ["onnx_export"],
    "onnx_trials": ["onnx_export"],
    "other_runtimes": ["runtimes"],
    "padding": ["diagnose"],
    "probe": ["diagnose"],
    "recognition": ["diagnose"],
    "spec": ["spec", "main"],
    "spectrum": ["speech", "extremes"],
    "steps": ["diagnose"],
    "torch_runtimes": ["runtimes"],
}
# The plugin for unraisable exceptions collects all garbage, which takes longer than most tests.
# Fork only from a process that has never used torch's threads: its children would wait for them for ever.
SETTINGS = """
[tool.mutmut]
source_paths = ["lstm_utils"]
only_mutate = ["lstm_utils/{module}.py"]
also_copy = {copied}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:unraisableexception", "-k", "{left_out}"]
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"
timeout_constant = 20.0
timeout_multiplier = 5.0
use_git_change_detection = false
type_check_command = {types}
"""
# In the folder of a run: what noticed a mutant before is asked first, and nobody needs the simplest example.
SOONER = """
from collections import Counter
from pathlib import Path
from hypothesis import Phase, settings
settings.register_profile("sooner", phases=[Phase.explicit, Phase.generate])
settings.load_profile("sooner")
noticed = Path(__file__).with_name("noticed")
noticed.touch()
def pytest_collection_modifyitems(items):
    times = Counter(noticed.read_text(encoding="utf-8").splitlines())
    items.sort(key=lambda item: -times[item.nodeid])
def pytest_runtest_logreport(report):
    if report.failed:
        with noticed.open("a", encoding="utf-8") as file:
            file.write(report.nodeid + "\\n")
"""
# Asks mypy in the folder of a run, and passes on what it says of mutants alone: where mutmut hides the type of a
# function, mypy also minds those who call it, and then the unchanged function as much as its mutants.
TYPES = """
import ast, json, subprocess, sys
said = subprocess.run([sys.executable, "-m", *sys.argv[1:]], capture_output=True, text=True).stdout.splitlines()
errors = [error for error in map(json.loads, said) if error["severity"] == "error"]
found = []
for file in {error["file"] for error in errors}:
    tree = ast.parse(open(file, encoding="utf-8").read())
    ours = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and "__mutmut_" in one.name]
    for error in errors:
        for one in ours:
            if error["file"] == file and one.lineno <= error["line"] <= one.end_lineno:
                found.append((*one.name.split("__mutmut_"), error))
unchanged = {(name, error["message"]) for name, which, error in found if which == "orig"}
for name, which, error in found:
    if (name, error["message"]) not in unchanged:
        print(json.dumps(error))
"""
TYPED = "caught by type check"  # `make test` asks mypy first
CAUGHT = ("killed", "timeout", "segfault", TYPED)
# Run with mutmut at hand, in the folder of a run: every mutant, how it fared, and its lines before and after.
READ = """
import json, sys
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import orig_function_and_class_names_from_key as names
codes = json.load(open(f"mutants/lstm_utils/{sys.argv[1]}.py.meta"))["exit_code_by_key"]
found = []
for key, code in codes.items():
    function, of = names(key)
    status = "segfault" if code == -6 else status_by_exit_code[code]  # C++ aborts the process, and the tests with it
    caught = status in sys.argv[2:]
    diff = [] if caught else get_diff_for_mutant(key).splitlines()[2:]
    found.append((key, f"{of}.{function}" if of else function, status, diff))
json.dump(found, sys.stdout)
"""


def modules() -> list[str]:
    """Every module that has functions to change."""
    return sorted(path.stem for path in PACKAGE.glob("*.py") if re.search(r"^ *def ", path.read_text(), re.M))


def tests_of(module: str) -> list[str]:
    refuses = "raise " in (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    return [f"tests/test_{name}.py" for name in [*TESTS.get(module, [module]), *["refusals"] * refuses]]


def fingerprint(module: str) -> str:
    """What tells whether a module is still the one that was mutated."""
    return hashlib.sha256((PACKAGE / f"{module}.py").read_bytes()).hexdigest()[:16]


def lay_out(folder: Path, module: str) -> None:
    """A copy of what is tracked, in which mutmut may change what it likes."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    shutil.rmtree(folder, ignore_errors=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    # Fewer random examples: what 20 do not notice counts as unnoticed. And nothing made for several tests: a function
    # that makes it would be tested by the first of them alone.
    for path in (folder / "tests").glob("*.py"):
        text = re.sub(r"max_examples=(\w+)", r"max_examples=min(\1, 20)", path.read_text(encoding="utf-8"))
        text = re.sub(r'\(scope="module"\)(\ndef \w+\(tmp_path_factory)', r"\1", text)
        path.write_text(text, encoding="utf-8")
    (folder / "conftest.py").write_text(SOONER, encoding="utf-8")
    copied = sorted({"conftest.py", *(name.split("/")[0] for name in names)} - {"tests", "pyproject.toml"})
    asked = ["mypy", "--output=json", "--no-warn-unused-ignores", f"--cache-dir={WORK / 'mypy'}", "lstm_utils"]
    given = {"copied": copied, "tests": tests_of(module), "types": [sys.executable, "-c", TYPES, *asked]}
    left_out = LEFT_OUT + LEFT_OUT_TOO.get(module, "")
    settings = SETTINGS.format(
        module=module, left_out=left_out, **{name: json.dumps(value) for name, value in given.items()}
    )
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(settings)


def run(module: str, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Mutate a module; its entry in the report.

    Args:
        module: its name.
        before: its last entry, made of the same source: only what survived then is tried, against the tests of now.

    Raises:
        RuntimeError: mutmut gave up, or left a mutant untried.
    """
    folder = WORK / module
    lay_out(folder, module)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    tried = sorted(before["survived"]) if before else []
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(os.cpu_count()), *tried]
    with (WORK / f"{module}.log").open("w", encoding="utf-8") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    command = [sys.executable, "-c", READ, module, *CAUGHT]
    read = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if read.returncode:
        raise RuntimeError(f"mutmut made no mutants of {module}; see {WORK / module}.log\n{read.stderr[-500:]}")
    found = [one for one in json.loads(read.stdout) if not before or one[0] in before["survived"]]
    count = Counter("missed" if status in ("survived", "no tests") else status for _, _, status, _ in found)
    if not found or set(count) - {*CAUGHT, "missed"}:
        raise RuntimeError(f"mutmut did not try every mutant of {module}, {dict(count)}; see {WORK / module}.log")
    shutil.rmtree(folder)
    survived = {key: f"{name}: {change(diff)}" for key, name, status, diff in found if status not in CAUGHT}
    earlier = Counter({name: before[name] for name in (*CAUGHT, "mutants")} if before else {})
    return {
        "source": fingerprint(module),
        "tests": tests_of(module),
        "mutants": earlier["mutants"] or len(found),
        **{name: earlier[name] + count[name] for name in CAUGHT},
        "survived": dict(sorted(survived.items())),
    }


def change(diff: list[str]) -> str:
    """A change as one line: what stood there, and what stands there now."""
    old, new = (" ".join(line[1:].strip() for line in diff if line.startswith(sign)) for sign in "-+")
    return f"{old} ⇒ {new}"


def share(entry: dict[str, Any]) -> float:
    return 1 - len(entry["survived"]) / entry["mutants"]


def problems(report: dict[str, Any], justified: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What makes the run red, one line each.

    Args:
        report: what `run` returned for each module that was run.
        justified: tests/survivors.yml: for each module, or "every" one, groups of surviving changes that share a
            reason; each change as it is printed, or all those in which one of the group's patterns is found.
    """
    lines, used = [], set()
    for module, entry in report.items():
        if share(entry) < ENOUGH:
            lines.append(f"{module}: {share(entry):.1%} of its mutants are noticed, and {ENOUGH:.0%} must be")
        for one in sorted(set(entry["survived"].values())):
            reasons = [reason for reason in explains(justified, module) if reason[1](one)]
            used |= {name for name, _ in reasons}
            if not reasons:
                lines.append(f"{module}: survives, and nothing says why: {one}")
    for module, groups in justified.items():
        if module not in (*modules(), "every"):
            lines.append(f"{module}: justified, and is no module")
        lines += [f"{module}: justified without a reason: {group}" for group in groups if not group["why"].strip()]
    # What is said of a module that was never run stands until it is.
    every = {name for module in report for name, _ in explains(justified, module)}
    return lines + [f"{module}: justified, and does not survive: {what}" for module, what in sorted(every - used)]


def explains(
    justified: dict[str, list[dict[str, Any]]], module: str
) -> Iterator[tuple[tuple[str, str], Callable[[str], object]]]:
    """What tells whether a change is one that the file justifies, for this module or for every one, and its name."""
    for where in {module, "every"}:
        for group in justified.get(where, []):
            for one in group.get("changes", []):
                yield (where, one), one.__eq__
            for pattern in group.get("patterns", []):
                yield (where, pattern), re.compile(pattern).search


def main(names: list[str], again: bool = False) -> int:
    """Mutate these modules, or try `again` what survived in them; then check the report and the justifications."""
    report = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {}
    WORK.mkdir(parents=True, exist_ok=True)
    for module in names:
        same = again and module in report and report[module]["source"] == fingerprint(module)
        if same and not report[module]["survived"]:
            continue
        report[module] = run(module, report[module] if same else None)
        print(f"{module}: {report[module]['mutants']} mutants, {share(report[module]):.1%} noticed", flush=True)
        REPORT.write_text(
            json.dumps(dict(sorted(report.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    total = sum(entry["mutants"] for entry in report.values())
    missed = sum(len(entry["survived"]) for entry in report.values())
    print(f"{len(report)} of {len(modules())} modules were run: {total} mutants, {total - missed} noticed")
    if never := [module for module in modules() if module not in report]:
        print(f"never run: {', '.join(never)}")
    if changed := [module for module in report if report[module]["source"] != fingerprint(module)]:
        print(f"changed since they were run: {', '.join(changed)}")
    found = problems(report, yaml.safe_load(SURVIVORS.read_text(encoding="utf-8")))
    print(*found, sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
