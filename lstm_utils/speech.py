"""Digit strings spoken by a formant synthesizer: synthetic speech, whose data set is defined by voices and a seed.

The synthesizer is eSpeak NG (GPL-3), an optional dependency that is called and never copied: the extra ``speech``.
Where it is missing, the first utterances of the same data set are read from ``lstm_utils/data``.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lstm_utils.arguments import at_least, require
from lstm_utils.datasets import read_data
from lstm_utils.files import write_whole
from lstm_utils.spectrum import FLOOR_DB, SAMPLE_RATE, log_mel

FIXTURE = "digits.npz"
FORMAT = 1  # raised when the same seed defines other features
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": 0.72, "validation": 0.07, "seen": 0.07, "voices": 0.07, "accent": 0.07}
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
UNSEEN_ACCENTS = ("en-gb-scotland", "en-029")
# The noise in these voices differs from process to process, so no seed defines what they say.
NOT_REPEATABLE = frozenset(("Alicia", "Demonic", "f2", "f3", "f5", "sandro", "victor", "whisper", "whisperf"))
STEP_DB = 2.0  # features are stored as bytes, in steps of 2 dB from -100 dB on


class SynthesizerError(RuntimeError):
    """eSpeak NG refused a voice, or did not start."""


class Utterance(NamedTuple):
    """What is said, and how.

    Args:
        text: one to five digits as words, "three seven".
        voice: the synthesizer's name of a voice variant, "klatt2", and of an accent, "en-us".
        noise: decibels by which the noise lies below the speech.
        split: "train", "validation", or a test: "seen" (voices of the training), "voices" (others), "accent" (other
            voices in other accents).
    """

    text: str
    voice: str
    accent: str
    noise: float
    split: str


class Speech(NamedTuple):
    """A data set.

    Args:
        utterances: in the order of their synthesis.
        features: log-mel spectrograms in dB, each (T, 80), float32.
        waveform: samples of the first utterance with its noise, float32: what its features were computed from.
        source: "synthesizer" or "fixture".
    """

    utterances: tuple[Utterance, ...]
    features: tuple[Tensor, ...]
    waveform: Tensor
    source: str


def load_speech(number: int, folder: Path | str | None = None, seed: int = 0) -> Speech:
    """The first ``number`` utterances of the data set of a seed, made once and kept in ``folder``.

    Without the synthesizer, what is committed is read: at most the first 800 utterances of seed 0.

    Args:
        number: utterances, at least 1. More of them begin with the same ones.
        folder: where features are kept, made where missing; None keeps nothing. A damaged file there is made anew.
        seed: of texts, voices, accents and noise.

    Raises:
        TypeError: ``folder`` is neither a text nor a path.
        ValueError: ``number`` is no integer of at least 1 or ``seed`` none of at least 0, or there is no synthesizer
            and ``seed`` is not 0.
        OSError: ``folder`` is a file, or cannot be made.
        SynthesizerError: the synthesizer failed.
    """
    number, seed = at_least("number", number, 1), at_least("seed", seed, 0)
    require("folder", folder, str | Path | None, "a path or None")
    if importlib.util.find_spec("espeakng_loader") is None:
        if seed:
            raise ValueError(f'seed={seed} needs the synthesizer: pip install "lstm-utils[speech]"; 0 is committed')
        return _unpacked(read_data(FIXTURE), "fixture", number)
    if folder is None:
        return _unpacked(_made_apart(number, seed), "synthesizer")
    path = Path(folder) / f"digits-{FORMAT}-{number}-{seed}-{metadata.version('espeakng_loader')}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_bytes() if path.is_file() else b""
    content = kept[64:]
    if hashlib.sha256(content).hexdigest().encode() != kept[:64]:
        content = _made_apart(number, seed)
        write_whole(path, hashlib.sha256(content).hexdigest().encode() + content)
    return _unpacked(content, "synthesizer")


def plan(number: int, seed: int = 0) -> tuple[Utterance, ...]:
    """The utterances that a seed defines; a larger number begins with the same ones. Needs the synthesizer."""
    by_part: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for voice in voices():
        by_part[part_of(voice)].append(voice)
    random, found = np.random.default_rng(seed), []
    for _ in range(number):
        split = str(random.choice(list(SPLITS), p=list(SPLITS.values())))
        part = {"seen": "train", "voices": "test", "accent": "test"}.get(split, split)
        accents = UNSEEN_ACCENTS if split == "accent" else ACCENTS
        text = " ".join(WORDS[digit] for digit in random.integers(10, size=random.integers(1, 6)))
        voice, accent = (str(random.choice(names)) for names in (by_part[part], accents))
        found.append(Utterance(text, voice, accent, round(float(random.uniform(10, 40)), 1), split))
    return tuple(found)


@cache
def voices() -> tuple[str, ...]:
    """The names of the voice variants that say the same in every process, sorted."""
    import espeakng_loader

    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    return tuple(sorted({file.name for file in folder.iterdir()} - NOT_REPEATABLE))


def part_of(voice: str) -> str:
    """The part of a voice: "train", "validation" or "test", by a hash of its family.

    "klatt", "klatt2" and "klatt3" are variants of one voice, "anika" and "anikaRobot" of another: they stay together.
    """
    family = re.sub(r"(robot)?\d*$", "", voice.lower())
    tenth = int.from_bytes(hashlib.sha256(family.encode()).digest()[:8]) * 10 >> 64
    return "test" if tenth < 2 else "validation" if tenth < 4 else "train"


@cache
def _library() -> tuple[Any, list[bytes]]:
    """The synthesizer, started once a process, and the list to which it adds what it says."""
    import espeakng_loader

    library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
    said: list[bytes] = []
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def receive(samples: Any, count: int, _: Any) -> int:
        if samples and count > 0:
            said.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.receive = kind(receive)  # kept, or it would be collected while the library calls it
    if (rate := library.espeak_Initialize(2, 0, os.fsencode(espeakng_loader.get_data_path()), 0)) != SAMPLE_RATE:
        raise SynthesizerError(f"eSpeak NG starts with {rate}, and must with {SAMPLE_RATE} samples a second")
    library.espeak_SetSynthCallback(library.receive)
    return library, said


def synthesize(text: str, voice: str) -> npt.NDArray[np.float32]:
    """Let eSpeak NG say a text.

    The samples depend on what the process had said before, so :func:`load_speech` makes a data set in one order, in a
    process of its own.

    Args:
        text: in English.
        voice: an accent and a variant, "en-us+klatt2".

    Returns:
        samples between -1 and 1, 22,050 a second.

    Raises:
        SynthesizerError: there is no such voice, or nothing was said.
    """
    library, said = _library()
    said.clear()
    if voice.partition("+")[2] not in voices() or library.espeak_SetVoiceByName(voice.encode()):  # it takes any variant
        raise SynthesizerError(f"no voice {voice!r}; accents are such as {ACCENTS[0]}, variants {', '.join(voices())}")
    spoken = text.encode()
    if library.espeak_Synth(spoken, len(spoken) + 1, 0, 1, 0, 1, None, None) or not said:
        raise SynthesizerError(f"eSpeak NG said nothing for {text!r}")
    return np.asarray(np.frombuffer(b"".join(said), np.int16) / 2**15, np.float32)


def noisy(samples: npt.NDArray[np.float32], decibels: float, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Speech of mean power 0.01, float32, and white noise so many decibels below it."""
    noise = random.normal(scale=10 ** (-decibels / 20), size=len(samples))
    return np.asarray(0.1 * (samples / np.sqrt(np.mean(samples**2)) + noise), np.float32)


