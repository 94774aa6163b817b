"""The record of the pitfalls: what it holds, how a message finds its entry, and what it refuses."""

import re

import pytest

from lstm_utils.findings import Diagnosis, Finding
from lstm_utils.pitfalls import Pitfall, PitfallError, find_pitfalls, normalize, parse_pitfalls, pitfall, pitfalls

MESSAGES = [(entry.id, message) for entry in pitfalls().values() for message in entry.messages]
VARIANTS = {
    "as it is": lambda message: message,
    "other numbers": lambda message: message.replace("20", "64").replace("10", "7").replace("15", "2048"),
    "another rank": lambda message: message.replace("(1, 4, 20)", "(4, 20)").replace("(1, 3, 20)", "(1, 2, 3, 20)"),
    "in a traceback": lambda message: f'Traceback (most recent call last):\n  File "a.py", line 3\nE: {message}\n\n',
    "in capitals": str.upper,
    "broken into lines": lambda message: message.replace(" ", "\n   "),
    "surrounded": lambda message: f"epoch 3: {message} (retrying)",
}
UNRELATED = (
    "",
    "IndexError: list index out of range",
    "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB",
    "KeyError: 'weight_ih_l0'",
    "ValueError: optimizer got an empty parameter list",
    "RuntimeError: Error(s) in loading state_dict for LSTM: size mismatch for weight_ih_l0",
    "TypeError: forward() missing 1 required positional argument: 'x'",
    "RuntimeError: expected scalar type Float but found Long",
    "IndexError: index out of range in self",
    "AssertionError",
    "RuntimeError: a leaf Variable that requires grad is being used in an in-place operation.",
    "RuntimeError: shape '[3, 4]' is invalid for input of size 10",
    "AttributeError: 'tuple' object has no attribute 'shape'",
    "RuntimeError: Input and parameter tensors are not at the same device",
    "The quick brown fox jumps over the lazy dog",
    "RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "ValueError: Expected input batch_size (32) to match target batch_size (16).",
    "RuntimeError: grad can be implicitly created only for scalar outputs",
    "RuntimeError: stack expects each tensor to be equal size, but got [5] at entry 0 and [7] at entry 1",
    "RuntimeError: Sizes of tensors must match except in dimension 1. Expected size 3 but got size 4 for tensor 1",
    "IndexError: Dimension out of range (expected to be in range of [-2, 1], but got 2)",
    "RuntimeError: Boolean value of Tensor with more than one value is ambiguous",
    "RuntimeError: Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.",
    "RuntimeError: Given groups=1, weight of size [8, 1, 3, 3], expected input[4, 3, 28, 28] to have 1 channels",
    "RuntimeError: view size is not compatible with input tensor's size and stride. Use .reshape(...) instead.",
    "IndexError: Target 5 is out of bounds.",
    "RuntimeError: running_mean should contain 5 elements not 4",
)


def test_every_pitfall_is_there_in_order():
    assert list(pitfalls()) == [f"P{number:02}" for number in range(1, 33)]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize(("name", "message"), MESSAGES)
def test_a_message_finds_its_pitfall(name, message, variant):
    found = [entry.id for entry in find_pitfalls(variant(message))]
    assert name in found[:3]


@pytest.mark.parametrize("message", [message for _, message in MESSAGES])
def test_a_verbatim_message_comes_first(message):
    same = [other for other, known in MESSAGES if known == message or known in message or message in known]
    assert find_pitfalls(f"RuntimeError: {message}")[0].id in same


@pytest.mark.parametrize("message", UNRELATED)
def test_an_unrelated_message_finds_nothing(message):
    assert find_pitfalls(message) == []


def test_the_index_of_a_state_is_kept_and_other_numbers_are_not():
    assert normalize("Expected hidden[0] size (1, 3, 20)") == "expected hidden[0] size (#)"
    assert normalize("hidden[0]") != normalize("hidden[1]")
    assert normalize("a  1.5\n B") == "a # b"
    assert find_pitfalls("Expected hidden[1] size (2, 8, 64), got [2, 8, 16]")[0].id == "P21"


def test_four_words_of_five_are_enough_and_three_are_not():
    recorded = "start (13) + length (1) exceeds dimension size (13)."
    assert recorded in pitfall("P10").messages
    assert [entry.id for entry in find_pitfalls("the size exceeds its dimension from the start")] == ["P10", "P12"]
    assert find_pitfalls("the size exceeds its dimension") == []


GOOD = "- {id: P90, title: t, cause: c, cure: d, silent: s}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b", "a list of entries"),
        ("[3]", "a list of entries"),
        (GOOD.replace("cure: d, ", ""), "P90: fields missing or unknown: cure"),
        (GOOD.replace("cure", "curé"), "P90: fields missing or unknown: cure, curé"),
        (GOOD.replace("title: t", "title: 3"), "P90: every field is text"),
        (GOOD.replace("title: t", "title: ' '"), "P90: every field is text"),
        (GOOD.replace("silent: s", "messages: s"), "P90: every field is text, and messages a list"),
        (GOOD.replace("silent: s", "messages: [1]"), "P90: every field is text"),
        (GOOD.replace(", silent: s", ""), "P90: says nothing and is not silent"),
        (GOOD + "\n" + GOOD, "P90 is listed twice"),
    ],
)
def test_a_damaged_record_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_pitfalls(text)


