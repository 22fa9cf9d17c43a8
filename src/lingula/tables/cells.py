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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl

from lingula.system import files
from lingula.system.csv_cells import unescape_cell
from lingula.system.errors import InputError, examples

log = logging.getLogger("lingula")

_TEXTS = (".csv", ".tsv", ".tab", ".txt")
_WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods")
FOLDER_TO_TABLE = "`lingula data folder` makes a table of images and a label file."

# In this order where a header line and the rows fit several.
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SAMPLE, _ROWS = 1 << 16, 200  # bytes and rows that are looked at for the separator
_SEPARATOR_LINE = re.compile(rb'"?sep=([,;\t|])"?\r?\n', re.IGNORECASE)  # spreadsheets write it
_LONE_CR = re.compile(rb"\r(?!\n)")
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_ZIP, _OLE, _GZIP = b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"\x1f\x8b"
_NOT_UTF8 = "is not UTF-8 text. Save it as UTF-8 (Excel: `CSV UTF-8`), or as .xlsx."
# Names that a spreadsheet or pandas gives to a column without one.
_NAMELESS = re.compile(r"(Unnamed: \d+(\.\d+)?)?")
_TOP = 100  # rows of a sheet among which the names of columns begin
_SHEET_EXACT = 1e15  # spreadsheets keep 15 digits of a number
_EXPONENT = 1e16  # from here on a number's text has an exponent by itself


@dataclass(frozen=True)
class Fault:
    """A kind of fault: `what` in short; `message` says what is wrong, where, and how to fix it.

    `data check` lists every fault; other commands stop at a `fatal` one and warn of the others.
    """

    what: str
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()
    fatal: bool = True


def raise_faults(faults: Sequence[Fault]) -> None:
    """Raise an `InputError` of the fatal faults; without any, warn of the others."""
    fatal = [fault.message for fault in faults if fault.fatal]
    if fatal:
        raise InputError("\n".join(fatal))
    for fault in faults:
        _log_once(logging.WARNING, "%s", fault.message)


@functools.cache
def _log_once(level: int, message: str, *values: object) -> None:
    """Log once per process: several steps of a command may read the same file."""
    log.log(level, message, *values)


def is_table(path: str | Path) -> bool:
    """Whether a file's name is that of a table that can be read."""
    name = Path(path).name.lower().removesuffix(".gz")
    return name.endswith((*_TEXTS, *_WORKBOOKS, ".parquet"))


def read_frame(path: str | Path, *, nameless: bool = False) -> pl.DataFrame:
    """All cells of a table file as text, as `read_cells`; every fault of its shape is raised."""
    frame, _, faults = read_cells(path, nameless=nameless)
    raise_faults(faults)
    return frame


def read_cells(
    path: str | Path, *, nameless: bool = False
) -> tuple[pl.DataFrame, str, list[Fault]]:
    """All cells of a table file as text, its SHA-256, and the faults of its shape.

    Text (.csv, .tsv, .txt, also packed by gzip) is UTF-8 or UTF-16; the line of column names tells
    its separator: a comma, a semicolon, a tab or a bar. Where it is no comma, `0,5` is 0.5. Of a
    workbook (.xlsx, .xls, .ods) the first visible sheet is read. What was chosen is logged.

    Headers are stripped; missing cells are ''; columns without a name (but for `nameless`) and rows
    without a cell are left out; of repeated columns the first is kept, with a fault.

    Raises:
        InputError: a file that is missing, empty, no table, or neither UTF-8 nor UTF-16.
    """
    file = Path(path)
    if file.is_dir():
        raise files.not_a_file(file, "table", " " + FOLDER_TO_TABLE)
    if not is_table(file):
        raise InputError(f"{file} is not a table: tables are .csv, .tsv, .parquet or .xlsx files.")
    data = _unpack(file)
    faults: list[Fault] = []
    try:
        frame = _parse_frame(data, file, faults)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{file} can't be read as a table: {reason}") from None
    unnamed = [name for name in frame.columns if _NAMELESS.fullmatch(name)]
    if unnamed and not nameless:
        log.info("%s has a column without a name (an index?); it is not read.", file)
        frame = frame.drop(unnamed)
    return frame.fill_null(""), hashlib.sha256(data).hexdigest(), faults


def _unpack(file: Path) -> bytes:
    try:
        data = file.read_bytes()
        return gzip.decompress(data) if data.startswith(_GZIP) else data
    except FileNotFoundError:
        raise InputError(f"There is no table {file}.") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"The table {file} can't be opened: {error}.") from None


def _parse_frame(data: bytes, file: Path, faults: list[Fault]) -> pl.DataFrame:
    """By the content: some programs write text, or a workbook, under the name of the other."""
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix == ".parquet" or data.startswith(b"PAR1"):
        return _read_parquet(data, file, faults)
    if suffix in _WORKBOOKS[:2] or data.startswith((_ZIP, _OLE)):
        return _read_workbook(data, file, faults)
    return _read_delimited(data, file, faults)