def _made_apart(number: int, seed: int) -> bytes:
    """What :func:`pack` returns, from a fresh process: earlier calls in this one would change the samples."""
    code = "import sys; from lstm_utils.speech import pack, plan; sys.stdout.buffer.write(pack(plan({}, {}), {}))"
    command = [sys.executable, "-c", code.format(number, seed, seed)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise SynthesizerError(f"the synthesizing process failed: {done.stderr.decode().strip()[-500:]}")
    return done.stdout


def pack(utterances: Sequence[Utterance], seed: int) -> bytes:
    """Say all utterances in this order, and keep their features in steps of 2 dB, as the bytes of an npz file."""
    steps = []
    for number, one in enumerate(utterances):
        samples = synthesize(one.text, f"{one.accent}+{one.voice}")
        samples = noisy(samples, one.noise, np.random.default_rng((seed, number)))
        if number == 0:
            first = samples
        steps.append(((log_mel(torch.from_numpy(samples)) - FLOOR_DB) / STEP_DB).round().to(torch.uint8).numpy())
    values = np.concatenate(steps)
    arrays: dict[str, Any] = {"utterances": np.array(utterances, dtype=str), "lengths": np.array([*map(len, steps)])}
    arrays["differences"] = np.diff(values, axis=1, prepend=np.uint8(0))  # between neighbors: they compress better
    arrays["waveform"] = (first * 2**15).round().clip(-(2**15), 2**15 - 1).astype(np.int16)
    np.savez(buffer := io.BytesIO(), **arrays)
    return buffer.getvalue()


def _unpacked(content: bytes, source: str, number: int | None = None) -> Speech:
    with np.load(io.BytesIO(content)) as held:
        values = np.cumsum(held["differences"], axis=1, dtype=np.uint8)
        features = torch.from_numpy(values).float() * STEP_DB + FLOOR_DB
        parts = torch.split(features, held["lengths"].tolist())[:number]
        rows = [Utterance(t, v, a, float(n), s) for t, v, a, n, s in held["utterances"].tolist()[:number]]
        return Speech(tuple(rows), parts, torch.from_numpy(held["waveform"].astype(np.float32) / 2**15), source)
