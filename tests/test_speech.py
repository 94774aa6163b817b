"""The synthetic speech: one definition, the same features wherever they come from, and a cache that is never wrong."""

import importlib.util
import io
import math
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lstm_utils import speech
from lstm_utils.spectrum import log_mel, mel_filters
from lstm_utils.speech import (
    ACCENTS,
    NOT_REPEATABLE,
    UNSEEN_ACCENTS,
    SynthesizerError,
    load_speech,
    noisy,
    pack,
    part_of,
    plan,
    synthesize,
    voices,
)

needs_synthesizer = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason='needs pip install "lstm-utils[speech]"'
)


@pytest.fixture
def without_synthesizer(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)


@pytest.mark.usefixtures("without_synthesizer")
def test_the_committed_utterances_are_read_where_the_synthesizer_is_missing(tmp_path):
    found = load_speech(3600, tmp_path / "cache")
    assert found.source == "fixture"
    assert len(found.utterances) == len(found.features) == 800
    assert len(load_speech(5).utterances) == len(load_speech(5).features) == 5
    assert not (tmp_path / "cache").exists()
    assert all(rows.shape[1] == 80 and rows.dtype == torch.float32 for rows in found.features)
    assert {one.split for one in found.utterances} == {"train", "validation", "seen", "voices", "accent"}
    with pytest.raises(ValueError, match=r'seed=1 needs the synthesizer: pip install "lstm-utils\[speech\]"'):
        load_speech(5, seed=1)


@pytest.mark.usefixtures("without_synthesizer")
def test_the_committed_waveform_has_the_committed_features():
    found = load_speech(1)
    assert found.waveform.dtype == torch.float32
    assert (log_mel(found.waveform) - found.features[0]).abs().max() < 2


@pytest.mark.usefixtures("without_synthesizer")
def test_every_text_fits_into_its_frames():
    found = load_speech(800)
    for one, frames in zip(found.utterances, found.features, strict=True):
        repeats = sum(a == b for a, b in zip(one.text, one.text[1:], strict=False))
        assert re.fullmatch("[a-z]+( [a-z]+){0,4}", one.text)
        assert len(frames) >= len(one.text) + repeats


def test_a_number_below_one_is_refused():
    with pytest.raises(ValueError, match="number must be an integer of at least 1, got 0"):
        load_speech(0)


@needs_synthesizer
def test_what_is_made_is_the_same_each_time_and_is_what_is_committed():
    made = load_speech(12)
    synthesize("something else", "en-us+Alex")  # what this process says does not matter
    again = load_speech(12)
    assert made.source == "synthesizer"
    assert made.utterances == again.utterances == plan(12)
    assert all(map(torch.equal, made.features, again.features))
    assert torch.equal(made.waveform, again.waveform)
    assert (log_mel(made.waveform) - made.features[0]).abs().max() < 2
    contents = speech.read_data("digits.npz")
    committed = speech._unpacked(contents, "fixture", 12)
    assert made.utterances == committed.utterances
    for one, other in zip(made.features, committed.features, strict=True):
        assert one.shape == other.shape  # another platform's library may round otherwise
        assert (one - other).abs().mean() < 0.5


@needs_synthesizer
def test_more_utterances_begin_with_the_same_ones_and_another_seed_with_others():
    assert plan(50)[:20] == plan(20)
    assert plan(20, seed=1) != plan(20)


@needs_synthesizer
def test_a_cache_is_used_and_a_damaged_one_is_made_anew(tmp_path, monkeypatch):
    folder = tmp_path / "made" / "anew"
    first = load_speech(3, folder)
    assert first.source == "synthesizer"
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:500], whole[:-1] + bytes([whole[-1] ^ 1]), b"x" + whole[1:]):
        path.write_bytes(damaged)
        assert all(map(torch.equal, load_speech(3, folder).features, first.features))
        assert path.read_bytes() == whole
    monkeypatch.setattr(speech, "_made_apart", lambda *_: pytest.fail("made again"))
    assert load_speech(3, folder).utterances == first.utterances


@needs_synthesizer
def test_a_process_that_fails_is_reported(monkeypatch):
    monkeypatch.setattr(speech.sys, "executable", "/bin/false")
    with pytest.raises(SynthesizerError, match="the synthesizing process failed"):
        load_speech(2)
    failed = SimpleNamespace(returncode=1, stderr=b"Traceback\n" + b" of a line\n" * 999 + b"the reason\n")
    monkeypatch.setattr(speech.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SynthesizerError, match=r"^the synthesizing process failed: (.|\n){,600}\nthe reason$"):
        load_speech(2)  # the end of a long traceback says why


