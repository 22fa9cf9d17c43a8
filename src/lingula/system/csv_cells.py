"""Text cells that a spreadsheet would run as a formula, escaped in the CSV files written here.

A cell that begins with `=`, `+`, `-`, `@`, a tab or a line break gets an apostrophe before it, and
loses it when the file is read here. Ids (images, patients, studies) and numbers are not changed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence

# With the full-width forms of the four signs, which some spreadsheets take for the signs. What
# has apostrophes before such a sign already gets one more, so that every text comes back.
_RUNS = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape_cell(text: str) -> str:
    """The text as it is written to a CSV file; `unescape_cell` gives it back."""
    return f"'{text}" if _RUNS.match(text) and not _NUMBER.fullmatch(text) else text


def unescape_cell(text: str) -> str:
    """The text of a cell that `escape_cell` made."""
    return text[1:] if text.startswith("'") and _RUNS.match(text) else text


def format_csv(
    header: Sequence[str], rows: Iterable[Sequence[object]], ids: Collection[str] = ("image",)
) -> str:
    """A CSV file as text. Column names and text cells are escaped, except the columns `ids`."""
    exact = [name in ids for name in header]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([escape_cell(name) for name in header])
    for row in rows:
        cells = zip(row, exact, strict=True)
        writer.writerow(
            [c if keep or not isinstance(c, str) else escape_cell(c) for c, keep in cells]
        )
    return stream.getvalue()
