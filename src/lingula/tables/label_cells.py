"""Label cells: which columns of a table file are classes, and what their cells say.

Every cell is read as text first, so that ids stay as they are. Faults are collected, not raised,
wherever reading can go on: `read_table` raises them, `data check` lists them.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lingula.settings.label_space import (
    SPACES,
    LabelSpace,
    canonical,
    fold,
    guess_finding,
    is_known,
)
from lingula.settings.vocabulary import parse_split
from lingula.system.errors import examples, nearest
from lingula.tables.cells import Fault, replace_decimal_commas
from lingula.tables.columns import NAMES, helper_kind, how_to_ignore, is_fact
from lingula.tables.table import BLANK, UNCERTAIN, UNMENTIONED

log = logging.getLogger("lingula")

_BLANKS = ("", "na", "n/a", "<na>", "nan", "null", "none")


def read_label_cells(
    frame: pl.DataFrame,
    columns: Mapping[str, str],
    space: LabelSpace,
    file: Path,
    faults: list[Fault],
    *,
    soft: bool = False,
    absent: float = UNMENTIONED,
) -> NDArray[np.float32]:
    """The cells (N, K) of the classes of `space`, with a fault per column with other cells.

    Args:
        frame: all cells as text.
        columns: class to column. A class without a column is `absent` in every row.
        space: the K classes.
        file: for messages.
        faults: get one more for each column with cells that are not labels, which are `BLANK`.
        soft: cells may be probabilities.
        absent: the cell of a class without a column.
    """
    labels = np.full((frame.height, len(space)), absent, dtype=np.float32)
    for name, column in columns.items():
        values = parse_labels(frame[column], soft)
        if values.null_count():
            faults.append(_fault_of_cells(frame[column], values, file, soft))
        labels[:, space.index(name)] = values.fill_null(BLANK).to_numpy()
    return labels


def _fault_of_cells(cells: pl.Series, values: pl.Series, file: Path, soft: bool) -> Fault:
    """The fault of a column with cells that are not labels: those whose value is null."""
    rows = np.flatnonzero(values.is_null().to_numpy())
    found = tuple(f"row {row + 2}: {cells[int(row)]!r}" for row in rows[:5])
    numbers = cells.filter(values.is_null()).cast(pl.Float32, strict=False)
    hint = "Labels are 1, 0, -1 (uncertain) or blank"
    if soft:
        hint += ", or with data.soft=true a number from 0 to 1"
    elif numbers.is_between(0, 1).any():
        hint += "; probabilities need data.soft=true"
    message = (
        f"{file}, row {rows[0] + 2}, column '{cells.name}': {cells[int(rows[0])]!r} is not a label "
        f"({len(rows)} such cells). {hint}. If the column is not a class: "
        f"{how_to_ignore([cells.name])}"
    )
    return Fault(f"cells of '{cells.name}' that are not labels", message, len(rows), found)


def parse_labels(cells: pl.Series, soft: bool = False) -> pl.Series:
    """Label cells as Float32, null where a cell is not a label.

    1, 1.0, True are 1 and 0, 0.0, False are 0; -1 is `UNCERTAIN`; '', NA, NaN, null and the like
    are `BLANK`; with `soft`, any number from 0 to 1 is itself.
    """
    # Nearly all columns have a few texts many times: each text is looked at once.
    distinct = cells.unique()
    text = replace_decimal_commas(pl.col("cells")).str.strip_chars().str.to_lowercase()
    number = text.cast(pl.Float32, strict=False)
    allowed = number.is_between(0.0, 1.0) if soft else (number == 0.0) | (number == 1.0)
    values = (
        pl.when(text.is_in(_BLANKS))
        .then(pl.lit(BLANK, pl.Float32))
        .when(number == -1.0)
        .then(pl.lit(UNCERTAIN, pl.Float32))
        .when(text.is_in(["true", "false"]))
        .then((text == "true").cast(pl.Float32))
        .when(allowed)
        .then(number)
    )
    known = pl.DataFrame({"cells": distinct}).select(values).to_series()
    return cells.replace_strict(distinct, known, default=None, return_dtype=pl.Float32)


def looks_like_labels(cells: pl.Series, soft: bool = False) -> bool:
    """Whether all cells are labels and not all of them are blank."""
    values = parse_labels(cells.unique(), soft)
    return not values.null_count() and bool((values > BLANK).any())


def class_columns(
    frame: pl.DataFrame,
    rest: list[str],
    space: LabelSpace | None,
    file: Path,
    soft: bool,
    faults: list[Fault],
    named: Collection[str] = (),
) -> dict[str, str]:
    """Class name to column, with a fault for every column that is neither an id nor a class.

    Without a space, names of helpers (see `columns.helper_kind`) are not classes unless they are
    `named`.
    """
    found: dict[str, str] = {}
    spelled: dict[str, str] = {}
    strange = []
    unasked = []
    helpers: dict[str, str] = {}
    wanted = {fold(canonical(name)) for name in named}
    for column in rest:
        known = space.classes[space.index(column)] if space and column in space else None
        if space is None and (is_known(column) or looks_like_labels(frame[column], soft)):
            kind = "" if fold(column) in wanted else _describe_column(column)
            if kind:
                helpers[column] = kind
                continue
            known = canonical(column)
            _warn_of_typo(column, file)
        if known is None and is_known(column):
            unasked.append(column)
        elif known is None:
            strange.append(column)
        elif fold(known) in spelled:
            other = spelled[fold(known)]
            message = (
                f"{file}: columns '{other}' and '{column}' are the same class. Ignore one: "
                f"{how_to_ignore([column])}"
            )
            faults.append(Fault("columns of the same class", message, 1, (column,)))
        else:
            found[known] = spelled[fold(known)] = column
    if unasked:
        log.info("%s: findings outside the label space, not read: %s.", file, examples(unasked, 26))
    if strange:
        faults.append(_fault_of_columns(frame, strange, space, file))
    if helpers:
        faults.append(_fault_of_helpers(helpers, file))
    return found


def _describe_column(column: str) -> str:
    """What a column says by its name if it is not a class; else ''."""
    return "what another column says" if is_fact(column) else helper_kind(column)


def _fault_of_helpers(helpers: Mapping[str, str], file: Path) -> Fault:
    """The fault of helpers' columns of 0 and 1, which would become findings without a word."""
    listed = ", ".join(f"'{name}' (looks like {kind})" for name, kind in helpers.items())
    parts = [name for name, kind in helpers.items() if kind == "a split"]
    parts.sort(key=lambda name: "fold" in fold(name))  # a fold is the split of one model only
    offer = (
        f" For '{parts[0]}' to be the split, call it `split`: train, dev, test." if parts else ""
    )
    message = (
        f"{file}: columns of 0 and 1 that are not findings by their names are left out: {listed}. "
        f"Say so: {how_to_ignore(helpers)}. Or, if one is a class, name all classes: "
        'data.classes=[...] in training, "classes": [...] in '
        f"{file.with_suffix('.json').name} elsewhere.{offer}"
    )
    return Fault("columns of helpers", message, len(helpers), tuple(helpers), fatal=False)


