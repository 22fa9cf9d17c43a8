"""The text of a table file: its encoding, and the separator that its header line tells."""

from __future__ import annotations

import csv
import io
import re
from itertools import islice
from pathlib import Path

import polars as pl

from lingula.system.errors import InputError

# In this order where a header line and the rows fit several.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

_SAMPLE, _ROWS = 1 << 16, 200  # bytes and rows that are looked at
_HINT = re.compile(rb'"?sep=([,;\t|])"?\r?\n', re.IGNORECASE)
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_DECIMAL = r"^(\s*[+-]?\d+),(\d+(?:[eE][+-]?\d+)?\s*)$"


def as_utf8(data: bytes, file: Path) -> tuple[bytes, str]:
    """The bytes as UTF-8 without a mark, and the encoding that they had; `utf-8` is not checked.

    UTF-16 and UTF-32 are known by their marks, UTF-16 also by its zeros. Raises `InputError` for
    text that is not whole.
    """
    codec = next((name for mark, name in _MARKS if data.startswith(mark)), _unmarked(data))
    if codec == "utf-8-sig":
        return data[3:], "utf-8"
    if codec == "utf-8":
        return data, codec
    try:
        return data.decode(codec).removeprefix("\ufeff").encode(), codec[:6]
    except UnicodeError:
        raise InputError(f"{file} is no whole {codec[:6].upper()} text: was it cut off?") from None


def _unmarked(data: bytes) -> str:
    """`utf-16-le` or `-be` for text of which every other byte is zero, else `utf-8`."""
    first, second = data[:64:2], data[1:64:2]
    if len(second) > 2 and 0 not in first and second.count(0) * 2 > len(second):
        return "utf-16-le"
    if len(second) > 2 and 0 not in second and first.count(0) * 2 > len(first):
        return "utf-16-be"
    return "utf-8"


def stated_separator(data: bytes) -> tuple[str | None, bytes]:
    """The separator of a first line `sep=;`, which spreadsheets write, and that line's bytes."""
    hint = _HINT.match(data)
    return (None, b"") if hint is None else (hint[1].decode(), hint[0])


def separator_of(data: bytes) -> str:
    """The separator of a text that begins with its line of column names.

    It is the one that stands there outside of quotes. Where several do, the first by which that
    line and all rows have equally many cells; where none does, a comma.
    """
    text = data[:_SAMPLE].decode("utf-8", "replace")
    if len(data) > _SAMPLE:
        text = text[: text.rfind("\n") + 1] or text
    bare = re.sub('"[^"]*"', "", _first_record(text))
    fitting = [separator for separator in SEPARATORS if separator in bare]
    if len(fitting) < 2:
        return fitting[0] if fitting else ","
    return next((one for one in fitting if _rows_are_alike(text, one)), fitting[0])


def _first_record(text: str) -> str:
    """The first line, or as many as it takes until every quote has its partner."""
    lines = text.splitlines(keepends=True)
    for count in range(1, min(len(lines), 20) + 1):
        record = "".join(lines[:count])
        if record.count('"') % 2 == 0:
            return record
    return lines[0] if lines else ""


def _rows_are_alike(text: str, separator: str) -> bool:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        rows = [row for row in islice(reader, _ROWS) if any(cell.strip() for cell in row)]
    except csv.Error:
        return False
    return len({len(row) for row in rows}) == 1


def with_decimal_points(cells: pl.Expr) -> pl.Expr:
    """Cells such as `0,5` as `0.5`: of any column where commas part no cells, else of numbers."""
    return cells.str.replace(_DECIMAL, "$1.$2")
