import re
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import examples

from lstm_utils import audit, claims
from lstm_utils.claims import EXPLAINED_BY, AuditError, Claim, parse_claims

COMMON = {"id": "G20", "section": "V", "says": "It has 42,240 parameters.", "chapter": "06_parameters"}
EXPLANATION = "With both biases it is 42,496."
VERDICTS = tuple(EXPLAINED_BY)

# What a cell measures under each verdict that can be asserted, and the line that it prints.
CORRECT = {
    "holds": (
        {"claimed": 42_240, "measured": 42_240},
        "G20 holds: claimed 42,240, measured 42,240",
    ),
    "false": (
        {"claimed": 42_240, "measured": 42_496},
        "G20 false: claimed 42,240, measured 42,496",
    ),
    "holds-if": (
        {"claimed": (20, 64), "measured": (20, 64), "otherwise": (64, 20)},
        "G20 holds-if: claimed (20, 64), measured (20, 64), otherwise (64, 20)",
    ),
    "depends": (
        {"claimed": True, "measured": True, "otherwise": False},
        "G20 depends: claimed True, measured True, otherwise False",
    ),
}


def entry(verdict: str, explanation: str = EXPLANATION) -> dict[str, str]:
    """A claim of that verdict as claims.yml lists it."""
    field = EXPLAINED_BY[verdict]
    return COMMON | {"verdict": verdict} | ({field: explanation} if field else {})


def load(*entries: object) -> list[Claim]:
    return list(parse_claims(yaml.safe_dump(list(entries))).values())


def claim(verdict: str, explanation: str = EXPLANATION) -> Claim:
    return load(entry(verdict, explanation))[0]


# expect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", CORRECT)
def test_a_measurement_that_supports_the_verdict_is_printed(verdict, capsys):
    facts, line = CORRECT[verdict]
    claim(verdict).expect(**facts)
    assert capsys.readouterr().out == line + "\n"


NOTHING = "has nothing to assert, so record a verdict first"


@pytest.mark.parametrize(
    ("verdict", "facts", "reason"),
    [
        ("holds", {"claimed": 1, "measured": 2}, "the measurement disagrees"),
        ("holds", {"claimed": 1, "measured": 1, "otherwise": 2}, "does not take an `otherwise`"),
        ("false", {"claimed": 1, "measured": 1}, "the measurement agrees"),
        ("false", {"claimed": 1, "measured": 2}, "the recorded correction does not quote 2"),
        ("false", {"claimed": 1, "measured": 42_496, "otherwise": 3}, "does not take an `otherwise`"),
        ("holds-if", {"claimed": 1, "measured": 1}, "needs an `otherwise`"),
        ("holds-if", {"claimed": 1, "measured": 2, "otherwise": 3}, "the measurement disagrees"),
        ("holds-if", {"claimed": 1, "measured": 1, "otherwise": 1}, "holds in the other case too"),
        ("depends", {"claimed": 1, "measured": 1}, "needs an `otherwise`"),
        ("depends", {"claimed": 1, "measured": 2, "otherwise": 1}, "the measurement disagrees"),
        ("depends", {"claimed": 1, "measured": 1, "otherwise": 1}, "holds in the other case too"),
        ("not-testable", {"claimed": 1, "measured": 1}, NOTHING),
        ("not-testable", {"claimed": 1, "measured": 2, "otherwise": 1}, NOTHING),
        ("open", {"claimed": 1, "measured": 1}, NOTHING),
        ("open", {"claimed": 1, "measured": 2}, NOTHING),
    ],
)
def test_a_measurement_that_does_not_support_the_verdict_is_an_error(verdict, facts, reason, capsys):
    with pytest.raises(AuditError, match=reason) as caught:
        claim(verdict).expect(**facts)
    assert str(caught.value).startswith(f"G20 {verdict}: claimed 1, measured ")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("recorded", "flipped"), list(permutations(VERDICTS, 2)))
def test_a_verdict_that_is_changed_alone_does_not_load(recorded, flipped):
    with pytest.raises(ValueError, match=f"G20: a claim that is '{flipped}' has the fields"):
        load(entry(recorded) | {"verdict": flipped})


