"""The audit: what the guide claims, our verdict on each claim, and the cell that fails if the verdict is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import EllipsisType
from typing import Any

import yaml

from lstm_utils.arguments import require

# Each verdict is explained in one field of its own, so that a verdict changed alone no longer loads.
EXPLAINED_BY = {
    "holds": "finding",
    "holds-if": "condition",
    "false": "correction",
    "depends": "varies_with",
    "not-testable": "reason",
    "open": None,
}
# The claims for which one measurement is not enough: one where the claim holds, one where it does not.
TWO_SIDED = ("holds-if", "depends")

Fact = bool | int | str | tuple[Any, ...] | None


class AuditError(AssertionError):
    """A measurement that no longer agrees with the recorded verdict."""


@dataclass(frozen=True)
class Claim:
    """One statement of the guide that can be true or false.

    Args:
        id: G01 to G41, and G40b.
        section: the guide's section, in Roman numerals.
        says: the statement, in our own words.
        verdict: a key of ``EXPLAINED_BY``; ``open`` until a chapter measures it.
        chapter: the notebook whose cell asserts the verdict (or will).
        explanation: the finding, condition, correction, or what the answer varies with; empty while open.
    """

    id: str
    section: str
    says: str
    verdict: str
    chapter: str
    explanation: str

    def expect(self, *, claimed: Fact, measured: Fact, otherwise: Fact | EllipsisType = ...) -> None:
        """Hold a measurement against the recorded verdict, and print the comparison.

        Args:
            claimed: what the guide says, as a value that ``measured`` can be compared with.
            measured: what this run found. For ``holds-if`` and ``depends``: where the claim does hold.
            otherwise: for those two alone, what this run found where the claim does not hold.

        Raises:
            AuditError: the measurement contradicts the verdict, or cannot support it.
            TypeError: a value that would differ between machines (a float, a tensor) was passed.
        """
        facts = {"claimed": _fact(claimed), "measured": _fact(measured)}
        two_sided = otherwise is not ...
        if two_sided:
            facts["otherwise"] = _fact(otherwise)
        line = f"{self.id} {self.verdict}: " + ", ".join(f"{name} {text}" for name, text in facts.items())
        if self.verdict not in ("holds", "false", *TWO_SIDED):
            raise AuditError(f"{line}; a claim that is {self.verdict} has nothing to assert, so record a verdict first")
        if two_sided != (self.verdict in TWO_SIDED):
            needs = "needs" if self.verdict in TWO_SIDED else "does not take"
            raise AuditError(f"{line}; the verdict {self.verdict!r} {needs} an `otherwise`, where the claim fails")
        agrees = facts["measured"] == facts["claimed"]
        if agrees != (self.verdict != "false"):
            raise AuditError(f"{line}; the measurement {'agrees' if agrees else 'disagrees'}, against the verdict")
        if two_sided and facts["otherwise"] == facts["claimed"]:
            raise AuditError(f"{line}; the claim holds in the other case too, so the verdict is out of date")
        if self.verdict == "false" and not _quotes(self.explanation, facts["measured"]):
            raise AuditError(f"{line}; the recorded correction does not quote {facts['measured']}: {self.explanation}")
        print(line)


def _fact(value: Any) -> str:
    """A value as the audit prints and compares it: 42,496 or (2, 20, 64) or True."""
    if isinstance(value, tuple):
        return f"({', '.join(_fact(part) for part in value)}{',' if len(value) == 1 else ''})"
    if not isinstance(value, bool | int | str | None):
        raise TypeError(
            f"the audit compares bools, ints, strings and tuples, got {value!r} of type {type(value).__name__}; "
            "turn a float into a comparison or a rounded bound first, since it differs between machines"
        )
    return f"{value:,}" if type(value) is int else str(value)


def _quotes(text: str, fact: str) -> bool:
    """Whether the fact stands in the text as a whole: 42 does not stand in "42,240", nor 3 in "-3" or "0.3"."""
    return re.search(rf"(?<![\w.,−-]){re.escape(fact)}(?!\w|[.,]\d)", text) is not None


@cache
def claims() -> Mapping[str, Claim]:
    """Every claim by id, in the guide's order, read from ``claims.yml`` and checked.

    Raises:
        ValueError: the file has an unknown verdict or field, a verdict without its explanation, or an id twice.
    """
    return parse_claims(files("lstm_utils").joinpath("claims.yml").read_text(encoding="utf-8"))


def parse_claims(text: str) -> Mapping[str, Claim]:
    """Parse and check the text of a claims file; see :func:`claims`.

    Raises:
        TypeError: it is no text.
        ValueError: it is no YAML, or as there.
    """
    require("text", text, str, "a text")
    found: dict[str, Claim] = {}
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"a claims file is YAML, and {text[:40]!r} is none: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"a claims file is a list of entries, each a mapping of fields, got {entries!r}")
    for entry in entries:
        verdict = entry.get("verdict")
        if not isinstance(verdict, str) or verdict not in EXPLAINED_BY:
            raise ValueError(f"{entry.get('id')}: the verdict {verdict!r} is none of {', '.join(EXPLAINED_BY)}")
        explanation = EXPLAINED_BY[verdict]
        expected = {"id", "section", "says", "verdict", "chapter"} | ({explanation} if explanation else set())
        if set(entry) != expected:
            raise ValueError(
                f"{entry.get('id')}: a claim that is {verdict!r} has the fields {sorted(expected)}, "
                f"got {sorted(map(str, entry))}"
            )
        if blank := [name for name, value in entry.items() if not isinstance(value, str) or not value.strip()]:
            names = ", ".join(blank)
            raise ValueError(f"{entry['id']}: {names} must be text, in quotes where YAML would read otherwise")
        if entry["id"] in found:
            raise ValueError(f"{entry['id']} is listed twice")
        common = {name: entry[name] for name in ("id", "section", "says", "verdict", "chapter")}
        found[entry["id"]] = Claim(**common, explanation=entry[explanation] if explanation else "")
    return found


def audit(claim_id: str) -> Claim:
    """The claim of that id, to be held against a measurement: ``audit("G20").expect(claimed=…, measured=…)``.

    Raises:
        TypeError: the id is no text.
        KeyError: there is no such claim.
    """
    require("claim_id", claim_id, str, "a text")
    try:
        return claims()[claim_id]
    except KeyError:
        raise KeyError(f"no claim {claim_id!r}; the known ones are {', '.join(claims())}") from None
