"""The one door of tables: all cells of a file as text, and the faults of the file's shape.

Tables, label files, releases, scores, boxes, templates and sheets of corrections all come through
`read_cells`, so that what one command reads every command reads.
"""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import io
import logging
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from lingula.system import files
from lingula.system.csv_cells import original_cell
from lingula.system.errors import InputError, examples
from lingula.tables.separators import (
    SEPARATORS,
    as_utf8,
    separator_of,
    stated_separator,
    with_decimal_points,
)
from lingula.tables.workbook import EXACT, WORKBOOKS, read_sheet

log = logging.getLogger("lingula")

TEXTS = (".csv", ".tsv", ".tab", ".txt")
KINDS = "tables are .csv, .tsv, .parquet or .xlsx files"

# Names that a spreadsheet or pandas gives to a column without one.
_NAMELESS = re.compile(r"(Unnamed: \d+(\.\d+)?)?")
_ZIP, _OLE, _GZIP = b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"\x1f\x8b"
FOLDER_TO_TABLE = "`lingula data folder` makes a table of films and a label file."


@dataclass(frozen=True)
class Fault:
    """A kind of fault: `what` in short; `message` says what, where and how to mend it.

    Of one that is not `fatal` `data check` speaks as of the others; reading warns and goes on.
    """

    what: str
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()
    fatal: bool = True


def is_table(path: str | Path) -> bool:
    """Whether a file's name is that of a table that can be read."""
    name = Path(path).name.lower().removesuffix(".gz")
    return name.endswith((*TEXTS, *WORKBOOKS, ".parquet"))


def read_cells(
    path: str | Path, *, nameless: bool = False
) -> tuple[pl.DataFrame, str, list[Fault]]:
    """All cells of a table file as text, its SHA-256, and faults of its shape.

    Text (.csv, .tsv, .txt, also packed by gzip) is UTF-8 or UTF-16; the line of column names tells
    its separator: a comma, a semicolon, a tab or a bar. Where it is no comma, `0,5` is 0.5. Of a
    workbook (.xlsx, .xls, .ods) the first sheet is read. What was taken is logged.

    Headers are stripped; missing cells are ''; columns without a name (but for `nameless`) and rows
    without a cell are left out; of a column that stands twice the first is kept, with a fault.

    Raises:
        InputError: a file that is missing, empty, no table, or neither UTF-8 nor UTF-16.
    """
    file = Path(path)
    if file.is_dir():
        raise files.not_a_file(file, "table", " " + FOLDER_TO_TABLE)
    if not is_table(file):
        raise InputError(f"{file} is no table: {KINDS}.")
    data = _bytes(file)
    faults: list[Fault] = []
    try:
        frame = _frame(data, file, faults)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{file} can't be read as a table: {reason}") from None
    unnamed = [name for name in frame.columns if _NAMELESS.fullmatch(name)]
    if unnamed and not nameless:
        log.info("%s has a column without a name (an index?); it is not read.", file)
        frame = frame.drop(unnamed)
    return frame.fill_null(""), hashlib.sha256(data).hexdigest(), faults


def _bytes(file: Path) -> bytes:
    try:
        data = file.read_bytes()
        return gzip.decompress(data) if data.startswith(_GZIP) else data
    except FileNotFoundError:
        raise InputError(f"There is no table {file}.") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"The table {file} can't be opened: {error}.") from None


def _frame(data: bytes, file: Path, faults: list[Fault]) -> pl.DataFrame:
    """By the content: some programs write text, or a workbook, under the name of the other."""
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix == ".parquet" or data.startswith(b"PAR1"):
        return _parquet(data, file)
    if suffix in WORKBOOKS[:2] or data.startswith((_ZIP, _OLE)):
        return _workbook(data, file, faults)
    return _delimited(data, file, faults)


@functools.cache
def _say(message: str, file: Path, *taken: str) -> None:
    """Once a process: several steps of a command may read the same file."""
    log.info(message, file, *taken)


