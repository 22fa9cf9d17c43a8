"""The cells of a workbook (.xlsx, .xls, .ods): of its first sheet that can be seen."""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl

from lingula.system.errors import InputError, examples

WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods")
EXACT = 1e15  # spreadsheets keep 15 digits of a number
_TOP = 100  # rows among which the names of columns begin


def read_sheet(data: bytes, file: Path) -> tuple[list[str], pl.DataFrame, str]:
    """Names of the columns, by the first row with a cell; the rows below it; the sheet's name.

    Raises `InputError` for what is no workbook, and where the package that reads it is missing.
    """
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
        if at is None:
            return [], pl.DataFrame(), seen[0]
        # A column's type follows from all its rows: where letters stand among digits, it is text.
        rows = book.load_sheet(
            seen[0], header_row=None, skip_rows=at + 1, schema_sample_rows=None
        ).to_polars()
    except Exception as error:  # the parser raises nearly anything on wild bytes
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{file} can't be read as a workbook: {reason}. Open it and save it as .xlsx or .csv."
        ) from None
    others = f" (not {examples(seen[1:])})" if seen[1:] else ""
    return ["" if cell is None else cell for cell in upper[at]], rows, f"'{seen[0]}'{others}"