def _name_columns(
    columns: Sequence[pl.Series], names: Sequence[str], file: Path, faults: list[Fault]
) -> pl.DataFrame:
    """The first column of each name, under that name; rows without a cell are left out."""
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        message = f"{file} has several columns named {examples(twice)}. Keep one of each."
        faults.append(Fault("repeated columns", message, len(twice), tuple(twice)))
    unique = [column.alias(str(place)) for place, column in enumerate(columns)]
    frame = pl.DataFrame(unique).filter(~pl.all_horizontal(pl.all().is_null()))
    first = {name: str(names.index(name)) for name in dict.fromkeys(names)}
    return frame.select(pl.col(place).alias(name) for name, place in first.items())


def _clean_name(cell: str) -> str:
    """A column's name without blanks around it, on one line."""
    return re.sub(r"\s*[\r\n]\s*", " ", unescape_cell(cell.strip()).strip())


def _read_parquet(data: bytes, file: Path, faults: list[Fault]) -> pl.DataFrame:
    columns = pl.read_parquet(io.BytesIO(data)).get_columns()
    for column in columns:
        if column.dtype.is_nested() or column.dtype == pl.Binary:
            raise InputError(
                f"{file}: column '{column.name}' has {column.dtype}, not one value per cell. "
                "Leave it out, or write it as text."
            )
    return _name_columns([*map(_as_text, columns)], [c.name.strip() for c in columns], file, faults)


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


def _read_workbook(data: bytes, file: Path, faults: list[Fault]) -> pl.DataFrame:
    """The first visible sheet; its first row with a cell has the names of the columns."""
    try:
        import fastexcel
    except ImportError:
        raise InputError(
            f"{file} is a workbook, which needs the extra `xlsx`: pip install 'lingula[xlsx]'. Or "
            "save it as .csv."
        ) from None
    logging.getLogger("fastexcel").setLevel(logging.ERROR)  # it warns of columns without cells
    try:
        book = fastexcel.read_excel(data)
        sheets = [book.load_sheet(name, header_row=None, n_rows=0) for name in book.sheet_names]
        seen = [sheet.name for sheet in sheets if sheet.visible == "visible"] or book.sheet_names
        top = book.load_sheet(seen[0], header_row=None, skip_rows=0, n_rows=_TOP, dtypes="string")
        upper = top.to_polars().rows()
        at = next((i for i, row in enumerate(upper) if any(row)), None)
        if at is not None:
            # A column's type follows from all its rows: with letters among digits, it is text.
            rows = book.load_sheet(
                seen[0], header_row=None, skip_rows=at + 1, schema_sample_rows=None
            ).to_polars()
    except Exception as error:  # the parser raises nearly anything on wild bytes
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{file} can't be read as a workbook: {reason}. Open it and save it as .xlsx or .csv."
        ) from None
    sheet = f"'{seen[0]}'" + (f" (not {examples(seen[1:])})" if seen[1:] else "")
    if at is None:
        raise InputError(f"{file} is empty: its sheet {sheet} has no cell.")
    _log_once(logging.INFO, "%s: its sheet %s is read.", file, sheet)
    names = [_clean_name(cell or "") for cell in upper[at]]
    texts = [_as_text(column, _SHEET_EXACT) for column in rows.get_columns()]
    names += [""] * (len(texts) - len(names))
    blank = pl.Series([None] * rows.height, dtype=pl.String)
    return _name_columns([*texts, *[blank] * (len(names) - len(texts))], names, file, faults)


def _read_delimited(data: bytes, file: Path, faults: list[Fault]) -> pl.DataFrame:
    data, encoding = _as_utf8(data, file)
    if _LONE_CR.search(data, 0, data.find(b"\n") + 1 or len(data)):
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    stated = _SEPARATOR_LINE.match(data)
    start = stated.end() if stated else 0
    separator = stated[1].decode() if stated else _find_separator(data)
    names, size = _read_header(data[start:], separator, file)
    if (separator, encoding) != (",", "utf-8"):
        called = _SEPARATORS[separator]
        called += "" if encoding == "utf-8" else f", in {encoding.upper()}"
        _log_once(logging.INFO, "%s: its cells are separated by %s.", file, called)
    body, above = data[start + size :], data.count(b"\n", 0, start + size)
    schema = dict.fromkeys(map(str, range(len(names))), pl.String)
    try:
        frame = pl.read_csv(body, has_header=False, separator=separator, schema=schema)
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame(schema=schema)
    except pl.exceptions.PolarsError:
        rows = _read_row_by_row(body, len(names), separator, file, above)
        frame = pl.DataFrame(rows, schema=schema, orient="row")
    if separator != ",":
        frame = frame.with_columns(replace_decimal_commas(pl.all()))
    frame = _name_columns(frame.get_columns(), names, file, faults)
    # Commas at the ends of lines make columns without a name: no row needs those.
    width = max(i for i, name in enumerate(names, start=1) if name or i == 1)
    if frame.height and frame[names[width - 1]].null_count():
        _find_short_rows(body, width, separator, above, file, faults)
    return frame


