"""What every refusal says, word by word, to the simplest wrong value of each argument.

`test_fuzz.py` asks that a refusal quotes what it got; refusals.yml holds what else it tells a reader.
`python tests/test_refusals.py` writes that file again: read the diff.
"""

import re
import tempfile
from pathlib import Path

import hypothesis
import pytest
import yaml
from test_fuzz import ARGUMENTS, FOLDERS, TABLE, folder  # noqa: F401 (a fixture)

SAID = Path(__file__).with_name("refusals.yml")
OURS = [(name, argument) for name, argument in ARGUMENTS if argument not in TABLE[name].torch]


def refusal(name, argument):
    """The error of a call with the simplest wrong value, without addresses in memory or the test's own folder."""
    one = TABLE[name]
    phases = list(hypothesis.Phase)  # also where others are the default: make mutate does not ask for the simplest
    quick = hypothesis.settings(database=None, derandomize=True, max_examples=1000, deadline=None, phases=phases)
    simplest = hypothesis.find(one.wrong[argument], lambda _: True, settings=quick)
    try:
        one.call(**one.valid() | {argument: simplest})
    except Exception as error:
        text = f"{type(error).__name__}: {error}".replace(str(FOLDERS[0]), "FOLDER")
        return re.sub(r"0x[0-9a-f]+", "0x…", text)
    raise AssertionError(f"{name}: {argument}={simplest!r} was taken")


@pytest.mark.parametrize(("name", "argument"), OURS, ids=[" ".join(pair) for pair in OURS])
def test_a_refusal_says_what_it_said(name, argument):
    assert refusal(name, argument) == yaml.safe_load(SAID.read_text(encoding="utf-8"))[f"{name}: {argument}"]


def test_every_text_has_its_refusal():
    assert set(yaml.safe_load(SAID.read_text(encoding="utf-8"))) == {f"{name}: {argument}" for name, argument in OURS}


if __name__ == "__main__":
    FOLDERS.append(Path(tempfile.mkdtemp()))
    texts = {f"{name}: {argument}": refusal(name, argument) for name, argument in OURS}
    SAID.write_text(yaml.safe_dump(texts, allow_unicode=True, sort_keys=False, width=120), encoding="utf-8")
