"""The committed data: its checksum, what is taken from it, and that no family of words is torn apart by the split."""

import gzip
import re
import string
from collections import Counter

import numpy as np
import pytest
from checks import ROOT
from hypothesis import given
from hypothesis import strategies as st

from lstm_utils.datasets import (
    AIRPORTS,
    SENSORS,
    SHA256,
    DamagedDataError,
    Word,
    load_weather,
    load_words,
    read_data,
    split_of,
)

DATA = ROOT / "lstm_utils" / "data"
WORDS = {word.spelling: word for word in load_words()}


@pytest.mark.parametrize("name", SHA256)
def test_a_committed_file_has_its_checksum_and_its_provenance(name):
    assert read_data(name)
    provenance = (DATA / "README.md").read_text(encoding="utf-8")
    assert f"`{name}.gz`" in provenance
    assert SHA256[name] in provenance
    licence = (DATA / f"{name.partition('.')[0]}.LICENSE").read_text(encoding="utf-8")
    assert re.search("Redistribution and use|public domain under CC0|under CC BY 4.0", licence)


def test_every_committed_file_is_listed_and_small():
    assert {file.name for file in DATA.glob("*.gz")} == {f"{name}.gz" for name in SHA256}
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 8 * 2**20


def damage_nothing_but_the_text(packed):
    return gzip.compress(gzip.decompress(packed).replace(b"zebra Z IY1 B R AH0", b"zebra Z IY1 B R AH1"))