def _workbook(data: bytes, file: Path, faults: list[Fault]) -> pl.DataFrame:
    names, rows, sheet = read_sheet(data, file)
    if not names:
        raise InputError(f"{file} is empty: its sheet {sheet} has no cell.")
    _say("%s: its sheet %s is read.", file, sheet)
    names = [_name(name) for name in names]
    names += [""] * (rows.width - len(names))
    texts = [_as_text(column, EXACT) for column in rows.get_columns()]
    blank = pl.Series([None] * rows.height, dtype=pl.String)
    texts += [blank] * (len(names) - len(texts))
    kept = _distinct(names, file, faults)
    frame = pl.DataFrame([text.alias(name) for text, name in zip(texts, kept, strict=True)])
    return _named(frame.filter(~pl.all_horizontal(pl.all().is_null())), names, kept)


def _delimited(data: bytes, file: Path, faults: list[Fault]) -> pl.DataFrame:
    data, encoding = as_utf8(data, file)
    if _LONE_CR.search(data, 0, data.find(b"\n") + 1 or len(data)):
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    stated, hint = stated_separator(data)
    data, above = data[len(hint) :], hint.count(b"\n")
    separator = stated or separator_of(data)
    names, head = _header(data, separator, file)
    if (separator, encoding) != (",", "utf-8"):
        called = SEPARATORS[separator] + ("" if encoding == "utf-8" else f", in {encoding.upper()}")
        _say("%s: its cells are separated by %s.", file, called)
    kept = _distinct(names, file, faults)
    body = data[len(head) :]
    try:
        frame = pl.read_csv(
            body, has_header=False, separator=separator, schema=dict.fromkeys(kept, pl.String)
        )
    except pl.exceptions.NoDataError:
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    except pl.exceptions.PolarsError:
        frame = _row_by_row(body, kept, separator, file, above + head.count(b"\n"))
    if separator != ",":
        frame = frame.with_columns(with_decimal_points(pl.all()))
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    # Commas at the ends of lines make columns without a name: no row needs those.
    width = max(i for i, name in enumerate(names, start=1) if name or i == 1)
    if frame.height and frame[kept[width - 1]].null_count():
        _find_short_rows(data, width, separator, above, file, faults)
    return _named(frame, names, kept)


def _named(frame: pl.DataFrame, names: list[str], kept: list[str]) -> pl.DataFrame:
    """The first column of each name, under that name."""
    first = {name: kept[names.index(name)] for name in dict.fromkeys(names)}
    return frame.select(first.values()).rename({column: name for name, column in first.items()})


_LONE_CR = re.compile(rb"\r(?!\n)")
_NOT_UTF8 = "is not UTF-8 text. Save it as UTF-8 (Excel: `CSV UTF-8`), or as .xlsx."


def _name(cell: str) -> str:
    """A column's name as it was meant: without blanks around it, on one line."""
    return re.sub(r"\s*[\r\n]\s*", " ", original_cell(cell.strip()).strip())


def _header(data: bytes, separator: str, file: Path) -> tuple[list[str], bytes]:
    """The columns' names, and the bytes that they stand in: more than a line if quotes say so."""
    taken: list[bytes] = []

    def lines() -> Iterator[str]:
        for line in io.BytesIO(data):
            taken.append(line)
            yield line.decode()

    try:
        cells = next(csv.reader(lines(), strict=True, delimiter=separator), [])
    except UnicodeDecodeError:
        raise InputError(f"{file} {_NOT_UTF8}") from None
    except csv.Error:
        raise InputError(
            f"{file}, line 1: a quote among the column names does not end where its cell does. "
            "Put quotes around whole names, or none."
        ) from None
    head = b"".join(taken)
    if not any(cell.strip() for cell in cells) and separator not in head.decode():
        raise InputError(f"{file} is empty: it has no line of column names.")
    return [_name(cell) for cell in cells], head


