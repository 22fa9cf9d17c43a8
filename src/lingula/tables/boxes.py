"""Boxes of findings: where a sign lies, from `boxes.csv` beside a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from lingula.settings.label_space import canonical, fold
from lingula.system.csv_cells import original_cell
from lingula.system.errors import InputError
from lingula.tables.cells import read_frame
from lingula.tables.table import Table

Box = tuple[float, float, float, float]  # left, top, width, height in pixels of the image file
_NUMBERS = ("x", "y", "w", "h")
_COLUMNS = ("image", "finding", *_NUMBERS)


def read_boxes(path: str | Path) -> dict[tuple[str, str], list[Box]]:
    """Boxes by (image, canonical class name) from a file with image, finding, x, y, w, h.

    Raises `InputError` for a missing column and for a cell that is no number.
    """
    file = Path(path)
    text = read_frame(file)
    named = {fold(name): name for name in reversed(text.columns)}
    absent = [name for name in _COLUMNS if name not in named]
    if absent:
        raise InputError(f"{file} has no column '{absent[0]}'; boxes need image,finding,x,y,w,h.")
    frame = text.select(pl.col(named[name]).alias(name) for name in _COLUMNS).with_columns(
        pl.col(name).cast(pl.Float64, strict=False) for name in _NUMBERS
    )
    wrong = frame.filter(pl.any_horizontal(pl.col(name).is_null() for name in _NUMBERS))
    if wrong.height:
        raise InputError(f"{file}: a box of {wrong['image'][0]} has a side that is no number.")
    found: dict[tuple[str, str], list[Box]] = {}
    for row in frame.iter_rows(named=True):
        box = (row["x"], row["y"], row["w"], row["h"])
        found.setdefault((row["image"], canonical(original_cell(row["finding"]))), []).append(box)
    return found


def boxes_beside(table: Table) -> Mapping[tuple[str, str], list[Box]]:
    """The boxes of `boxes.csv` in the table's folder; none where there is no such file."""
    path = None if table.path is None else table.path.parent / "boxes.csv"
    return read_boxes(path) if path is not None and path.is_file() else {}