DAMAGES = {
    "another text": (damage_nothing_but_the_text, "has the SHA-256 "),
    "cut short": (lambda packed: packed[: len(packed) // 2], "cannot be decompressed"),
    "a flipped bit": (lambda packed: packed[:5000] + bytes([packed[5000] ^ 1]) + packed[5001:], "cannot be decompre"),
    "no gzip": (lambda _: b"version https://git-lfs.github.com/spec/v1", "cannot be decompressed"),
    "empty": (lambda _: b"", "has the SHA-256 "),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused(damage, message, tmp_path):
    packed = (DATA / "cmudict.dict.gz").read_bytes()
    (tmp_path / "cmudict.dict.gz").write_bytes(damage(packed))
    with pytest.raises(DamagedDataError, match=message) as error:
        read_data("cmudict.dict", tmp_path)
    assert "cmudict.dict.gz" in str(error.value)
    assert "reinstall" in str(error.value)


def test_a_missing_or_unknown_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cmudict\.dict\.gz is missing; reinstall"):
        read_data("cmudict.dict", tmp_path)
    with pytest.raises(
        KeyError, match=r"no data file 'nothing'; there are cmudict\.dict, nyc_weather\.csv, digits\.npz"
    ):
        read_data("nothing")


def test_a_word_is_read_with_its_first_pronunciation():
    assert WORDS["rhythm"] == Word("rhythm", ("R", "IH1", "DH", "AH0", "M"), 2, split_of("rhythm"))
    assert WORDS["aalborg"].phonemes == ("AO1", "L", "B", "AO0", "R", "G")  # has a second one, and a comment
    assert WORDS["chocolate"].syllables == 2  # the dictionary's opinion, not everybody's


def test_what_cannot_be_counted_is_left_out():
    assert len(WORDS) == len(load_words()) == 115_769
    assert not {"hmm", "a", "a's", "'bout", "every", "family", "antidisestablishmentarianism"} & set(WORDS)
    assert all(re.fullmatch("[a-z]{2,16}", spelling) for spelling in WORDS)
    assert {word.syllables for word in load_words()} == set(range(1, 9))


def test_every_syllable_has_a_vowel():
    stressed = {phoneme[:-1] for word in load_words() for phoneme in word.phonemes if phoneme[-1].isdigit()}
    assert " ".join(sorted(stressed)) == "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
    assert all(word.syllables == sum(p[-1] in "012" for p in word.phonemes) for word in load_words())


@given(st.text(string.ascii_lowercase, min_size=4, max_size=4), st.text(string.ascii_lowercase, max_size=8))
def test_words_with_the_same_beginning_stay_together(beginning, ending):
    assert split_of(beginning + ending) == split_of(beginning)


def test_the_split_is_about_eight_to_one_to_one():
    sizes = Counter(word.split for word in load_words())
    assert set(sizes) == {"train", "validation", "test"}
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(sizes[split] / len(WORDS) - share) < 0.01, sizes


def test_any_text_has_a_part():
    assert split_of("\ud800") in ("train", "validation", "test")  # half of a pair, which UTF-8 cannot hold


def test_the_split_never_moves():
    never = {"train": ("walk", "zebra"), "validation": ("algorithmic", "churning"), "test": ("horiguchi", "reverb")}
    assert {split: tuple(split_of(word) for word in words) for split, words in never.items()} == {
        split: (split, split) for split in never
    }


@pytest.fixture
def weather():
    return load_weather()  # in each test, or make mutate would ask only the first of them about it


def weather_at(weather, hour, channel):
    return weather.values[weather.hours == np.datetime64(hour), weather.channels.index(channel)].item()


def test_the_weather_is_a_year_of_hours_without_a_gap(weather):
    assert weather.values.shape == (8730, 24) == (len(weather.hours), len(AIRPORTS) * len(SENSORS))
    assert weather.values.dtype == np.float64
    assert (np.diff(weather.hours) == np.timedelta64(1, "h")).all()
    assert [str(weather.hours[i]) for i in (0, -1)] == ["2013-01-01T06", "2013-12-30T23"]
    assert weather.channels[:2] == ("JFK temperature", "JFK dew point")
    assert weather.channels[-1] == "EWR visibility"


def test_the_first_hour_of_newark_is_in_metric_units(weather):
    # In the file: 39.02 °F, dew point 26.06 °F, 59.37 %, 10.36 mph from the west, no rain, 1012 mbar, 10 miles.
    row = dict(zip(SENSORS, weather.values[0, 16:], strict=True))
    expected = (3.9, -3.3, 59.37, 1012.0, 4.63, 0.0, 0.0, 16.09)
    assert {name: round(value, 2) + 0.0 for name, value in row.items()} == dict(zip(SENSORS, expected, strict=True))


def test_the_wind_blows_to_where_it_does_not_come_from(weather):
    # In the file: 10.36 mph from 180 degrees, the south.
    assert weather_at(weather, "2013-01-30T12", "JFK wind to the north") == pytest.approx(4.63, abs=0.01)
    assert weather_at(weather, "2013-01-30T12", "JFK wind to the east") == pytest.approx(0, abs=1e-9)
    calm = (weather.values[:, 4] == 0) & (weather.values[:, 5] == 0)
    assert calm.sum() > 100


def test_what_is_missing_stays_missing(weather):
    gaps = dict(zip(weather.channels, np.isnan(weather.values).sum(0), strict=True))
    assert gaps["JFK temperature"] == 24
    assert (gaps["JFK pressure"], gaps["EWR pressure"]) == (855, 962)
    assert np.isnan(weather.values[weather.hours == np.datetime64("2013-10-26T01")]).all()


def test_the_wind_of_a_thousand_miles_an_hour_is_missing(weather):
    text = read_data("nyc_weather.csv").decode()
    assert "EWR,2013,2,12,3,39.02,26.96,61.63,260,1048.36058," in text
    for part in ("east", "north"):
        assert np.isnan(weather_at(weather, "2013-02-12T08", f"EWR wind to the {part}"))
    assert weather_at(weather, "2013-02-12T08", "EWR temperature") == pytest.approx(3.9)
    wind = np.nanmax(np.hypot(weather.values[:, 4::8], weather.values[:, 5::8]))
    assert 10 < wind < 45  # m/s


@pytest.mark.parametrize(
    ("speed", "direction", "east", "north"),
    [(100, 270, 44.704, 0), (100, 0, 0, -44.704), (100.5, 270, np.nan, np.nan), (0, np.nan, 0, 0)],
)
def test_a_wind_of_a_hundred_miles_an_hour_is_the_fastest(speed, direction, east, north):
    row = {"wind_speed": speed, "wind_dir": direction}
    winds = [SENSORS[f"wind to the {part}"][1](row) for part in ("east", "north")]
    assert winds == pytest.approx([east, north], nan_ok=True, abs=1e-9)