@pytest.mark.parametrize(
    ("recorded", "flipped"),
    # Between these two no measurement decides: both hold in one case and fail in another. The wording differs, and the
    # field that carries it, so the test above is what catches that flip.
    [(a, b) for a in CORRECT for b in VERDICTS if a != b and {a, b} != {"holds-if", "depends"}],
)
def test_a_verdict_that_is_changed_with_its_explanation_contradicts_the_cell(recorded, flipped):
    facts, _ = CORRECT[recorded]
    with pytest.raises(AuditError):
        claim(flipped).expect(**facts)


@pytest.mark.parametrize(
    ("correction", "quoted"),
    [
        ("It is 42,496.", True),
        ("It is 42,496, because of the second bias", True),
        ("42,496", True),
        ("(42,496)", True),
        ("It is 42496.", False),
        ("It is 142,496.", False),
        ("It is 1,42,496", False),
        ("It is 42,496,000.", False),
        ("It is 42,496.5", False),
        ("It is -42,496", False),
        ("It is 0.42,496", False),
        ("It is 42,496k", False),
    ],
)
def test_a_correction_quotes_the_whole_number(correction, quoted):
    facts, line = CORRECT["false"]
    if quoted:
        claim("false", correction).expect(**facts)
    else:
        with pytest.raises(AuditError, match=f"{line}; the recorded correction does not quote 42,496"):
            claim("false", correction).expect(**facts)


@pytest.mark.parametrize(
    ("fact", "text"),
    [
        (1_234_567, "1,234,567"),
        (-1_000, "-1,000"),
        (True, "True"),
        (None, "None"),
        ("(seq, batch)", "(seq, batch)"),
        ((), "()"),
        ((5,), "(5,)"),
        ((2, (1_000, "x"), None), "(2, (1,000, x), None)"),
        (torch.zeros(20, 1, 64).shape, "(20, 1, 64)"),
    ],
)
def test_facts_are_printed_as_prose_quotes_them(fact, text, capsys):
    claim("holds").expect(claimed=fact, measured=fact)
    assert capsys.readouterr().out == f"G20 holds: claimed {text}, measured {text}\n"


