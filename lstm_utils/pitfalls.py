"""The pitfalls: what torch says, or fails to say, when an LSTM is set up wrongly, with the cause and the cure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import yaml

from lstm_utils.arguments import require

if TYPE_CHECKING:
    from lstm_utils.findings import Diagnosis

# A message is taken for a recorded one from this share of its words on.
ENOUGH_WORDS = 0.8


class PitfallError(AssertionError):
    """A pitfall that no longer shows itself as recorded."""


@dataclass(frozen=True)
class Symptom:
    """A pitfall as it showed itself: what a chapter displays, as Markdown where that is possible."""

    pitfall: Pitfall
    seen: str

    def __repr__(self) -> str:
        return f"{self.pitfall.id}: {self.seen}"

    def _repr_markdown_(self) -> str:
        pitfall = self.pitfall
        lines = self.seen.splitlines()
        seen = "\n".join(textwrap.fill(line, 80, break_long_words=False, break_on_hyphens=False) for line in lines)
        fence = max(re.findall("`{3,}", seen), default="``") + "`"  # longer than any inside
        parts = [f"{fence}text\n{seen}\n{fence}"]
        labels = {"In silence": pitfall.silent, "Cause": pitfall.cause, "Cure": pitfall.cure}
        labels |= {"Beyond `diagnose`": pitfall.undetected, "Not executed here": pitfall.unexecuted}
        return "\n\n".join(parts + [f"**{label}**: {text}" for label, text in labels.items() if text])


@dataclass(frozen=True)
class Pitfall:
    """One way to go wrong.

    Args:
        id: P01 to P32, the most common first.
        title: what is done wrong, in a few words.
        cause: why it is wrong.
        cure: what to do instead.
        messages: excerpts of the errors and warnings that torch gives, with example numbers.
        silent: what happens where nothing is raised.
        undetected: why ``diagnose`` cannot see it, or which part of it; empty when it sees all.
        unexecuted: why no chapter runs it; empty when one does.
    """

    id: str
    title: str
    cause: str
    cure: str
    messages: tuple[str, ...] = ()
    silent: str = ""
    undetected: str = ""
    unexecuted: str = ""

    def expect(self, *seen: str | Diagnosis) -> Symptom:
        """Hold what was seen against the record, and return it for display.

        Args:
            seen: texts of errors or warnings, or what ``diagnose`` returned; one or several.

        Raises:
            PitfallError: in one of the texts no recorded message stands, or a diagnosis does not name this pitfall.
        """
        lines = []
        for one in seen:
            if not isinstance(one, str):
                lines += self._findings(one)
            elif any(message in one for message in self.messages):
                lines.append(one)
            else:
                recorded = " | ".join(self.messages) or "nothing"
                raise PitfallError(f"{self.id} is recorded as saying {recorded}; now it says: {one}")
        return Symptom(self, "\n".join(lines))

    def _findings(self, diagnosis: Diagnosis) -> list[str]:
        found = [f"diagnose, {f.severity}: {f.seen}" for f in diagnosis.findings if f.pitfall == self.id]
        if not found:
            raise PitfallError(
                f"diagnose did not find {self.id} here; it found {', '.join(diagnosis.ids) or 'nothing'}"
            )
        return found

    def happens(self, condition: bool, seen: str) -> Symptom:
        """Hold a measurement against a pitfall that neither torch nor ``diagnose`` reports, and return it for display.

        Args:
            condition: whether the pitfall happened in this run.
            seen: the measurement, in words.

        Raises:
            PitfallError: it did not happen, or no silent case is recorded.
        """
        if not (condition and self.silent):
            raise PitfallError(f"{self.id} is recorded as silent: {self.silent or 'never'}; now: {seen}")
        return Symptom(self, seen)

    def show(self) -> Symptom:
        """The record for display, where nothing can be run.

        Raises:
            PitfallError: the pitfall can be run here, so it should be.
        """
        if not self.unexecuted:
            raise PitfallError(f"{self.id} can be executed here: use expect()")
        return Symptom(self, " | ".join(self.messages))


def normalize(text: str) -> str:
    """A message without what differs from case to case: numbers, their count, case and line breaks.

    The index of ``hidden[0]`` and ``hidden[1]`` stays, since it tells h_0 from c_0. ``book/_static/pitfalls.js`` does
    the same in the reader's browser.

    Raises:
        TypeError: it is no text.
    """
    require("text", text, str, "a text")
    text = re.sub(r"(?<![a-z]\[)\d+(\.\d+)?", "#", text.lower())
    return re.sub(r"\s+", " ", re.sub(r"#(, ?#)*", "#", text)).strip()


def find_pitfalls(message: str) -> list[Pitfall]:
    """The pitfalls that a message, or a whole traceback, may come from: the best match first.

    First those whose recorded message stands in the text as it is, then those where only the numbers differ, then those
    of whose message nearly all words occur.

    Raises:
        TypeError: the message is no text.
    """
    require("message", message, str, "a text")
    normal = normalize(message)
    words = set(re.findall(r"[a-z_]{2,}", normal))

    def rank(pitfall: Pitfall) -> int:
        ranks = [9]
        for known in pitfall.messages:
            own = set(re.findall(r"[a-z_]{2,}", normalize(known)))
            if known in message:
                ranks.append(0)
            elif normalize(known) in normal:
                ranks.append(1)
            elif len(own & words) >= ENOUGH_WORDS * len(own):
                ranks.append(2)
        return min(ranks)

    ranked = [(rank(entry), entry) for entry in pitfalls().values()]
    return [entry for position, entry in sorted(ranked, key=lambda pair: pair[0]) if position < 9]


@cache
def pitfalls() -> Mapping[str, Pitfall]:
    """Every pitfall by id, read from ``pitfalls.yml`` and checked.

    Raises:
        ValueError: see :func:`parse_pitfalls`.
    """
    return parse_pitfalls(files("lstm_utils").joinpath("pitfalls.yml").read_text(encoding="utf-8"))


def parse_pitfalls(text: str) -> Mapping[str, Pitfall]:
    """Parse and check the text of a pitfalls file.

    Raises:
        TypeError: it is no text.
        ValueError: it is no YAML, or has a missing, unknown or empty field, an id twice, or a pitfall with
            neither a message nor a silence.
    """
    require("text", text, str, "a text")
    found: dict[str, Pitfall] = {}
    known = {field.name for field in fields(Pitfall)}
    required = {field.name for field in fields(Pitfall) if field.default is MISSING}
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"a pitfalls file is YAML, and {text[:40]!r} is none: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"a pitfalls file is a list of entries, each a mapping of fields, got {entries!r}")
    for entry in entries:
        name = entry.get("id")
        if wrong := required - set(entry) | (set(entry) - known):
            raise ValueError(f"{name}: fields missing or unknown: {', '.join(sorted(map(str, wrong)))}")
        messages = entry.get("messages", [])
        texts = [value for field, value in entry.items() if field != "messages"]
        if not isinstance(messages, list) or not all(isinstance(t, str) and t.strip() for t in [*texts, *messages]):
            raise ValueError(
                f"{name}: every field is text, and messages a list of texts; quote what YAML reads otherwise"
            )
        if not messages and "silent" not in entry:
            raise ValueError(f"{name}: says nothing and is not silent; record its messages, or what happens in silence")
        if name in found:
            raise ValueError(f"{name} is listed twice")
        found[name] = Pitfall(**entry | {"messages": tuple(messages)})
    return found


def pitfall(pitfall_id: str) -> Pitfall:
    """The pitfall of that id, to be held against what was seen: ``pitfall("P01").expect(error_of(...))``.

    Raises:
        TypeError: the id is no text.
        KeyError: there is no such pitfall.
    """
    require("pitfall_id", pitfall_id, str, "a text")
    try:
        return pitfalls()[pitfall_id]
    except KeyError:
        raise KeyError(f"no pitfall {pitfall_id!r}; the known ones are {', '.join(pitfalls())}") from None