def test_what_is_no_yaml_is_quoted_by_its_beginning():
    beginning = "- [" + "P90, " * 7 + "P9"  # 40 characters
    with pytest.raises(ValueError, match=rf"^a pitfalls file is YAML, and '{re.escape(beginning)}' is none: while "):
        parse_pitfalls(beginning + "0, P90")


def test_a_sound_record_is_read():
    spoken = GOOD.replace("silent: s", "messages: [m, n]")
    assert parse_pitfalls(spoken) == {"P90": Pitfall("P90", "t", "c", "d", messages=("m", "n"))}
    assert parse_pitfalls(GOOD) == {"P90": Pitfall("P90", "t", "c", "d", silent="s")}


def test_an_unknown_pitfall_is_named():
    with pytest.raises(KeyError, match="no pitfall 'P99'; the known ones are P01, P02"):
        pitfall("P99")


FOUND = Diagnosis((Finding("P02", "this"), Finding("P18", "that")))


def test_what_was_seen_is_held_against_the_record():
    shown = pitfall("P13").expect("RuntimeError: " + pitfall("P13").messages[0])
    assert repr(shown) == "P13: RuntimeError: " + pitfall("P13").messages[0]
    assert repr(pitfall("P02").expect(FOUND)) == "P02: diagnose, error: this"
    assert repr(pitfall("P18").expect(pitfall("P18").messages[0], FOUND)).endswith("\ndiagnose, warning: that")
    assert repr(pitfall("P16").happens(True, "counted")) == "P16: counted"
    assert pitfall("P06").show().seen == pitfall("P06").messages[0]


FULL = Pitfall("P90", "t", "why", "how", ("one", "two"), "quiet", "hidden", "far")


def test_every_recorded_message_is_quoted():
    assert FULL.show().seen == "one | two"
    with pytest.raises(PitfallError, match=r"^P90 is recorded as saying one \| two; now it says: three$"):
        FULL.expect("three")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pitfall("P13").expect("ValueError: something else"), "P13 is recorded as saying Length of all"),
        (lambda: pitfall("P02").expect("RuntimeError: x"), "P02 is recorded as saying nothing; now it says: Runtime"),
        (lambda: pitfall("P03").expect(FOUND), "diagnose did not find P03 here; it found P02, P18"),
        (lambda: pitfall("P03").expect(Diagnosis(())), "diagnose did not find P03 here; it found nothing"),
        (lambda: pitfall("P16").happens(False, "counted"), "P16 is recorded as silent: LSTM.*now: counted"),
        (lambda: pitfall("P13").happens(True, "counted"), "P13 is recorded as silent: never; now: counted"),
        (lambda: pitfall("P01").show(), "P01 can be executed here"),
    ],
)
def test_a_pitfall_that_shows_itself_otherwise_is_noticed(call, message):
    with pytest.raises(PitfallError, match=message):
        call()


def test_a_symptom_displays_the_message_as_it_is_and_the_record_around_it():
    markdown = pitfall("P05").expect("RuntimeError: " + pitfall("P05").messages[0] + " 1" * 60)._repr_markdown_()
    fenced, _, rest = markdown.removeprefix("```text\n").partition("\n```\n\n")
    assert " ".join(fenced.split()) == "RuntimeError: " + pitfall("P05").messages[0] + " 1" * 60
    assert max(map(len, fenced.splitlines())) <= 80
    assert rest == f"**Cause**: {pitfall('P05').cause}\n\n**Cure**: {pitfall('P05').cure}"
    assert "**Not executed here**: It needs" in pitfall("P06").show()._repr_markdown_()


def test_a_symptom_names_all_that_is_recorded():
    assert FULL.show()._repr_markdown_() == (
        "```text\none | two\n```\n\n**In silence**: quiet\n\n**Cause**: why\n\n**Cure**: how\n\n"
        "**Beyond `diagnose`**: hidden\n\n**Not executed here**: far"
    )


def test_a_long_message_is_broken_between_words_alone():
    path = "/a-long/path-that/ends-in/" + "x" * 90
    assert FULL.happens(True, f"{'x ' * 38}well-known {path}")._repr_markdown_().splitlines()[1:4] == [
        "x " * 37 + "x",
        "well-known",
        path,
    ]


@pytest.mark.parametrize("ticks", ["`", "``", "```", "`````"])
def test_back_ticks_in_a_message_do_not_end_its_block(ticks):
    seen = f"{pitfall('P13').messages[0]}\n{ticks}\nand {ticks}more"
    lines = pitfall("P13").expect(seen)._repr_markdown_().splitlines()
    fence = lines[0].removesuffix("text")
    assert set(fence) == {"`"}
    assert lines[3 : lines.index(fence)] == [ticks, f"and {ticks}more"]