def _warn_of_typo(column: str, file: Path) -> None:
    if is_known(column):
        return
    names = {fold(name): name for name in NAMES.values()}
    close = difflib.get_close_matches(fold(column), list(names), n=1, cutoff=0.88)
    likely = guess_finding(column) or (names[close[0]] if close else None)
    if likely is not None:
        log.warning("%s: '%s' is read as a class of its own. Is it '%s'?", file, column, likely)


def _known_classes() -> list[str]:
    return sorted({name for space in SPACES.values() for name in space.classes})


def _is_list(cell: str) -> bool:
    """Whether a cell names several findings: parted by `|`, or otherwise if all are known."""
    parts = [part.strip(" '\"[]()") for part in re.split(r"[|;,]", cell)]
    return "|" in cell or (len(parts) > 1 and all(map(is_known, parts)))


def _fault_of_columns(
    frame: pl.DataFrame, strange: list[str], space: LabelSpace | None, file: Path
) -> Fault:
    """The fault for columns that are neither ids nor classes, with how to fix it."""
    names = [*NAMES.values(), *(space.classes if space else _known_classes())]
    shown_columns = []
    for column in strange[:5]:
        cells = [text for text in frame[column].head(1000) if text.strip()]
        several = next((text for text in cells if _is_list(text)), None)
        cell = several or next(iter(cells), "")
        shown = cell if len(cell) <= 40 else cell[:37] + "..."
        hint = nearest(column, names)
        if several is not None:
            hint = " It contains lists; a table has a column of 1 and 0 for each finding."
        elif cell and all(parse_split(text) is not None for text in frame[column].unique()):
            hint = " It contains names of splits: call it `split`, if it is the split."
        shown_columns.append(f"'{column}' (e.g. {shown!r}){hint}")
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    what = "ids nor classes" if space is None else f"ids nor one of the {len(space)} classes"
    message = (
        f"{file} has columns that are neither {what}: {'; '.join(shown_columns)}{more}. "
        f"Rename them, or leave them out: {how_to_ignore(strange)}"
    )
    return Fault("columns that are neither ids nor classes", message, len(strange), tuple(strange))
