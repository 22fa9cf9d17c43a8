"""Scores joined with labels: by image and class name, unknown cells masked, by image or study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lingula.data.table import BLANK, UNCERTAIN, UNMENTIONED, Table, rows_of, subset, targets
from lingula.errors import InputError, examples
from lingula.labels import canonical, fold
from lingula.predictions import Predictions, aligned, class_columns, failed


@dataclass(frozen=True)
class Meaning:
    """What the three kinds of not knowing count as; `blank=None` is what the table says."""

    uncertain: Literal["ignore", "zero", "one"] = "ignore"
    blank: Literal["ignore", "zero"] | None = None
    unmentioned: Literal["ignore", "zero"] = "ignore"


@dataclass(frozen=True)
class Joined:
    """Scores, targets and mask (N, K) of the same rows and classes, and the rows' patients.

    `masked` counts the cells that don't count, by their kind; `differing` counts the (study,
    class) cells whose images had different labels, of which the highest was taken.
    """

    probabilities: NDArray[np.float64]
    targets: NDArray[np.float32]
    mask: NDArray[np.bool_]
    classes: tuple[str, ...]
    patients: tuple[str, ...] | None
    masked: Mapping[str, int]
    differing: int = 0


def meant(table: Table, meaning: Meaning) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets and mask (N, K) of a table under a meaning."""
    return targets(
        table,
        uncertain=meaning.uncertain,
        blank=meaning.blank,
        unmentioned=meaning.unmentioned,
    )


def asked(predictions: Predictions, table: Table, split: str | None) -> Table:
    """The table's rows to measure: a split, or those of the splits that the scores cover."""
    if split is not None:
        rows = rows_of(table, split)
        if not len(rows):
            raise InputError(f"{table.path or 'The table'} has no rows with split '{split}'.")
        return subset(table, rows)
    if table.splits is None:
        return table
    names = set(predictions.images) | set(predictions.ids or ())
    ids = table.ids or table.images
    covered = [a in names or b in names for a, b in zip(table.images, ids, strict=True)]
    splits = {table.splits[i] for i in np.flatnonzero(covered)}
    rows = np.array([i for i, name in enumerate(table.splits) if name in splits], dtype=np.intp)
    return subset(table, rows) if 0 < len(rows) < len(table) else table


def joined_with(
    predictions: Predictions,
    table: Table,
    by: str,
    meaning: Meaning,
    lost: tuple[str, ...] = (),
) -> tuple[Joined, tuple[str, ...]]:
    """Scores with their labels; and the images left out, `lost` among them."""
    theirs = {fold(canonical(name)) for name in predictions.classes}
    classes = tuple(name for name in table.space.classes if fold(canonical(name)) in theirs)
    where = table.path or "the table"
    if not classes:
        raise InputError(
            f"{predictions.origin} and {where} have no class in common: "
            f"{examples(predictions.classes)} there, {examples(table.space.classes)} here."
        )
    rows = aligned(predictions, table.images, table.ids)
    known = set(lost)
    bad = failed(predictions)[rows] | np.array([name in known for name in table.images], dtype=bool)
    keep = np.flatnonzero(~bad)
    if not len(keep):
        raise InputError(f"{predictions.origin} has no scores for any of the images asked for.")
    part = subset(table, keep)
    values, mask = meant(part, meaning)
    columns = [table.space.index(name) for name in classes]
    joined = Joined(
        predictions.probabilities[rows[keep]][:, class_columns(predictions, classes)],
        values[:, columns],
        mask[:, columns],
        classes,
        part.patients or (predictions.patients and _taken(predictions.patients, rows[keep])),
        _masked(part.labels[:, columns], mask[:, columns]),
    )
    if by == "study":
        studies = part.studies or (predictions.studies and _taken(predictions.studies, rows[keep]))
        joined = _by_study(joined, studies, where)
    return joined, tuple(table.images[i] for i in np.flatnonzero(bad))


def _taken(column: tuple[str, ...], rows: NDArray[np.intp]) -> tuple[str, ...]:
    return tuple(column[row] for row in rows)


def _masked(cells: NDArray[np.float32], mask: NDArray[np.bool_]) -> dict[str, int]:
    codes = {"uncertain": UNCERTAIN, "blank": BLANK, "unmentioned": UNMENTIONED}
    return {name: int(((cells == code) & ~mask).sum()) for name, code in codes.items()}


def _by_study(joined: Joined, studies: tuple[str, ...] | None, where: object) -> Joined:
    """One row a study: the mean of its images' scores, the highest of their known labels.

    Studies are told apart by patient too: some data sets count them from 1 for each patient.
    """
    if studies is None:
        raise InputError(f"--by study: neither {where} nor the scores have a study column.")
    patients = joined.patients or ("",) * len(studies)
    # Images without a study stand for themselves.
    keys = [
        (patient, name, "") if name else ("", "", str(row))
        for row, (patient, name) in enumerate(zip(patients, studies, strict=True))
    ]
    place = {key: unit for unit, key in enumerate(dict.fromkeys(keys))}
    unit = np.array([place[key] for key in keys], dtype=np.intp)
    first = np.unique(unit, return_index=True)[1]
    size = np.bincount(unit)[:, None]
    shape = (len(first), len(joined.classes))
    scores, mask = np.zeros(shape), np.zeros(shape, bool)
    highest, lowest = np.full(shape, -1, np.float32), np.full(shape, 2, np.float32)
    np.add.at(scores, unit, joined.probabilities)
    np.maximum.at(highest, unit, np.where(joined.mask, joined.targets, -1))
    np.minimum.at(lowest, unit, np.where(joined.mask, joined.targets, 2))
    np.logical_or.at(mask, unit, joined.mask)
    return replace(
        joined,
        probabilities=scores / size,
        targets=np.where(mask, highest, 0).astype(np.float32),
        mask=mask,
        patients=joined.patients and _taken(joined.patients, first),
        differing=int((mask & (highest != lowest)).sum()),
    )


def with_classes(joined: Joined, classes: tuple[str, ...]) -> Joined:
    """The same rows with these of its classes, in this order."""
    columns = [joined.classes.index(name) for name in classes]
    return replace(
        joined,
        probabilities=joined.probabilities[:, columns],
        targets=joined.targets[:, columns],
        mask=joined.mask[:, columns],
        classes=classes,
    )