@needs_synthesizer
def test_packed_in_this_process_it_is_nearly_the_same():
    """The order in which a process says things moves the samples a little, which is why a data set has its own."""
    found = speech._unpacked(pack(plan(3), 0), "here")
    for one, other in zip(found.features, load_speech(3).features, strict=True):
        assert abs(len(one) - len(other)) <= 1
        rows = min(len(one), len(other))
        assert (one[:rows] - other[:rows]).abs().mean() < 4


@needs_synthesizer
def test_unknown_voices_and_silence_are_refused(monkeypatch):
    known = ", ".join(voices())
    for voice in ("en-us+nobody", "xx-nowhere+Alex", "en-us", "en-us+whisper", "en-us+Alex+Alex"):
        message = re.escape(f"no voice '{voice}'; accents are such as en-us, variants {known}")
        with pytest.raises(SynthesizerError, match=f"^{message}$"):
            synthesize("one", voice)
    library = SimpleNamespace(espeak_SetVoiceByName=lambda _: 0, espeak_Synth=lambda *_: 0)
    monkeypatch.setattr(speech, "_library", lambda: (library, []))
    with pytest.raises(SynthesizerError, match=r"^eSpeak NG said nothing for 'one'$"):
        synthesize("one", "en-us+Alex")


@needs_synthesizer
def test_the_library_is_called_as_its_header_has_it_and_what_it_says_are_samples(monkeypatch):
    said = [b"of an earlier call"]

    def synth(*arguments):
        # The text and its bytes, with the zero at its end; all of it, from its first character on; in UTF-8.
        assert arguments == (b"one", 4, 0, 1, 0, 1, None, None)
        said.extend(np.array(chunk, np.int16).tobytes() for chunk in ([0, -(2**15)], [2**14]))
        return 0

    library = SimpleNamespace(espeak_SetVoiceByName=lambda _: 0, espeak_Synth=synth)
    monkeypatch.setattr(speech, "_library", lambda: (library, said))
    samples = synthesize("one", "en-us+Alex")
    assert (samples.dtype, samples.tolist()) == (np.float32, [0, -1, 0.5])


def test_what_is_packed_is_kept_to_2_decibels_and_16_bits_and_cut_off_beyond(monkeypatch):
    click = np.zeros(22_050, np.float32)
    click[[1000, 2000]] = 1, -1
    hum = np.sin(np.arange(4410) / 7).astype(np.float32)
    spoken = {"one": click, "two": hum}
    monkeypatch.setattr(speech, "synthesize", lambda text, voice: spoken[text] if voice == "en+Alex" else None)
    utterances = tuple(speech.Utterance(text, "Alex", "en", 30.5, "train") for text in spoken)
    content = pack(utterances, 7)
    with np.load(io.BytesIO(content)) as held:
        assert (held["waveform"].dtype, held["differences"].dtype) == (np.int16, np.uint8)
    found = speech._unpacked(content, "here")
    assert (found.utterances, found.source) == (utterances, "here")
    said = [noisy(one, 30.5, np.random.default_rng((7, number))) for number, one in enumerate((click, hum))]
    for features, samples in zip(found.features, said, strict=True):
        assert (features - log_mel(torch.from_numpy(samples))).abs().max() <= 1.001
    assert np.abs(found.waveform.numpy() - said[0].clip(-1, 1 - 2**-15)).max() <= 2**-16
    assert (found.waveform.max(), found.waveform.min()) == (1 - 2**-15, -1)


@needs_synthesizer
def test_a_synthesizer_that_does_not_start_is_reported(monkeypatch):
    class Library:
        def espeak_Initialize(self, *_):  # noqa: N802
            return -1

    monkeypatch.setattr(speech.ctypes, "CDLL", lambda _: Library())
    with pytest.raises(SynthesizerError, match="eSpeak NG starts with -1, and must with 22050 samples a second"):
        speech._library.__wrapped__()