def _row_by_row(
    body: bytes, columns: list[str], separator: str, file: Path, above: int
) -> pl.DataFrame:
    """What polars does not read, read slowly; the lines at fault are named. Blank cells are null.

    `above`: lines of the file before `body`. Raises `InputError` for text that is not UTF-8, quotes
    that don't end with their cell, and rows with more cells than columns.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = above + 1 + body.count(b"\n", 0, error.start)
        raise InputError(f"{file}, line {line}: the file {_NOT_UTF8}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    rows: list[list[str | None]] = []
    long: list[str] = []
    begin = above + 1
    try:
        for row in reader:
            if len(row) > len(columns):
                long.append(f"line {begin}")
            rows.append([*(cell or None for cell in row), *[None] * (len(columns) - len(row))])
            begin = above + 1 + reader.line_num
    except csv.Error:
        raise InputError(
            f"{file}, line {begin}: a quote does not end where its cell does. Put quotes around "
            "whole cells, and write a quote inside of one twice."
        ) from None
    if long:
        called = SEPARATORS[separator].removesuffix("s")
        raise InputError(
            f"{file} has rows with more cells than its {len(columns)} columns: {examples(long)}. "
            f"A cell with a {called} in it needs quotes around it."
        )
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")


def _distinct(names: list[str], file: Path, faults: list[Fault]) -> list[str]:
    """Names that differ from each other; a fault for those that did not."""
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        message = f"{file} has columns that stand twice: {examples(twice)}. Keep one of each."
        faults.append(Fault("columns that stand twice", message, len(twice), tuple(twice)))
    return [f"{position}\0{name}" for position, name in enumerate(names)]


def _find_short_rows(
    data: bytes, width: int, separator: str, above: int, file: Path, faults: list[Fault]
) -> None:
    """A fault for rows with too few cells: a file that was cut, or shifted columns."""
    reader = csv.reader(io.StringIO(data.decode(), newline=""), delimiter=separator)
    try:
        short = [above + reader.line_num for row in reader if row and len(row) < width]
    except csv.Error:
        return
    if short:
        lines = tuple(f"line {line}" for line in short)
        message = (
            f"{file} has rows with fewer cells than its {width} columns: {examples(lines)}. "
            f"Was the file cut off? Each row needs all its {SEPARATORS[separator]}."
        )
        faults.append(Fault("rows with too few cells", message, len(short), lines))


def _parquet(data: bytes, file: Path) -> pl.DataFrame:
    frame = pl.read_parquet(io.BytesIO(data))
    columns = []
    for column in frame.get_columns():
        if column.dtype.is_nested() or column.dtype == pl.Binary:
            raise InputError(
                f"{file}: column '{column.name}' holds {column.dtype}, not one value a cell. "
                "Leave it out, or write it as text."
            )
        columns.append(_as_text(column).alias(column.name.strip()))
    repeated = [c.name for c in columns if sum(c.name == other.name for other in columns) > 1]
    if repeated:
        raise InputError(f"{file} has columns that stand twice: {examples(sorted(set(repeated)))}.")
    return pl.DataFrame(columns)


def _as_text(column: pl.Series, exact: float = 2.0**53) -> pl.Series:
    """As text; whole numbers stored as floats (ids beside blanks) lose their '.0'.

    Not where one of them is so large that different ones may have become it: their text shows it.
    """
    if not column.dtype.is_float():
        return column.cast(pl.String)
    column = column.fill_nan(None)
    known = column.drop_nulls()
    if bool((known == known.round()).all()) and bool((known.abs() < exact).all()):
        return column.cast(pl.Int64).cast(pl.String)
    large = column.abs().is_between(exact, _EXPONENT, closed="left").fill_null(False)
    shown = [f"{value:.16e}" for value in column.filter(large).to_list()]
    return column.cast(pl.String).scatter(large.arg_true(), shown)


_EXPONENT = 1e16  # from here on a number's text has an exponent by itself