@pytest.mark.parametrize("name", ["claimed", "measured", "otherwise"])
@pytest.mark.parametrize(
    "value",
    [0.5, 2.0, float("nan"), 1j, np.float32(1), np.int64(1), np.bool_(True), torch.tensor(1), [1], {1}, b"1"],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("nest", [lambda value: value, lambda value: (1, (2, value))], ids=["bare", "nested"])
def test_values_that_differ_between_machines_are_refused(name, value, nest):
    facts = CORRECT["holds-if"][0] | {name: nest(value)}
    with pytest.raises(TypeError, match=f"got .* of type {type(value).__name__}; turn a float into a comparison"):
        claim("holds-if").expect(**facts)


facts = st.recursive(
    st.one_of(st.booleans(), st.none(), st.integers()),
    lambda parts: st.lists(parts, max_size=3).map(tuple),
    max_leaves=5,
)


def typed(fact):
    """The fact with the type of every part, so that True and 1 differ."""
    return tuple(map(typed, fact)) if isinstance(fact, tuple) else (type(fact), fact)


@examples["many"]
@given(claimed=facts, measured=facts)
def test_facts_agree_when_value_and_type_do(claimed, measured):
    assume(typed(claimed) != typed(measured))
    claim("holds").expect(claimed=claimed, measured=claimed)
    with pytest.raises(AuditError):
        claim("holds").expect(claimed=claimed, measured=measured)


@pytest.mark.parametrize(("claimed", "measured"), [(True, 1), (False, 0), (1, True), ((1, False), (1, 0))])
def test_a_bool_is_not_an_int(claimed, measured):
    assert claimed == measured  # which is why Python's own equality would not do
    with pytest.raises(AuditError, match="the measurement disagrees"):
        claim("holds").expect(claimed=claimed, measured=measured)


# parse_claims ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", VERDICTS)
def test_an_entry_becomes_a_claim(verdict):
    explanation = EXPLANATION if EXPLAINED_BY[verdict] else ""
    assert load(entry(verdict)) == [Claim(**COMMON, verdict=verdict, explanation=explanation)]


def test_claims_keep_the_order_of_the_file():
    ids = ["G02", "G40b", "G01"]
    assert list(parse_claims(yaml.safe_dump([entry("open") | {"id": claim_id} for claim_id in ids]))) == ids


@pytest.mark.parametrize(
    ("verdict", "field"), [(verdict, field) for verdict in VERDICTS for field in entry(verdict) if field != "verdict"]
)
def test_an_entry_without_one_of_its_fields_is_refused(verdict, field):
    partial = entry(verdict)
    del partial[field]
    with pytest.raises(ValueError, match=f"a claim that is '{verdict}' has the fields .*'{field}'"):
        load(partial)


def test_an_entry_without_a_verdict_is_refused():
    with pytest.raises(ValueError, match="G20: the verdict None is none of holds, holds-if, false"):
        load(COMMON)


HOLDS = entry("holds")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a claims file is a list of entries"),
        ("id: G20", "a claims file is a list of entries"),
        ("- G20", "each a mapping of fields"),
        ("- id: G20\n- G21", "each a mapping of fields"),
        (yaml.safe_dump([HOLDS | {"verdict": "Holds"}]), "G20: the verdict 'Holds' is none of holds, holds-if, false"),
        (yaml.safe_dump([HOLDS]).replace("verdict: holds", "verdict: false"), "G20: the verdict False is none of"),
        (yaml.safe_dump([HOLDS | {"verdict": ["holds"]}]), r"G20: the verdict \['holds'\] is none of"),
        (yaml.safe_dump([HOLDS | {"note": "x"}]), "G20: a claim that is 'holds' has the fields .* got .*'note'"),
        (yaml.safe_dump([HOLDS | {1: "x"}]), "G20: a claim that is 'holds' has the fields .* got .*'1'"),
        (yaml.safe_dump([HOLDS | {"reason": "x"}]), "G20: a claim that is 'holds' has the fields .* got .*'reason'"),
        (yaml.safe_dump([HOLDS | {"finding": " "}]), "G20: finding must be text"),
        (yaml.safe_dump([HOLDS | {"finding": None}]), "G20: finding must be text"),
        (yaml.safe_dump([HOLDS | {"finding": 42_496}]), "G20: finding must be text, in quotes"),
        (yaml.safe_dump([HOLDS | {"says": ["x"], "chapter": 3}]), "G20: chapter, says must be text"),
        (yaml.safe_dump([HOLDS | {"id": 20}]), "20: id must be text"),
        (yaml.safe_dump([HOLDS, HOLDS | {"says": "Another."}]), "G20 is listed twice"),
    ],
)
def test_a_malformed_file_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_claims(text)


# audit -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def claims_file(tmp_path, monkeypatch):
    """A file of two claims in place of the package's own."""
    text = yaml.safe_dump([entry("holds"), entry("open") | {"id": "G40b"}])
    (tmp_path / "claims.yml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(claims, "files", {"lstm_utils": tmp_path}.__getitem__)
    claims.claims.cache_clear()
    yield SimpleNamespace(path=tmp_path / "claims.yml")
    claims.claims.cache_clear()


def test_what_is_no_yaml_is_quoted_by_its_beginning():
    beginning = "- [" + "G20, " * 7 + "G2"  # 40 characters
    with pytest.raises(ValueError, match=rf"^a claims file is YAML, and '{re.escape(beginning)}' is none: while "):
        parse_claims(beginning + "0, G20")


def test_audit_finds_a_claim_by_its_id(claims_file):
    assert audit("G20") == claim("holds")
    assert audit("G40b").verdict == "open"
    claims_file.path.unlink()
    assert audit("G20") == claim("holds")  # read once


@pytest.mark.usefixtures("claims_file")
@pytest.mark.parametrize("claim_id", ["G99", "g20", ""])
def test_an_unknown_id_is_refused_with_those_that_exist(claim_id):
    with pytest.raises(KeyError, match=f"no claim '{claim_id}'; the known ones are G20, G40b"):
        audit(claim_id)
