"""Words of data sets that say an age, a sex, a view or a split, and what each means here."""

from __future__ import annotations

import re
from typing import Literal

OLDEST = 120  # years; NIH's first file says 414
_PER_YEAR = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
_AGE = re.compile(r"(\d+(?:\.\d+)?)\.?\s*([YMWD]?)", re.ASCII)
_SEXES = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F"}
_SEXES |= {"o": "O", "other": "O", "u": "U", "unknown": "U"}
_FRONTAL = ("PA", "AP", "FRONTAL")
_LATERAL = ("LATERAL", "LAT", "LL", "RL", "L", "XTABLE LATERAL")
_SPLITS = {"": "", "train": "train", "test": "test"} | dict.fromkeys(
    ("dev", "val", "valid", "validate", "validation", "development"), "dev"
)


def parse_age(text: str, *, zero: bool = False) -> float | None:
    """Years of `58`, `58.0`, DICOM's `058Y`, `018M`, `003W` and `010D`; None for anything else.

    An age above `OLDEST` is unknown. So is `0`, as in several data sets, unless `zero` allows it.
    """
    age = _AGE.fullmatch(text.strip().upper())
    if age is None:
        return None
    years = float(age[1]) / _PER_YEAR[age[2]]
    unknown = years == 0 and age[2] in ("", "Y") and not zero
    return None if unknown or years > OLDEST else years


def parse_sex(text: str) -> str | None:
    """`M`, `F`, `O` (other) or `U` (stated as unknown) for any of their words; else None."""
    return _SEXES.get(text.strip().casefold())


def classify_view(view: str) -> Literal["frontal", "lateral", "other"]:
    """Whether a view is frontal, lateral or another one (oblique and unknown views)."""
    name = view.strip().upper()
    if name.startswith(_FRONTAL):
        return "frontal"
    return "lateral" if name in _LATERAL else "other"


def parse_split(word: str) -> str | None:
    """`train`, `dev`, `test` or '' (no split) for any of their words; None for another word."""
    return _SPLITS.get(word.strip().casefold())
