"""`lingula data join`, `split` and `filter`: new tables from tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lingula.settings.label_space import fold, label_space
from lingula.system.errors import InputError, examples
from lingula.tables.cells import read_frame
from lingula.tables.joins import check_overlap, overlap, union
from lingula.tables.making import Made, check_not_an_input, made
from lingula.tables.mapping import read_map
from lingula.tables.reading import read_table
from lingula.tables.splits import check_parts, patients_in_two_splits, split_by_patient
from lingula.tables.table import Table, rows_of, subset, with_splits
from lingula.tables.where import rows_where

log = logging.getLogger("lingula")


def data_join(
    tables: Sequence[str | Path],
    *,
    out: str | Path,
    classes: str | Sequence[str] | None = None,
    mapping: str | Path | None = None,
    images: bool = True,
    ignore_columns: Sequence[str] = (),
    soft: bool = False,
    overwrite: bool = False,
) -> Made:
    """Write one table of several, their classes joined by name.

    Args:
        tables: two or more.
        out: the new table.
        classes: a label space by name, or class names; None takes every class of any table.
        mapping: a .yaml map for classes that do not go by name.
        images: compare the image files of the tables, byte by byte where it is needed.
        ignore_columns: columns that are no classes; they are not in the new table.
        soft: cells may be probabilities.
        overwrite: rename a table that is in the way.

    Raises:
        InputError: patients in two tables, images in two tables in different splits, tables of one
            source that know different classes.
    """
    if len(tables) < 2:
        raise InputError("Joining needs two tables or more.")
    check_not_an_input(out, tables)
    read = [_read(path, ignore_columns, soft) for path in tables]
    shared = overlap(read, images=images)
    check_overlap(read, shared)
    if shared.images:
        shown = [f"{a} = {b}" for a, b in shared.images]
        log.warning("%d images stand in two tables: %s.", len(shown), examples(shown))
    space = None if classes is None else label_space(classes)
    joined = union(read, space, None if mapping is None else read_map(mapping))
    return made(joined, out, images=False, overwrite=overwrite)


def _read(path: str | Path, ignored: Sequence[str], soft: bool) -> Table:
    """One table of several: of the columns to ignore those apply that it has."""
    there = {fold(name) for name in read_frame(path).columns} if ignored else set()
    return read_table(
        path, ignore_columns=[name for name in ignored if fold(name) in there], soft=soft
    )


def data_split(
    table: str | Path,
    *,
    out: str | Path,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    within: str | None = None,
    images_are_patients: bool = False,
    ignore_columns: Sequence[str] = (),
    soft: bool = False,
    overwrite: bool = False,
) -> Made:
    """Write the table with a split by patient that spreads the rare classes.

    Args:
        table: the table.
        out: the new table.
        fractions: shares of the images in train, dev and test.
        seed: of the order in which patients are taken.
        within: a split: only its rows are split anew, the others stay as they are. So an official
            training set gives its dev set: `within="train", fractions=(0.9, 0.1, 0)`.
        images_are_patients: a row without a patient is a patient of its own.
        ignore_columns: columns that are no classes; they are not in the new table.
        soft: cells may be probabilities.
        overwrite: rename a table that is in the way.
    """
    check_not_an_input(out, [table])
    read = read_table(table, ignore_columns=ignore_columns, soft=soft)
    if within is None:
        if read.splits is not None:
            log.warning("%s has a split, which is replaced. To split one part: --within", table)
        splits = split_by_patient(
            read, fractions=fractions, seed=seed, images_are_patients=images_are_patients
        )
        check_parts(splits, fractions, table)
        return made(with_splits(read, splits), out, images=False, overwrite=overwrite)
    rows = rows_of(read, within)
    if not len(rows):
        raise InputError(f"{table} has no rows with split '{within}' to split.")
    names = np.array(read.splits, dtype=object)
    parts = split_by_patient(
        subset(read, rows), fractions=fractions, seed=seed, images_are_patients=images_are_patients
    )
    check_parts(parts, fractions, f"{table} ({within})")
    names[rows] = parts
    parted = with_splits(read, tuple(names.tolist()))
    _check_apart(parted, table)
    return made(parted, out, images=False, overwrite=overwrite)


def _check_apart(table: Table, path: str | Path) -> None:
    shared = patients_in_two_splits(table)
    if shared:
        raise InputError(
            f"{path}: patients stand in more than one split: {examples(shared)}. Its split was not "
            "by patient; split the whole table."
        )


def data_filter(
    table: str | Path,
    *,
    out: str | Path,
    where: str,
    ignore_columns: Sequence[str] = (),
    soft: bool = False,
    overwrite: bool = False,
) -> Made:
    """Write the rows of a table for which the condition `where` holds.

    The condition compares columns and classes with constants: `view in ('PA', 'AP') and age >= 18`.

    Raises:
        InputError: a condition that is none, that names no column, or that leaves no row.
    """
    check_not_an_input(out, [table])
    read = read_table(table, ignore_columns=ignore_columns, soft=soft)
    rows = rows_where(read, where)
    if not len(rows):
        raise InputError(f"No row of {table} fulfils {where!r}.")
    log.info("%d of %d rows fulfil the condition.", len(rows), len(read))
    return made(subset(read, rows), out, images=False, overwrite=overwrite)
