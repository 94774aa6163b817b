"""Mutants of `lstm_utils`: mutmut changes one thing at a time, and mypy or the tests of the changed module must notice.

`make mutate MUTATE_ARGS="spec sequences"` runs these modules, `MUTATE_ARGS=all` every module (hours). How each fared
when it was last run stands in results/mutation.json; tests/survivors.yml says of every mutant that nobody noticed why
that is no fault. mutmut changes the bodies of functions and their defaults: not what stands outside them, nor a
function under a decorator other than staticmethod and classmethod.
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
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lstm_utils"
REPORT = ROOT / "results" / "mutation.json"
SURVIVORS = ROOT / "tests" / "survivors.yml"
WORK = ROOT / "_build" / "mutation"
ENOUGH = 0.9
# Where the tests of a module do not have its name.
TESTS = {
    "__main__": ["main"],
    "alternatives": ["bench"],
    "arguments": ["refusals"],
    "detectors": ["diagnose"],
    "findings": ["diagnose"],
    "memory": ["measure"],
    "onnx_calls": ["onnx_export"],
    "onnx_files": ["onnx_export"],
    "onnx_trials": ["onnx_export"],
    "other_runtimes": ["runtimes"],
    "padding": ["diagnose"],
    "probe": ["diagnose"],
    "recognition": ["speech"],
    "spec": ["spec", "main"],
    "spectrum": ["speech", "extremes"],
    "steps": ["diagnose"],
    "torch_runtimes": ["runtimes"],
    "trees": ["diagnose", "quantization"],
}
# Fork only from a process that has never used torch's threads: its children would wait for them for ever.
SETTINGS = """
[tool.mutmut]
source_paths = ["lstm_utils"]
only_mutate = ["lstm_utils/{module}.py"]
also_copy = {copied}
pytest_add_cli_args = ["-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"
timeout_multiplier = 30.0
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
    status = status_by_exit_code[code]
    caught = status in sys.argv[2:]
    diff = [] if caught else get_diff_for_mutant(key).splitlines()[2:]
    found.append((f"{of}.{function}" if of else function, status, diff))
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
    # Fewer random examples: what 20 do not notice counts as unnoticed.
    for path in (folder / "tests").glob("*.py"):
        text = re.sub(r"max_examples=(\w+)", r"max_examples=min(\1, 20)", path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
    (folder / "conftest.py").write_text(SOONER, encoding="utf-8")
    copied = sorted({"conftest.py", *(name.split("/")[0] for name in names)} - {"tests", "pyproject.toml"})
    types = [sys.executable, "-m", "mypy", "--output=json", "--no-warn-unused-ignores", f"--cache-dir={WORK / 'mypy'}"]
    given = {"copied": copied, "tests": tests_of(module), "types": [*types, "lstm_utils"]}
    settings = SETTINGS.format(module=module, **{name: json.dumps(value) for name, value in given.items()})
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(settings)


def run(module: str) -> dict[str, Any]:
    """Mutate a module; its entry in the report.

    Raises:
        RuntimeError: mutmut gave up, or left a mutant untried.
    """
    folder = WORK / module
    lay_out(folder, module)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(os.cpu_count())]
    with (WORK / f"{module}.log").open("w", encoding="utf-8") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    command = [sys.executable, "-c", READ, module, *CAUGHT]
    read = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if read.returncode:
        raise RuntimeError(f"mutmut made no mutants of {module}; see {WORK / module}.log\n{read.stderr[-500:]}")
    found = json.loads(read.stdout)
    count = Counter("missed" if status in ("survived", "no tests") else status for _, status, _ in found)
    if not found or set(count) - {*CAUGHT, "missed"}:
        raise RuntimeError(f"mutmut did not try every mutant of {module}, {dict(count)}; see {WORK / module}.log")
    shutil.rmtree(folder)
    return {
        "source": fingerprint(module),
        "tests": tests_of(module),
        "mutants": len(found),
        "killed": count["killed"] + count["segfault"],
        "timeout": count["timeout"],
        "typed": count[TYPED],
        "survived": sorted({f"{name}: {change(diff)}" for name, status, diff in found if status not in CAUGHT}),
        "missed": count["missed"],
    }


def change(diff: list[str]) -> str:
    """A change as one line: what stood there, and what stands there now."""
    old, new = (" ".join(line[1:].strip() for line in diff if line.startswith(sign)) for sign in "-+")
    return f"{old} ⇒ {new}"


def share(entry: dict[str, Any]) -> float:
    return 1 - entry["missed"] / entry["mutants"]


def problems(report: dict[str, Any], justified: dict[str, dict[str, str]]) -> list[str]:
    """What makes the run red, one line each.

    Args:
        report: what `run` returned for each module that was run.
        justified: for each module, every surviving change with why it is no fault.
    """
    lines = []
    for module, entry in report.items():
        known = justified.get(module, {})
        if share(entry) < ENOUGH:
            lines.append(f"{module}: {share(entry):.1%} of its mutants are noticed, and {ENOUGH:.0%} must be")
        lines += [f"{module}: survives, and nothing says why: {one}" for one in entry["survived"] if one not in known]
        lines += [f"{module}: justified, and does not survive: {one}" for one in known if one not in entry["survived"]]
        lines += [f"{module}: justified without a reason: {one}" for one, why in known.items() if not why.strip()]
    lines += [f"{module}: justified, and was not run" for module in justified if module not in report]
    return lines


def justifications(text: str) -> dict[str, dict[str, str]]:
    """Read tests/survivors.yml: for each module groups of changes that share a reason."""
    entries = yaml.safe_load(text) or {}
    return {
        module: {one: group["why"] for group in groups for one in group["changes"]}
        for module, groups in entries.items()
    }


def main(names: list[str]) -> int:
    """Mutate these modules, and check the report and the justifications as a whole."""
    report = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {}
    WORK.mkdir(parents=True, exist_ok=True)
    for module in names:
        report[module] = run(module)
        print(f"{module}: {report[module]['mutants']} mutants, {share(report[module]):.1%} noticed", flush=True)
        REPORT.write_text(
            json.dumps(dict(sorted(report.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    total = sum(entry["mutants"] for entry in report.values())
    missed = sum(entry["missed"] for entry in report.values())
    print(f"{len(report)} of {len(modules())} modules were run: {total} mutants, {total - missed} noticed")
    if never := [module for module in modules() if module not in report]:
        print(f"never run: {', '.join(never)}")
    if changed := [module for module in report if report[module]["source"] != fingerprint(module)]:
        print(f"changed since they were run: {', '.join(changed)}")
    found = problems(report, justifications(SURVIVORS.read_text(encoding="utf-8")))
    print(*found, sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
