"""Mutants of the book: each chapter runs once, under nbval, and everything it promises is then altered, one at a time.

- every number, shape, truth value and line among its stored outputs: nbval's own comparison must tell the difference;
- every verdict of the audit that it asserts, alone and with the name of the field that explains it;
- every message, text and finding of a pitfall that it shows;
- every answer to an exercise: its check must say "Not yet".

`make mutate` runs it on every chapter; what nobody notices is listed, and makes it red.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import os
import pickle
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from checks import NOTEBOOKS, ROOT, answer_of, ask, asserted_claims, audit_problems, tags
from nbval.plugin import IPyNbCell, coalesce_streams

from lstm_utils.claims import EXPLAINED_BY, AuditError, claims, parse_claims
from lstm_utils.findings import Diagnosis
from lstm_utils.pitfalls import Pitfall, PitfallError, pitfall

REPORT = ROOT / "results" / "mutation_book.json"
QUIET = "ignore::pytest.PytestAssertRewriteWarning"  # nbval is imported here, before pytest loads it as a plugin
# What changes an answer and leaves it right all the same: the exercises, the ways, and why.
STILL_RIGHT: dict[str, tuple[str, str]] = {
    "1.2": (
        "offset, first part offset, last part offset",
        "every gate that is shut or open by far keeps the memory: a bias of -29 does as well as one of -30",
    ),
    "8.2": (
        "offset, opposite, first part offset, last part offset",
        "what the module answers is not asked, only from which steps, and these keep that",
    ),
}
# Runs in the kernel before the chapter: notes what the audit and the pitfalls are given, and changes nothing.
SPY = """
def spy():
    import sys
    from lstm_utils import claims, pitfalls
    sys.heard = []
    def note(kind, method):
        def noting(self, *given, **named):
            result = getattr(kind, "plain_" + method)(self, *given, **named)
            sys.heard.append((method, self.id, given, named))
            return result
        setattr(kind, "plain_" + method, getattr(kind, method))
        setattr(kind, method, noting)
    note(claims.Claim, "expect")
    for method in ("expect", "happens", "show"):
        note(pitfalls.Pitfall, method)
spy()
del spy
"""
HEARD = """
import base64, pickle, sys
print(base64.b64encode(pickle.dumps(sys.heard)).decode())
sys.heard.clear()
"""
BREAKING = """
import sys, types
sys.breaking = types.ModuleType("breaking")
exec(compile({source!r}, "broken_answers.py", "exec"), vars(sys.breaking))
"""
# `answer` is the chapter's name for it, and `check` the source of the cell that checks it.
BREAK = """
def try_broken(answer, check):
    import contextlib, io, json, sys
    own, found = globals(), []
    right, state = own[answer], sys.breaking.randomness()
    def verdict():
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            exec(check, own)
        return text.getvalue()
    for way, wrong, differed in sys.breaking.broken_answers(right):
        own[answer] = wrong
        sys.breaking.restore(state)
        said = verdict()
        if differed():
            found.append((way, said))
    own[answer] = right
    sys.breaking.restore(state)
    found.append(("", verdict()))
    sys.breaking.restore(state)
    print(json.dumps(found))
