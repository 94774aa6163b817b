"""The data of the application chapters: real, committed, and checked before they are read. Nothing is downloaded.

Where each file comes from, and under which licence, is said in ``lstm_utils/data/README.md``.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstm_utils.arguments import require

# Of the contents, not of the compressed file: another zlib may compress the same contents to other bytes.
SHA256 = {
    "cmudict.dict": "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
    "nyc_weather.csv": "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64",
    "digits.npz": "89be280b5da776076d0c6a066384f542a9c61af560a17f05fe7e45d7fc43f0f3",
}

Split = Literal["train", "validation", "test"]


class DamagedDataError(ValueError):
    """A data file is not the one that this version of the package was made with."""


def read_data(name: str, folder: Traversable | None = None) -> bytes:
    """The contents of a committed data file, once its SHA-256 is right.

    Args:
        name: a key of ``SHA256``; the file is ``NAME.gz``.
        folder: where it lies; by default ``data`` in the package.

    Raises:
        TypeError: ``name`` is no text.
        KeyError: there is no data file of that name.
        FileNotFoundError: it is not there.
        DamagedDataError: it cannot be decompressed, or holds something else.
    """
    require("name", name, str, "a text")
    if name not in SHA256:
        raise KeyError(f"no data file {name!r}; there are {', '.join(SHA256)}")
    file = (folder or files("lstm_utils").joinpath("data")).joinpath(f"{name}.gz")
    cure = "reinstall lstm-utils, or take the file from its repository again"
    if not file.is_file():
        raise FileNotFoundError(f"the data file {file} is missing; {cure}")
    try:
        contents = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedDataError(f"the data file {file} cannot be decompressed ({error}); {cure}") from error
    if (found := hashlib.sha256(contents).hexdigest()) != SHA256[name]:
        raise DamagedDataError(f"the data file {file} has the SHA-256 {found}, and must have {SHA256[name]}; {cure}")
    return contents


class Word(NamedTuple):
    """A word of the pronouncing dictionary.

    Args:
        spelling: 2 to 16 letters, a to z.
        phonemes: its first pronunciation, in the dictionary's symbols; a vowel ends in its stress, 0, 1 or 2.
        syllables: vowels in the pronunciation, 1 to 8.
        split: which part of the data it belongs to, see :func:`split_of`.
    """

    spelling: str
    phonemes: tuple[str, ...]
    syllables: int
    split: Split


@cache
def load_words() -> tuple[Word, ...]:
    """The usable words of the CMU Pronouncing Dictionary, 115,769 of 126,052, in its alphabetical order.

    Left out are spellings with anything but the letters a to z, of one letter or more than 16, words whose
    pronunciations disagree on the number of syllables, and those without a vowel, such as "hmm".

    Raises:
        FileNotFoundError: the data file is not there.
        DamagedDataError: the data file is not as it should be.
    """
    pronunciations: dict[str, list[str]] = {}
    for line in read_data("cmudict.dict").decode().splitlines():
        entry, _, phonemes = line.partition(" #")[0].partition(" ")  # behind the # stands a comment
        pronunciations.setdefault(entry.partition("(")[0], []).append(phonemes)  # others are word(2), word(3)
    words = []
    usable = re.compile("[a-z]{2,16}")
    for spelling, variants in pronunciations.items():
        if usable.fullmatch(spelling):
            counts = {sum(map(variant.count, "012")) for variant in variants}  # only vowels have a stress
            if len(counts) == 1 and 0 not in counts:
                words.append(Word(spelling, tuple(variants[0].split()), counts.pop(), split_of(spelling)))
    return tuple(words)


def split_of(spelling: str) -> Split:
    """The part of the data that a word belongs to: about 80 % train, 10 % validation, 10 % test.

    Words that begin with the same four letters stay together: "walk", "walked" and "walking" would otherwise meet
    across a random split, and a model that knows one by heart would know the others. The part is decided by a hash of
    these letters, so it depends on no random number and does not move when words are added.

    Raises:
        TypeError: the spelling is no text.
    """
    require("spelling", spelling, str, "a text")
    digest = hashlib.sha256(spelling[:4].encode(errors="surrogatepass")).digest()
    tenth = int.from_bytes(digest[:8], "big") * 10 >> 64  # 0 to 9
    return "test" if tenth == 0 else "validation" if tenth == 1 else "train"


class Weather(NamedTuple):
    """A year of weather at the three airports of New York, hour by hour, with its gaps.

    Args:
        hours: (T,), UTC, without a gap.
        channels: (C,) names, such as "JFK temperature".
        values: (T, C); nan where nothing, or nothing possible, was reported.
    """

    hours: NDArray[np.datetime64]
    channels: tuple[str, ...]
    values: NDArray[np.float64]


AIRPORTS = ("JFK", "LGA", "EWR")
# The unit of each sensor, and how to get there from the miles, inches and degrees Fahrenheit of the file.
SENSORS: dict[str, tuple[str, Callable[[dict[str, float]], float]]] = {
    "temperature": ("°C", lambda row: (row["temp"] - 32) / 1.8),
    "dew point": ("°C", lambda row: (row["dewp"] - 32) / 1.8),
    "humidity": ("%", lambda row: row["humid"]),
    "pressure": ("hPa", lambda row: row["pressure"]),
    "wind to the east": ("m/s", lambda row: _wind(row, math.sin)),
    "wind to the north": ("m/s", lambda row: _wind(row, math.cos)),
    "precipitation": ("mm", lambda row: row["precip"] * 25.4),
    "visibility": ("km", lambda row: row["visib"] * 1.609344),
}


def load_weather() -> Weather:
    """Hourly weather of 2013 at JFK, LaGuardia and Newark: 8,730 hours of 24 channels, in metric units.

    Nothing is filled in. Wind speeds above 100 mph count as missing: the file has one, of 1,048. Gusts are left out,
    since four of five are missing.

    Raises:
        FileNotFoundError: the data file is not there.
        DamagedDataError: the data file is not as it should be.
    """
    rows = list(csv.DictReader(read_data("nyc_weather.csv").decode().splitlines()))
    times = np.array([row["time_hour"].removesuffix("Z") for row in rows], dtype="datetime64[h]")
    hours = np.arange(times.min(), times.max() + 1)
    values = np.full((len(hours), len(AIRPORTS), len(SENSORS)), math.nan)
    for time, row in zip(times, rows, strict=True):
        fields = ("temp", "dewp", "humid", "pressure", "wind_dir", "wind_speed", "precip", "visib")
        numbers = {name: math.nan if row[name] == "NA" else float(row[name]) for name in fields}
        at = (time - hours[0]).astype(int), AIRPORTS.index(row["origin"])
        values[at] = [convert(numbers) for _, convert in SENSORS.values()]
    channels = tuple(f"{airport} {sensor}" for airport in AIRPORTS for sensor in SENSORS)
    return Weather(hours, channels, values.reshape(len(hours), -1))


def _wind(row: dict[str, float], part: Callable[[float], float]) -> float:
    """Towards where the wind blows, in m/s; the file has the direction from where, clockwise from north."""
    speed = row["wind_speed"]
    if speed == 0:
        return 0.0  # calm air has no direction
    return -speed * 0.44704 * part(math.radians(row["wind_dir"])) if speed <= 100 else math.nan
