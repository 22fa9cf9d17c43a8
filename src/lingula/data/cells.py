"""All cells of a table file (.csv or .parquet) as text, and the faults of the file's shape."""

from __future__ import annotations

import csv
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

from lingula import files
from lingula.csv_cells import original_cell
from lingula.errors import InputError, examples

log = logging.getLogger("lingula")

FOLDER_TO_TABLE = "`lingula data folder` makes a table of films and a label file."


@dataclass(frozen=True)
class Fault:
    """A kind of fault: `what` in short; `message` says what, where and how to mend it."""

    what: str
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()


def read_cells(
    path: str | Path, *, nameless: bool = False
) -> tuple[pl.DataFrame, str, list[Fault]]:
    """All cells of a .csv or .parquet file as text, its SHA-256, and faults of its shape.

    Headers are stripped; missing cells are ''; columns without a name (but for `nameless`) and rows
    without a cell are left out; of a column that stands twice the first is kept, with a fault.

    Raises:
        InputError: a file that is missing, empty, no table, or not comma-separated UTF-8.
    """
    file = Path(path)
    if file.is_dir():
        raise files.not_a_file(file, "table", " " + FOLDER_TO_TABLE)
    packed = file.name.lower().endswith(".csv.gz")
    if not packed and file.suffix.lower() not in (".csv", ".parquet"):
        raise InputError(f"{file} is no table: tables are .csv or .parquet files.")
    try:
        data = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"There is no table {file}.") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"The table {file} can't be opened: {error}.") from None
    faults: list[Fault] = []
    try:
        if file.suffix.lower() == ".parquet":
            frame = _parquet(data, file)
        else:
            frame = _csv(data, file, faults)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{file} can't be read as a table: {reason}") from None
    unnamed = [name for name in frame.columns if name in ("", "Unnamed: 0")]
    if unnamed and not nameless:
        log.info("%s has a column without a name (an index?); it is not read.", file)
        frame = frame.drop(unnamed)
    return frame.fill_null(""), hashlib.sha256(data).hexdigest(), faults


def _csv(data: bytes, file: Path, faults: list[Fault]) -> pl.DataFrame:
    if _LONE_CR.search(data, 0, data.find(b"\n") + 1 or len(data)):
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    names, head = _header(data, file)
    kept = _distinct(names, file, faults)
    body = data[len(head) :]
    try:
        frame = pl.read_csv(body, has_header=False, schema=dict.fromkeys(kept, pl.String))
    except pl.exceptions.NoDataError:
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    except pl.exceptions.PolarsError:
        frame = _row_by_row(body, kept, file, head.count(b"\n"))
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    # Commas at the ends of lines make columns without a name: no row needs those.
    width = max(i for i, name in enumerate(names, start=1) if name or i == 1)
    if frame.height and frame[kept[width - 1]].null_count():
        _find_short_rows(data, width, file, faults)
    return frame.select(kept[names.index(name)] for name in dict.fromkeys(names)).rename(
        {kept[names.index(name)]: name for name in dict.fromkeys(names)}
    )


_LONE_CR = re.compile(rb"\r(?!\n)")
_NOT_UTF8 = "is not UTF-8 text. Save it as UTF-8 (comma separated)."


def _header(data: bytes, file: Path) -> tuple[list[str], bytes]:
    """The columns' names, and the bytes that they stand in: more than a line if quotes say so."""
    taken: list[bytes] = []

    def lines() -> Iterator[str]:
        for line in io.BytesIO(data):
            taken.append(line)
            yield line.decode("utf-8" if taken[1:] else "utf-8-sig")

    try:
        cells = next(csv.reader(lines(), strict=True), [])
    except UnicodeDecodeError:
        raise InputError(f"{file} {_NOT_UTF8}") from None
    except csv.Error:
        raise InputError(
            f"{file}, line 1: a quote among the column names does not end where its cell does. "
            "Put quotes around whole names, or none."
        ) from None
    head = b"".join(taken)
    if not any(cell.strip() for cell in cells) and "," not in head.decode():
        raise InputError(f"{file} is empty: it has no line of column names.")
    bare = re.sub('"[^"]*"', "", head.decode())
    for separator, called in ((";", ";"), ("\t", "tab")):
        if "," not in bare and separator in bare:
            raise InputError(
                f"{file} looks like {called} separated. Save it with commas between the cells and "
                "points in the numbers."
            )
    names = [original_cell(cell.strip()).strip() for cell in cells]
    return [re.sub(r"\s*[\r\n]\s*", " ", name) for name in names], head


def _row_by_row(body: bytes, columns: list[str], file: Path, above: int) -> pl.DataFrame:
    """What polars does not read, read slowly; the lines at fault are named. Blank cells are null.

    `above`: lines of the file before `body`. Raises `InputError` for text that is not UTF-8, quotes
    that don't end with their cell, and rows with more cells than columns.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = above + 1 + body.count(b"\n", 0, error.start)
        raise InputError(f"{file}, line {line}: the file {_NOT_UTF8}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
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
        raise InputError(
            f"{file} has rows with more cells than its {len(columns)} columns: {examples(long)}. "
            "A cell with a comma in it needs quotes around it."
        )
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")


def _distinct(names: list[str], file: Path, faults: list[Fault]) -> list[str]:
    """Names that differ from each other; a fault for those that did not."""
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        message = f"{file} has columns that stand twice: {examples(twice)}. Keep one of each."
        faults.append(Fault("columns that stand twice", message, len(twice), tuple(twice)))
    return [f"{position}\0{name}" for position, name in enumerate(names)]


def _find_short_rows(data: bytes, width: int, file: Path, faults: list[Fault]) -> None:
    """A fault for rows with too few cells: a file that was cut, or shifted columns."""
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    try:
        short = [reader.line_num for row in reader if row and len(row) < width]
    except csv.Error:
        return
    if short:
        lines = tuple(f"line {line}" for line in short)
        message = (
            f"{file} has rows with fewer cells than its {width} columns: {examples(lines)}. "
            "Was the file cut off? Each row needs all its commas."
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


def _as_text(column: pl.Series) -> pl.Series:
    """As text; whole numbers stored as floats (ids beside blanks) lose their '.0'."""
    if column.dtype.is_float():
        column = column.fill_nan(None)
        known = column.drop_nulls()
        if bool((known == known.round()).all()) and bool((known.abs() < 2.0**53).all()):
            column = column.cast(pl.Int64)
    return column.cast(pl.String)
