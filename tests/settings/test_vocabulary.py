"""Words for ages, sexes, views and splits mean the same wherever they are read."""

from __future__ import annotations

import polars as pl
import pytest

from lingula.settings.vocabulary import classify_view, parse_age, parse_sex, parse_split
from lingula.sources.released import read_ages, read_sexes


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("58", 58),
        (" 058y", 58),
        ("58.", 58),
        ("018M", 1.5),
        ("026W", 26 / 52.18),
        ("010D", 10 / 365.25),
        ("000D", 0),
        ("120", 120),
    ],
)
def test_ages(text: str, years: float) -> None:
    assert parse_age(text) == years


@pytest.mark.parametrize("text", ["", "0", "000Y", "121", "414", "old", "-3", "5 X"])
def test_what_is_no_age(text: str) -> None:
    assert parse_age(text) is None


def test_a_zero_may_be_an_age() -> None:
    assert parse_age("0", zero=True) == parse_age("000Y", zero=True) == 0


def test_ages_that_are_written_are_read_as_the_same_ages() -> None:
    written = read_ages(pl.Series(["058Y", "018M", "052W", "053W", "003D", "414", ""]))
    assert written.to_list() == ["58", "1", "0.99", "1", "0.01", "", ""]


def test_sexes_views_and_splits() -> None:
    assert [parse_sex(word) for word in ("m", "Male", "WOMAN", " f", "O", "unknown", "x", "")] == [
        *("M", "M", "F", "F", "O", "U"),
        *(None, None),
    ]
    assert read_sexes(pl.Series(["male", "", "X "])).to_list() == ["M", "", "X"]
    views = ("PA", "AP ERECT", "frontal", "LL", "lateral", "LLO", "")
    assert [classify_view(view) for view in views] == [
        *["frontal"] * 3,
        *["lateral"] * 2,
        "other",
        "other",
    ]
    words = ("train", "Val", " validation ", "TEST", "", "holdout")
    assert [parse_split(word) for word in words] == ["train", "dev", "dev", "test", "", None]