def _as_utf8(data: bytes, file: Path) -> tuple[bytes, str]:
    """The bytes as UTF-8 without a mark, and the encoding that they had; `utf-8` is not checked.

    UTF-16 and UTF-32 are known by their marks, UTF-16 also by its zeros.
    """
    codec = next((name for mark, name in _MARKS if data.startswith(mark)), _guess_encoding(data))
    if codec.startswith("utf-8"):
        return data[3:] if codec == "utf-8-sig" else data, "utf-8"
    try:
        return data.decode(codec).removeprefix("\ufeff").encode(), codec[:6]
    except UnicodeError:
        raise InputError(
            f"{file} is not complete {codec[:6].upper()} text: was it cut off?"
        ) from None


def _guess_encoding(data: bytes) -> str:
    """`utf-16-le` or `-be` for text of which every other byte is zero, else `utf-8`."""
    first, second = data[:64:2], data[1:64:2]
    if len(second) > 2 and 0 not in first and second.count(0) * 2 > len(second):
        return "utf-16-le"
    if len(second) > 2 and 0 not in second and first.count(0) * 2 > len(first):
        return "utf-16-be"
    return "utf-8"


def _find_separator(data: bytes) -> str:
    """The separator that is in the line of column names outside of quotes.

    Of several, the first by which that line and all rows have equally many cells; of none, a comma.
    """
    text = data[:_SAMPLE].decode("utf-8", "replace")
    if len(data) > _SAMPLE:
        text = text[: text.rfind("\n") + 1] or text
    lines = text.splitlines(keepends=True)[:20]
    records = ("".join(lines[:count]) for count in range(1, len(lines) + 1))
    # As many lines as it takes until every quote has its partner.
    first = next((record for record in records if record.count('"') % 2 == 0), "".join(lines[:1]))
    bare = re.sub('"[^"]*"', "", first)
    fitting = [separator for separator in _SEPARATORS if separator in bare]
    if len(fitting) < 2:
        return fitting[0] if fitting else ","
    return next((one for one in fitting if _rows_are_alike(text, one)), fitting[0])


def _rows_are_alike(text: str, separator: str) -> bool:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        rows = [row for row in islice(reader, _ROWS) if any(cell.strip() for cell in row)]
    except csv.Error:
        return False
    return len({len(row) for row in rows}) == 1


def replace_decimal_commas(cells: pl.Expr) -> pl.Expr:
    """Cells such as `0,5` as `0.5`, in columns of numbers or where commas separate no cells."""
    return cells.str.replace(r"^(\s*[+-]?\d+),(\d+(?:[eE][+-]?\d+)?\s*)$", "$1.$2")


def _read_header(data: bytes, separator: str, file: Path) -> tuple[list[str], int]:
    """The columns' names, and how many bytes they take: more than a line if quotes say so."""
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
    if not any(cell.strip() for cell in cells) and len(cells) < 2:
        raise InputError(f"{file} is empty: it has no line of column names.")
    return [_clean_name(cell) for cell in cells], sum(map(len, taken))


def _read_row_by_row(
    body: bytes, width: int, separator: str, file: Path, above: int
) -> list[list[str | None]]:
    """What polars does not read, read slowly; the lines at fault are named. Blank cells are None.

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
            if len(row) > width:
                long.append(f"line {begin}")
            rows.append([*(cell or None for cell in row), *[None] * (width - len(row))])
            begin = above + 1 + reader.line_num
    except csv.Error:
        raise InputError(
            f"{file}, line {begin}: a quote does not end where its cell does. Put quotes around "
            "whole cells, and write a quote inside of one twice."
        ) from None
    if long:
        called = _SEPARATORS[separator].removesuffix("s")
        raise InputError(
            f"{file} has rows with more cells than its {width} columns: {examples(long)}. "
            f"A cell with a {called} in it needs quotes around it."
        )
    return rows


def _find_short_rows(
    body: bytes, width: int, separator: str, above: int, file: Path, faults: list[Fault]
) -> None:
    """Add a fault for rows with too few cells: a file that was cut off, or shifted columns."""
    reader = csv.reader(io.StringIO(body.decode(), newline=""), delimiter=separator)
    try:
        short = [above + reader.line_num for row in reader if row and len(row) < width]
    except csv.Error:
        return
    if short:
        lines = tuple(f"line {line}" for line in short)
        message = (
            f"{file} has rows with fewer cells than its {width} columns: {examples(lines)}. "
            f"Was the file cut off? Each row needs all its {_SEPARATORS[separator]}."
        )
        faults.append(Fault("rows with too few cells", message, len(short), lines))