try_broken({answer!r}, {check!r})
del try_broken
"""


# --- what is altered --------------------------------------------------------------------------------------------------


def other_digit(match: re.Match[str]) -> str:
    return match.group()[:-1] + str((int(match.group()[-1]) + 1) % 10)


def other_truth(match: re.Match[str]) -> str:
    return "False" if match.group() == "True" else "True"


def one_more_dimension(match: re.Match[str]) -> str:
    return f"(1, {match.group()[1:]}"


def other_word(match: re.Match[str]) -> str:
    """A line with its longest word in other letters."""
    longest = max(re.findall(r"[^\W\d_]{2,}", match.group()), key=len, default="")
    return match.group().replace(longest, longest.swapcase(), 1) if longest else match.group()


ALTERED: dict[str, tuple[str, Callable[[re.Match[str]], str]]] = {
    "numbers": (r"\d+([.,]\d+)*", other_digit),
    "shapes": (r"\(\d+(, \d+)*,?\)", one_more_dimension),
    "truth values": (r"\b(True|False)\b", other_truth),
    "messages": (r"[^\n]*\w[^\n]*", other_word),
    "missing lines": (r"[^\n]+\n?", lambda _: ""),
}


def mutants(text: str) -> Iterator[tuple[str, str]]:
    """The kind of each mutant, and the text with one thing altered."""
    for kind, (pattern, change) in ALTERED.items():
        for match in re.finditer(pattern, text):
            altered = text[: match.start()] + change(match) + text[match.end() :]
            if altered != text:
                yield kind, altered


def with_text(outputs: list[Any], change: Callable[[str], str]) -> list[Any]:
    """Outputs with each of their texts changed, where it is text that nbval compares."""
    outputs = copy.deepcopy(outputs)
    for output in outputs:
        for holder, key in text_keys(output):
            holder[key] = change(holder[key])
    return outputs


def text_keys(output: Any) -> list[tuple[Any, str]]:
    data = output.get("data", {})
    names = [(data, key) for key in data if isinstance(data[key], str) and not key.startswith("image/")]
    return [*names, *([(output, "text")] if "text" in output else [])]


class Mutants:
    """A plugin of pytest, beside nbval: what it altered of each chapter, and which of that nobody noticed."""

    def __init__(self) -> None:
        self.made: dict[str, Counter[str]] = defaultdict(Counter)
        self.ignored: dict[str, Counter[str]] = defaultdict(Counter)
        # What has several witnesses is noticed when one of them notices it.
        self.noticed: dict[tuple[str, str, str], bool] = {}
        self.missed: list[str] = []
        self.failed: set[str] = set()

    def count(self, chapter: str, kind: str, caught: bool, what: str) -> None:
        self.made[chapter][kind] += 1
        if not caught:
            self.missed.append(f"{chapter}: {kind}: {what}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        assert isinstance(item, IPyNbCell)
        if item.cell_num == 0:
            ask(item, SPY)
            ask(item, BREAKING.format(source=Path(__file__).with_name("broken_answers.py").read_text("utf-8")))
        yield  # nbval runs the cell and compares it; what follows is not reached where they differ
        item.format_output_compare = lambda *_: None  # the verdict is enough, and finding the words for it takes long
        chapter = item.parent.path.stem
        self.outputs(item, chapter)
        for method, name, given, named in pickle.loads(base64.b64decode(ask(item, HEARD))):
            if method == "expect" and named:
                self.verdicts(item, chapter, name, named)
            else:
                self.symptoms(item, chapter, pitfall(name), method, given)
        if "check" in tags(item.cell):
            self.answers(item, chapter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(Path(report.nodeid.partition("::")[0]).stem)

    def differs(self, item: IPyNbCell, fresh: list[Any], stored: list[Any]) -> bool:
        """Whether nbval would fail the cell."""
        return bool(item.options["check"]) and not item.compare_outputs(fresh, coalesce_streams(stored))

    def outputs(self, item: IPyNbCell, chapter: str) -> None:
        stored = item.cell.outputs
        for number, output in enumerate(stored):
            for holder, key in text_keys(output):
                for kind, altered in mutants(holder[key]):
                    if not item.options["check"]:
                        self.ignored[chapter][kind] += 1
                        continue
                    one = copy.copy(output)
                    if holder is output:
                        one["text"] = altered
                    else:
                        one["data"] = {**holder, key: altered}
                    others = [*stored[:number], one, *stored[number + 1 :]]
                    self.count(chapter, kind, self.differs(item, item.test_outputs, others), altered)

    def shows(self, item: IPyNbCell, old: str, new: str) -> bool:
        """Whether nbval would fail the cell if it said something else."""
        fresh = with_text(item.test_outputs, lambda text: text.replace(old, new))
        return self.differs(item, fresh, item.cell.outputs)

    def verdicts(self, item: IPyNbCell, chapter: str, name: str, facts: dict[str, Any]) -> None:
        for what, entry in flipped(name):
            try:
                claim = parse_claims(yaml.safe_dump([entry]))[name]
                old, new = said(claims()[name].expect, facts), said(claim.expect, facts)
            except (ValueError, AuditError):
                caught = True
            else:
                caught = self.shows(item, old, new)
            self.note(chapter, "verdicts", f"{name} {what}", caught)

    def symptoms(self, item: IPyNbCell, chapter: str, right: Pitfall, method: str, given: tuple[Any, ...]) -> None:
        symptom = getattr(right, method)(*given)
        for what, wrong, seen in astray(right, method, given):
            try:
                other = getattr(wrong, method)(*seen)
            except PitfallError:
                caught = True
            else:
                pairs = [(str(symptom), str(other)), (symptom._repr_markdown_(), other._repr_markdown_())]
                caught = any(old != new and self.shows(item, old, new) for old, new in pairs)
            self.note(chapter, "pitfalls", f"{right.id} {what}", caught)

    def answers(self, item: IPyNbCell, chapter: str) -> None:
        answer = answer_of(item)
        *found, (_, again) = json.loads(ask(item, BREAK.format(answer=answer, check=item.cell.source)))
        assert again.startswith("Passed"), f"{chapter}: {answer} is right, and fails after the wrong ones: {again}"
        number = re.search(r"\d+\.\d+", again).group()
        self.count(chapter, "answers", bool(found), f"{number}: no way to break the answer was found")
        for way, verdict in found:
            caught = verdict.startswith("Not yet")
            if way in STILL_RIGHT.get(number, ("", ""))[0].split(", "):
                self.count(chapter, "answers still right", not caught, f"{number}: {way}: noticed all the same")
            else:
                self.count(chapter, "answers", caught, f"{number}: {way}: {verdict.strip()}")

    def note(self, chapter: str, kind: str, what: str, caught: bool) -> None:
        key = chapter, kind, what
        self.noticed[key] = self.noticed.get(key, False) or caught

    def finish(self) -> None:
        for (chapter, kind, what), caught in self.noticed.items():
            self.count(chapter, kind, caught, what)

    def record(self, chapters: set[str]) -> None:
        """Write down what was altered in these chapters and noticed; one that missed something leaves the report."""
        report = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {}
        for chapter in chapters:
            if any(line.startswith(f"{chapter}: ") for line in self.missed):
                report.pop(chapter, None)
            else:
                report[chapter] = {"noticed": self.made[chapter], "not compared": self.ignored[chapter]}
        REPORT.write_text(json.dumps(dict(sorted(report.items())), indent=1) + "\n", encoding="utf-8")


def flipped(name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A claim's entry with each other verdict: alone, and with the field that explains it renamed to fit."""
    claim = claims()[name]
    common = {"id": claim.id, "section": claim.section, "says": claim.says, "chapter": claim.chapter}
    own = EXPLAINED_BY[claim.verdict]
    for verdict, field in EXPLAINED_BY.items():
        if verdict != claim.verdict:
            yield f"{verdict}, alone", common | {"verdict": verdict, own: claim.explanation}
            yield f"{verdict}, explained", common | {"verdict": verdict} | ({field: claim.explanation} if field else {})


