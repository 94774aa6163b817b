"""The files that hold the rest together: lock, environment, Makefile, floors."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from checks import ROOT
from conftest import FLOORS, shortfalls

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_pins_everything_and_names_no_address():
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    marker = r"( ; (python_version|sys_platform) [>=]= \"[\w.]+\")?"
    assert all(re.fullmatch(rf"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+{marker}", line) for line in lines)
    assert {"torch==2.13.0", "jupyter-book==1.0.4.post1"} <= set(lines)


def test_the_lock_has_every_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {canonical(re.match(r"[\w.-]+", requirement).group()) for requirement in declared}
    assert names - {"lstm-utils"} <= {canonical(line.partition("==")[0]) for line in LOCK.splitlines()}


def test_conda_installs_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["dependencies"][-1]["pip"] == ["-r requirements.lock", "-e ."]


@pytest.mark.parametrize("name", ["validate", "publish", "weekly"])
def test_every_action_is_pinned_by_hash(name):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    uses = re.findall(r"uses: (\S+)", text)
    assert uses
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in uses)
    assert "permissions" in yaml.safe_load(text)


def test_a_run_that_executed_less_is_noticed():
    assert shortfalls(FLOORS, FLOORS) == []
    for kind, floor in FLOORS.items():
        assert shortfalls({**FLOORS, kind: floor - 1}, FLOORS) == [
            f"{floor - 1} {kind} passed, and the floor in tests/floors.json is {floor}"
        ]
    assert len(shortfalls({}, FLOORS)) == len(FLOORS)


def test_a_run_of_no_notebook_is_red(tmp_path):
    for folder in ("tests", "notebooks"):
        (tmp_path / folder).mkdir()
    for name in ("conftest.py", "floors.json"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    (tmp_path / "tests" / "test_one.py").write_text("def test_one():\n    assert True\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests", "notebooks", "--nbval"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in result.stdout
    assert "FLOOR: 0 cells passed" in result.stdout
    assert result.returncode == 1


@pytest.fixture
def bare_checkout(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder, *arguments):
    # A make above this one would pass its own flags and variables on.
    clean = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    return subprocess.run(["make", *arguments], cwd=folder, env=clean, capture_output=True, text=True, check=False)


def test_make_alone_lists_every_target(bare_checkout):
    listed = make(bare_checkout).stdout
    for target in ("book", "pdf", "test", "lab", "notebooks", "sweep", "bench", "lint", "clean"):
        assert re.search(rf"^{target} +\S", listed, re.M)


def fake_python(folder, script):
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "was not found; install Python 3.11 or newer"),
        ('case "$*" in --version) echo Python 3.9.1;; *) exit 1;; esac', "Python 3.9.1 is too old"),
        ('case "$*" in *ensurepip*) exit 1;; esac', "lacks the venv module"),
        (
            'case "$*" in *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;; *"pip install"*) exit 9;; esac',
            "The packages could not be installed; is there a network?",
        ),
        (
            'case "$*" in *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;; '
            '*"pip install"*) echo "ERROR: Could not find a version" >&2; exit 1;; esac',
            "The packages could not be installed; is there a network?",
        ),
    ],
    ids=["missing", "old", "no venv", "killed", "no network"],
)
def test_a_missing_tool_is_one_clear_line(bare_checkout, script, message):
    python = "no-such-python" if script is None else fake_python(bare_checkout, script)
    result = make(bare_checkout, "book", f"PYTHON={python}")
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (bare_checkout / ".venv" / ".installed").exists()
