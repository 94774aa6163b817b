"""The files that hold the rest together: lock, environment, Makefile, workflows, floors; and what none may hold."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from checks import LOCAL, ROOT, asked, spied
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


WORKFLOWS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.y*ml")}


def rights(workflow):
    """What each job of a workflow may do beyond reading."""
    asked_for = {name: job.get("permissions", {}) for name, job in workflow["jobs"].items()}
    return {
        name: {right for right, kind in given.items() if kind != "read"} if isinstance(given, dict) else {given}
        for name, given in asked_for.items()
        if given
    }


def workflow_problems(text):
    """Where a workflow runs what may change under it, or lets a job do more than it must."""
    workflow = yaml.safe_load(text)
    writing = {name: may for name, may in rights(workflow).items() if may}
    if workflow.get("permissions") != {"contents": "read"}:
        yield "must begin with permissions, contents: read"
    if text.count("permissions: # ") != len(writing):
        yield f"must say why beside the permissions of {sorted(writing)}"
    versions = len(re.findall(r"uses: \S+ # v\d+(?:\.\d+)*$", text, re.M))
    for name, job in workflow["jobs"].items():
        steps = job.get("steps", [])
        for use in filter(None, (part.get("uses") for part in (job, *steps))):
            versions -= 1
            if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", use):
                yield f"{name}: {use} is not pinned by the hash of a commit"
        for step in steps:
            kept = step.get("with", {}).get("persist-credentials", True)
            if (
                step.get("uses", "").startswith("actions/checkout@")
                and kept
                and "contents" not in writing.get(name, ())
            ):
                yield f"{name}: leaves its token in the checkout"
            if "${{" in step.get("run", ""):
                yield f"{name}: pastes a value into a script, which may then run it; pass it through env"
    if versions:
        yield "must name the version of every action in a comment beside it"
    for secret in re.findall(r"\bsecrets\b[.\[\w'\"]*", text):
        if secret != "secrets.GITHUB_TOKEN":
            yield f"uses {secret}"
    if "pull_request_target" in text:
        yield "runs for strangers with the repository's rights"


@pytest.mark.parametrize("name", ["validate", "publish", "weekly"])
def test_a_workflow_runs_what_is_pinned_with_the_least_rights(name):
    assert list(workflow_problems(WORKFLOWS[name])) == []


def test_only_these_jobs_may_write():
    assert set(WORKFLOWS) == {"validate", "publish", "weekly"}
    jobs = {(name, job): may for name in WORKFLOWS for job, may in rights(yaml.safe_load(WORKFLOWS[name])).items()}
    assert jobs == {
        ("publish", "deploy"): {"pages", "id-token"},
        ("publish", "launch"): {"contents"},
        ("weekly", "report"): {"issues"},
    }


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (r"checkout@\w+ # v5.0.0", "checkout@v5 # v5.0.0", "is not pinned"),
        (r" # v6\.2\.0", "", "the version of every action"),
        (r"permissions:\n  contents: read", "permissions: write-all", "must begin with"),
        (r"permissions:\n  contents: read\n", "", "must begin with"),
        ("permissions: # here alone", "permissions:", "must say why"),
        ("permissions: # here alone\n      issues: write", "permissions: write-all", "must say why"),
        ("persist-credentials: false", "fetch-depth: 1", "leaves its token"),
        (r"run: python -m pip install", "run: echo ${{ github.ref }}; pip install", "pastes a value"),
        (r"\$\{\{ github.token \}\}", "${{ secrets.PYPI_TOKEN }}", "uses secrets.PYPI_TOKEN"),
        (r"workflow_dispatch:", "pull_request_target:", "strangers"),
    ],
)
def test_a_careless_workflow_is_noticed(old, new, problem):
    careless, changes = re.subn(old, new, WORKFLOWS["weekly"], count=1)
    assert changes == 1
    assert problem in " ".join(workflow_problems(careless))


def test_the_weekly_audit_reads_every_line_of_the_lock():
    steps = yaml.safe_load(WORKFLOWS["weekly"])["jobs"]["known-vulnerabilities"]["steps"]
    script = next(step["run"] for step in steps if step.get("id") == "audit").splitlines()[0]
    result = subprocess.run(
        ["bash", "-c", script.replace("> every-platform.txt", "")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    read = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    pins = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert len(read) == len(pins)
    assert all(re.fullmatch(r"\S+==\S+", line) for line in read)


# Each is told from other text by its first characters.
SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b(AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS
    r"|\bgh[pousr]_[0-9A-Za-z]{36}|\bgithub_pat_\w{22}"
    r"|\bglpat-[\w-]{20}"
    r"|\bxox[abprs]-[\w-]{10}"  # Slack
    r"|\bpypi-AgEI[\w-]{16}"
    r"|\bhf_[0-9A-Za-z]{30}"
    r"|\bsk-[\w-]{32}"
    r"|://[^\s/:@{}<>$]+:[^\s/:@{}<>$]+@"  # a password in an address
)


def test_no_tracked_file_holds_a_secret():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert ROOT / "requirements.lock" in files
    found = [(path, SECRETS.search(path.read_text(encoding="latin-1"))) for path in files if path.is_file()]
    assert [f"{path.relative_to(ROOT)}: {match.group()[:8]}…" for path, match in found if match] == []


@pytest.mark.parametrize(
    "parts",
    [
        ("-----BEGIN ", "OPENSSH PRIVATE KEY-----"),
        ("-----BEGIN ", "PRIVATE KEY-----"),
        ("AKIA", "0123456789ABCDEF"),
        ("ghp_", "a" * 36),
        ("github_pat_", "a" * 40),
        ("pypi-AgEI", "cHlwaS5vcmc" * 3),
        ("hf_", "a" * 34),
        ("https://user:", "word@example.org"),
    ],
)
def test_a_secret_is_noticed(parts):
    assert SECRETS.search(f'token = "{"".join(parts)}"')  # in parts, or this file would hold it
    assert not SECRETS.search(parts[0])


def test_no_module_of_the_package_asks_another_host(tmp_path):
    names = [f"lstm_utils.{path.stem}" for path in (ROOT / "lstm_utils").glob("*.py")]
    command = [sys.executable, "-c", f"import {', '.join(names)}"]
    subprocess.run(command, cwd=ROOT, env=os.environ | spied(tmp_path), check=True)
    assert asked(tmp_path) <= LOCAL


def test_a_run_that_executed_less_is_noticed():
    assert shortfalls(FLOORS, FLOORS) == []
    for kind, floor in FLOORS.items():
        assert shortfalls({**FLOORS, kind: floor - 1}, FLOORS) == [
            f"{floor - 1} {kind} passed, and the floor in tests/floors.json is {floor}"
        ]
    assert len(shortfalls({}, FLOORS)) == len(FLOORS)


@pytest.mark.long("starts a run of its own")
def test_a_run_of_no_notebook_is_red(tmp_path):
    for folder in ("tests", "notebooks"):
        (tmp_path / folder).mkdir()
    for name in ("conftest.py", "checks.py", "floors.json"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    (tmp_path / "tests" / "test_one.py").write_text("def test_one():\n    assert True\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests", "notebooks", "--nbval"]
    command += ["--override-ini", f"pythonpath='{ROOT / 'book'}'"]  # conftest.py imports pdf
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
    for target in (
        "book", "pdf", "test", "stress", "pages", "lab", "notebooks", "sweep", "bench", "mutate", "versions", "lint",
        "clean",
    ):  # fmt: skip
        assert re.search(rf"^{target} +\S", listed, re.M)


def test_another_torch_gets_an_environment_of_its_own(bare_checkout):
    assert "Say which torch: make versions TORCH=2.14.1" in make(bare_checkout, "versions").stderr
    python = fake_python(bare_checkout, f'echo "$0 $*" >> {bare_checkout}/said; {COPIES_ITSELF}')
    result = make(bare_checkout, "versions", "TORCH=9.8.7", f"PYTHON={python}", "VERSIONS_ARGS=--folder x")
    assert result.returncode == 0, result.stderr
    [lock] = (bare_checkout / "_build" / "versions").glob("9.8.7-*.lock")
    assert lock.read_text(encoding="utf-8") == LOCK.replace("torch==2.13.0", "torch==9.8.7")
    *_, installed, _, last = (bare_checkout / "said").read_text(encoding="utf-8").splitlines()
    assert installed.endswith(f"-r {lock.relative_to(bare_checkout)}")
    assert last == f"{lock.relative_to(bare_checkout).with_suffix('')}/bin/python tests/versions.py --folder x"
    assert not (bare_checkout / ".venv").exists()


def fake_python(folder, script):
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


# Where it is to make an environment, it leaves itself in it.
COPIES_ITSELF = 'case "$*" in *"-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python";; esac'


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