def said(call: Callable[..., object], facts: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        call(**facts)
    return text.getvalue()


def astray(right: Pitfall, method: str, given: tuple[Any, ...]) -> Iterator[tuple[str, Pitfall, tuple[Any, ...]]]:
    """What is altered, and the pitfall and what it is given after that: the record first, then what was seen."""

    def reworded(text: str) -> list[str]:
        return [altered for kind, altered in mutants(text) if kind in ("numbers", "messages")]

    for number, message in enumerate(right.messages):
        for altered in reworded(message):
            messages = (*right.messages[:number], altered, *right.messages[number + 1 :])
            yield f"message: {altered}", replace(right, messages=messages), given
    for field in ("silent", "cause", "cure", "undetected", "unexecuted"):
        for altered in reworded(getattr(right, field)):
            yield f"{field}: {altered}", replace(right, **{field: altered}), given
    for number, one in enumerate(given):
        if isinstance(one, Diagnosis):
            others = [replace(one, findings=tuple(f for f in one.findings if f.pitfall != right.id))]
            others += [
                replace(one, findings=(*one.findings[:n], replace(f, seen=altered), *one.findings[n + 1 :]))
                for n, f in enumerate(one.findings)
                if f.pitfall == right.id
                for altered in reworded(f.seen)
            ]
        elif isinstance(one, str):
            others = reworded(one)
        else:  # whether a silent pitfall happened
            others = [not one]
        for other in others:
            yield f"seen by {method}: {other}", right, (*given[:number], other, *given[number + 1 :])


def unasserted() -> Iterable[str]:
    """Claims without a cell whose verdict could be flipped, and the audit would not say so."""
    asserted = {claim for path in NOTEBOOKS for claim in asserted_claims(path)}
    for name in set(claims()) - asserted:
        for what, entry in flipped(name):
            with contextlib.suppress(ValueError):
                other = parse_claims(yaml.safe_dump([entry]))[name]
                if other.verdict != "open" and not audit_problems({**claims(), name: other}, NOTEBOOKS):
                    yield f"{name} {what}"


def main(paths: list[Path]) -> int:
    """Mutate these chapters; whether something went unnoticed."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the stored outputs are a CPU's
    plugin = Mutants()
    options = ["--nbval", "--nbval-cell-timeout=300", f"--rootdir={ROOT}", "-q", "-p", "no:cacheprovider", "-W", QUIET]
    pytest.main([*options, *map(str, paths)], plugins=[plugin])
    plugin.finish()
    plugin.missed += unasserted()
    for chapter in {path.stem for path in paths}:
        if chapter in plugin.failed or not plugin.made[chapter]:
            plugin.missed.append(f"{chapter}: does not agree with its stored outputs, so what it notices is not known")
    for kind, count in sum(plugin.made.values(), Counter()).items():
        print(f"{kind}: {count} altered, {count - sum(f': {kind}: ' in line for line in plugin.missed)} noticed")
    ignored = sum(map(Counter.total, plugin.ignored.values()))
    print(f"not compared, since their cells are tagged nbval-ignore-output: {ignored}")
    print(*plugin.missed, sep="\n")
    plugin.record({path.stem for path in NOTEBOOKS} & {path.stem for path in paths})
    return bool(plugin.missed)


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]] or NOTEBOOKS))
