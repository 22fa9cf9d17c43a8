"""Cells of a table file as text: which column is which, and what a label cell says.

Every cell is read as text first, so that ids stay as they are. Faults are collected, not raised,
wherever reading can go on: `read_table` raises them, `data check` lists them.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from lingula.settings.label_space import SPACES, LabelSpace, canonical, fold, is_known, likely
from lingula.system.csv_cells import original_cell
from lingula.system.errors import examples, nearest
from lingula.tables.cells import Fault
from lingula.tables.names import NAMES, helper, is_fact, known_columns
from lingula.tables.separators import with_decimal_points

log = logging.getLogger("lingula")

SPLIT_NAMES = {
    "": "",
    "train": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validate": "dev",
    "validation": "dev",
    "development": "dev",
    "test": "test",
}
BLANKS = ("", "na", "n/a", "<na>", "nan", "null", "none")
_KEYS = ("ids", "patients", "studies")
# Columns of free text by their written names: no ids, so that no spreadsheet need run them.
FREE = ("view", "age", "sex", "source")


def text_cells(
    frame: pl.DataFrame, file: Path, faults: list[Fault], classes: Container[str] = ()
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Cells of the known columns by field of `Table`, and the names of all other columns.

    Names in `classes` are no aliases of known ones.
    """
    texts: dict[str, tuple[str, ...]] = {}
    taken: dict[str, str] = {}
    known = known_columns(frame.columns, classes)
    for name, field in known.items():
        if field in taken:
            message = (
                f"{file}: columns '{taken[field]}' and '{name}' both say the {NAMES[field]}. "
                f"Ignore one: {ignoring([name])}"
            )
            faults.append(Fault("columns that stand twice", message, 1, (name,)))
        else:
            taken[field] = name
            cells = frame[name].str.strip_chars()
            if field in _KEYS:
                cells = whole_ids(cells, file, faults)
            texts[field] = tuple(cells.to_list())
            if NAMES[field] in FREE and file.suffix.lower() != ".parquet":
                texts[field] = tuple(original_cell(cell) for cell in texts[field])
    if "splits" in texts:
        texts["splits"] = _split_cells(texts["splits"], file, faults)
    return texts, [name for name in frame.columns if name not in known]


def whole_ids(cells: pl.Series, file: str | Path, faults: list[Fault]) -> pl.Series:
    """'59999999.0' as '59999999', cell by cell: `1` and `1.0` are one id; a fault for `1.9E+38`."""
    rounded = cells.filter(cells.str.contains(r"^\d(\.\d+)?[eE]\+\d+$|^\d\.\d+[eE]\d+$"))
    if len(rounded):
        shown = tuple(rounded.unique(maintain_order=True).to_list())
        message = (
            f"{file}: column '{cells.name}' holds rounded numbers such as {shown[0]}: different "
            "ids became one. Take the ids from the original table, as text."
        )
        faults.append(Fault("ids that were rounded", message, len(rounded), shown))
    if not cells.str.ends_with(".0").any():
        return cells
    return cells.str.replace(r"^(\d+)\.0$", "$1")


def whole_id(text: str) -> str:
    """One id as `whole_ids` gives it."""
    return text[:-2] if text.endswith(".0") and text[:-2].isdecimal() else text


def _split_cells(cells: tuple[str, ...], file: Path, faults: list[Fault]) -> tuple[str, ...]:
    known = {cell: SPLIT_NAMES.get(cell.casefold()) for cell in set(cells)}
    wrong = tuple(sorted(cell for cell, split in known.items() if split is None))
    if wrong:
        message = (
            f"{file}: column 'split' holds {examples(repr(cell) for cell in wrong)}; it must be "
            "train, dev (or val, valid, validate, validation), test or blank."
        )
        count = sum(cell in wrong for cell in cells)
        faults.append(Fault("unknown names of splits", message, count, wrong))
    return tuple(known[cell] or "" for cell in cells)


def label_values(
    cells: pl.Series, *, blank: float, uncertain: float, soft: bool = False
) -> pl.Series:
    """Label cells as Float32, null where a cell is no label.

    1, 1.0, True are 1 and 0, 0.0, False are 0; -1 is `uncertain`; '', NA, NaN, null and the like
    are `blank`; with `soft`, any number from 0 to 1 stands for itself.
    """
    distinct = cells.unique()
    values = _values(distinct, blank, uncertain, soft)
    # Nearly all columns hold a few texts many times: each text is looked at once.
    return cells.replace_strict(distinct, values, default=None, return_dtype=pl.Float32)