@needs_synthesizer
def test_no_voice_and_no_accent_of_a_test_was_trained_on():
    utterances = plan(2000)
    heard = {split: {one.voice for one in utterances if one.split == split} for split in speech.SPLITS}
    accents = {split: {one.accent for one in utterances if one.split == split} for split in speech.SPLITS}
    for split in ("validation", "voices", "accent"):
        assert not heard[split] & heard["train"]
    assert heard["seen"] <= heard["train"]
    assert not heard["validation"] & heard["voices"]
    assert accents["accent"] == set(UNSEEN_ACCENTS)
    assert accents["train"] == set(ACCENTS)
    assert not set(UNSEEN_ACCENTS) & set(ACCENTS)
    assert not NOT_REPEATABLE & set(voices())
    lengths = Counter(len(one.text.split()) for one in utterances)
    assert set(lengths) == {1, 2, 3, 4, 5}
    assert all(10 <= one.noise <= 40 for one in utterances)


def test_variants_of_a_voice_stay_together():
    for family in (["klatt", "klatt2", "klatt6"], ["anika", "anikaRobot"], ["Gene", "Gene2"], ["Mike", "mike2"]):
        assert len({part_of(voice) for voice in family}) == 1
    assert (part_of("klatt"), part_of("m1"), part_of("iven")) == ("test", "validation", "train")


def test_noise_lies_where_it_is_asked_to():
    samples = np.sin(np.arange(50_000) / 7).astype(np.float32)
    mixed = noisy(samples, 20.0, np.random.default_rng(0))
    clean = 0.1 * samples / np.sqrt(np.mean(samples**2))
    assert mixed.dtype == np.float32
    assert math.isclose(10 * np.log10(np.mean(clean**2) / np.mean((mixed - clean) ** 2)), 20, abs_tol=0.2)


# (frame, band) → decibels, by torchaudio 2.11: MelSpectrogram(22050, 1024, 551, 441, n_mels=80, mel_scale="htk").
TORCHAUDIO = {
    (0, 0): 11.76, (0, 7): 12.79, (0, 20): -7.57, (0, 40): -23.75, (0, 60): -34.15, (0, 79): -38.25,
    (3, 0): -67.7, (3, 7): -65.67, (3, 20): -31.53, (3, 40): -65.75, (3, 60): -100.0, (3, 79): -100.0,
    (7, 0): -88.46, (7, 7): -89.04, (7, 20): -81.63, (7, 40): 4.78, (7, 60): -89.94, (7, 79): -100.0,
    (10, 0): -18.73, (10, 7): -18.0, (10, 20): -15.01, (10, 40): -7.5, (10, 60): -10.14, (10, 79): -17.85,
}  # fmt: skip


def test_features_are_those_of_torchaudio():
    t = torch.arange(4410, dtype=torch.float64) / 22_050
    found = log_mel((0.1 * torch.sin(2 * torch.pi * (200 + 8000 * t) * t)).float())
    assert found.shape == (11, 80)
    for (frame, band), expected in TORCHAUDIO.items():
        # Far below the peak, rounding of single precision is what is left.
        assert abs(found[frame, band].item() - expected) < (0.02 if expected > -40 else 1.5)


def test_the_shortest_waveform_is_one_sample_longer_than_what_is_mirrored():
    assert log_mel(torch.zeros(513)).shape == (2, 80)
    for wrong in (torch.zeros(512), torch.zeros(1, 2000), torch.zeros(2000, 2)):
        shape = re.escape(str(tuple(wrong.shape)))
        with pytest.raises(ValueError, match=f"^waveform must be one row of more than 512 samples, got {shape}$"):
            log_mel(wrong)


def test_samples_that_have_no_decibels_are_refused_with_what_came():
    with pytest.raises(
        TypeError, match=r"^waveform must hold floats, .* got torch\.int16; divide integers by 2\*\*15$"
    ):
        log_mel(torch.zeros(2000, dtype=torch.int16))
    for value, told in ((math.nan, "nan"), (-math.inf, "-inf"), (1e30, "1e+30")):
        with pytest.raises(ValueError, match=re.escape(f"finite samples, about -1 to 1, got {told} of torch.float32")):
            log_mel(torch.tensor([0.1, value, 0.2]).repeat(300))


def test_filters_are_triangles_that_add_up():
    filters = mel_filters()
    assert filters.shape == (513, 80)
    assert filters.min() == 0
    assert filters.max() <= 1
    assert (filters.sum(0) > 0).all()
    assert ((filters > 0).sum(1) <= 2).all()
    assert torch.equal(log_mel(torch.zeros(2000)), torch.full((5, 80), -100.0))