def _values(cells: pl.Series, blank: float, uncertain: float, soft: bool) -> pl.Series:
    text = with_decimal_points(pl.col("cells")).str.strip_chars().str.to_lowercase()
    number = text.cast(pl.Float32, strict=False)
    allowed = number.is_between(0.0, 1.0) if soft else (number == 0.0) | (number == 1.0)
    values = (
        pl.when(text.is_in(BLANKS))
        .then(pl.lit(blank, pl.Float32))
        .when(number == -1.0)
        .then(pl.lit(uncertain, pl.Float32))
        .when(text.is_in(["true", "false"]))
        .then((text == "true").cast(pl.Float32))
        .when(allowed)
        .then(number)
    )
    return pl.DataFrame({"cells": cells}).select(values.alias(cells.name)).to_series()


def looks_like_labels(cells: pl.Series, soft: bool = False) -> bool:
    """Whether all cells are labels and not all of them are blank."""
    distinct = cells.unique()
    values = label_values(distinct, blank=-2.0, uncertain=-1.0, soft=soft)
    return not values.null_count() and bool((values > -2.0).any())


def ignoring(columns: Iterable[str]) -> str:
    """How columns are left out, as it is typed: in training, and in the other commands."""
    named: Sequence[str] = [json.dumps(name, ensure_ascii=False) for name in columns]
    others = "--ignore-columns " + (named[0] if len(named) == 1 else "NAME for each")
    return f"'data.ignore_columns=[{','.join(named)}]' in training, {others} elsewhere"


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

    Without a space, names of helpers (see `names.helper`) are no classes unless they are `named`.
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
            kind = "" if fold(column) in wanted else _said(column)
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
                f"{ignoring([column])}"
            )
            faults.append(Fault("columns of the same class", message, 1, (column,)))
        else:
            found[known] = spelled[fold(known)] = column
    if unasked:
        log.info("%s: findings outside the label space, not read: %s.", file, examples(unasked, 26))
    if strange:
        faults.append(_neither(frame, strange, space, file))
    if helpers:
        faults.append(_of_helpers(helpers, file))
    return found


def _said(column: str) -> str:
    """What a column says by its name if it is no class; else ''."""
    return "what another column says" if is_fact(column) else helper(column)


def _of_helpers(helpers: Mapping[str, str], file: Path) -> Fault:
    """The fault of helpers' columns of 0 and 1, which would become findings without a word."""
    told = ", ".join(f"'{name}' (looks like {kind})" for name, kind in helpers.items())
    parts = [name for name, kind in helpers.items() if kind == "a split"]
    parts.sort(key=lambda name: "fold" in fold(name))  # a fold is the split of one model only
    offer = (
        f" For '{parts[0]}' to be the split, call it `split`: train, dev, test." if parts else ""
    )
    message = (
        f"{file}: columns of 0 and 1 that are no findings by their names are left out: {told}. "
        f"Say so: {ignoring(helpers)}. Or, if one is a class, name all classes: data.classes=[...] "
        f'in training, "classes": [...] in {file.with_suffix(".json").name} elsewhere.{offer}'
    )
    return Fault("columns of helpers", message, len(helpers), tuple(helpers), fatal=False)


def _warn_of_typo(column: str, file: Path) -> None:
    if is_known(column):
        return
    names = {fold(name): name for name in NAMES.values()}
    close = difflib.get_close_matches(fold(column), list(names), n=1, cutoff=0.88)
    meant = likely(column) or (names[close[0]] if close else None)
    if meant is not None:
        log.warning("%s: '%s' is read as a class of its own. Is it '%s'?", file, column, meant)


def _known_classes() -> list[str]:
    return sorted({name for space in SPACES.values() for name in space.classes})


def _is_list(cell: str) -> bool:
    """Whether a cell names several findings: parted by `|`, or otherwise if all are known."""
    parts = [part.strip(" '\"[]()") for part in re.split(r"[|;,]", cell)]
    return "|" in cell or (len(parts) > 1 and all(map(is_known, parts)))


def _neither(
    frame: pl.DataFrame, strange: list[str], space: LabelSpace | None, file: Path
) -> Fault:
    """The fault for columns that are neither ids nor classes, with how to mend it."""
    names = [*NAMES.values(), *(space.classes if space else _known_classes())]
    told = []
    for column in strange[:5]:
        cells = [text for text in frame[column].head(1000) if text.strip()]
        several = next((text for text in cells if _is_list(text)), None)
        cell = several or next(iter(cells), "")
        shown = cell if len(cell) <= 40 else cell[:37] + "..."
        hint = nearest(column, names)
        if several is not None:
            hint = " It holds lists; a table has a column of 1 and 0 for each finding."
        elif cell and all(
            text.strip().casefold() in SPLIT_NAMES for text in frame[column].unique()
        ):
            hint = " It holds names of splits: call it `split`, if it is the split."
        told.append(f"'{column}' (e.g. {shown!r}){hint}")
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    what = "ids nor classes" if space is None else f"ids nor one of the {len(space)} classes"
    message = (
        f"{file} has columns that are neither {what}: {'; '.join(told)}{more}. "
        f"Rename them, or leave them out: {ignoring(strange)}"
    )
    return Fault("columns that are neither ids nor classes", message, len(strange), tuple(strange))
