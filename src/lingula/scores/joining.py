"""Scores joined with labels: by image and class name, unknown cells masked, by image or study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lingula.scores.predictions import Predictions, align_rows, class_columns, failed
from lingula.settings.config import Data
from lingula.settings.label_space import canonical, fold
from lingula.settings.vocabulary import classify_view
from lingula.system.errors import InputError, examples
from lingula.tables.configured import Meaning, configured_targets
from lingula.tables.table import BLANK, UNCERTAIN, UNMENTIONED, Table, rows_of, subset


@dataclass(frozen=True)
class Joined:
    """Scores, targets and mask (N, K) of the same rows and classes, and the rows' patients.

    `masked` counts the cells that don't count, by their kind; `differing` counts the (study,
    class) cells whose images had different labels, of which the highest was taken. `images` names
    each row's image in the table; of a study, its first one.
    """

    probabilities: NDArray[np.float64]
    targets: NDArray[np.float32]
    mask: NDArray[np.bool_]
    classes: tuple[str, ...]
    patients: tuple[str, ...] | None
    masked: Mapping[str, int]
    differing: int = 0
    images: tuple[str, ...] = ()


def rows_to_measure(predictions: Predictions, table: Table, split: str | None) -> Table:
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


def join_labels(
    predictions: Predictions,
    table: Table,
    by: str,
    meaning: Meaning | Data,
    lost: NDArray[np.bool_] | None = None,
    fuse: str = "mean",
) -> tuple[Joined, tuple[str, ...]]:
    """Scores with their labels, of the classes that both have; and the images that are left out.

    Those are the images that failed, and those `lost` (N,) of the table's rows. With `by="study"`
    a study's images become one row (`image_weights` of `fuse`).
    """
    theirs = {fold(canonical(name)) for name in predictions.classes}
    classes = tuple(name for name in table.space.classes if fold(canonical(name)) in theirs)
    where = table.path or "the table"
    if not classes:
        raise InputError(
            f"{predictions.origin} and {where} have no class in common: "
            f"{examples(predictions.classes)} there, {examples(table.space.classes)} here."
        )
    rows = align_rows(predictions, table.images, table.ids)
    bad = failed(predictions)[rows] if lost is None else failed(predictions)[rows] | lost
    keep = np.flatnonzero(~bad)
    if not len(keep):
        raise InputError(f"{predictions.origin} has no scores for any of the images asked for.")
    part = subset(table, keep)
    values, mask = configured_targets(meaning, part)
    columns = [table.space.index(name) for name in classes]
    joined = Joined(
        predictions.probabilities[rows[keep]][:, class_columns(predictions, classes)],
        values[:, columns],
        mask[:, columns],
        classes,
        part.patients or _take(predictions.patients, rows[keep]),
        _count_masked(part.labels[:, columns], mask[:, columns]),
        images=part.images,
    )
    if by == "study":
        studies = part.studies or _take(predictions.studies, rows[keep])
        weights = image_weights(fuse, part.views, where)
        joined = _merge_studies(joined, studies, weights, where)
    return joined, tuple(table.images[i] for i in np.flatnonzero(bad))


def join_several(
    several: Sequence[Predictions],
    table: Table,
    by: str,
    meaning: Meaning | Data,
    fuse: str = "mean",
) -> list[Joined]:
    """Scores of several models with their labels, on the rows that none of them failed on."""
    bad = [failed(one)[align_rows(one, table.images, table.ids)] for one in several]
    lost = np.asarray(np.any(bad, axis=0))
    return [join_labels(one, table, by, meaning, lost, fuse)[0] for one in several]


def _take(column: tuple[str, ...] | None, rows: NDArray[np.intp]) -> tuple[str, ...] | None:
    return column and tuple(column[row] for row in rows)


def _count_masked(cells: NDArray[np.float32], mask: NDArray[np.bool_]) -> dict[str, int]:
    codes = {"uncertain": UNCERTAIN, "blank": BLANK, "unmentioned": UNMENTIONED}
    return {name: int(((cells == code) & ~mask).sum()) for name, code in codes.items()}


# The weights of the team that won CXR-LT 2023, for a study's frontal, lateral and other images.
_WINNERS = {"frontal": 7.0, "lateral": 3.0, "other": 5.0}


def image_weights(
    fuse: str, views: tuple[str, ...] | None, where: object
) -> NDArray[np.float64] | None:
    """How much each image counts in its study's mean (N,); None: the highest score is taken.

    Args:
        fuse: `mean`: all the same; `max`: the highest; `views`: 7 for a frontal image, 3 for a
            lateral one, 5 for any other; or weights of one's own as `frontal=2,lateral=1,other=1`.
        views: the table's, None where it has no such column.
        where: the table, for messages.

    Raises:
        InputError: another word, a weight that is negative or no number, or no view column.
    """
    if fuse == "max":
        return None
    if fuse == "mean":
        return np.ones(0) if views is None else np.ones(len(views))
    weights = dict(_WINNERS) if fuse == "views" else _parse_weights(fuse)
    if views is None:
        raise InputError(f"--fuse {fuse}: {where} has no view column; use --fuse mean.")
    return np.array([weights[classify_view(view)] for view in views])


def _parse_weights(fuse: str) -> dict[str, float]:
    weights = {}
    for pair in fuse.split(","):
        name, _, value = pair.partition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            break
    sound = [math.isfinite(value) and value >= 0 for value in weights.values()]
    if set(weights) != set(_WINNERS) or not all(sound) or "," not in fuse:
        raise InputError(
            f"--fuse is mean, max, views, or three weights of at least 0 such as "
            f"frontal=7,lateral=3,other=5, not '{fuse}'."
        )
    return weights


def study_numbers(studies: Sequence[str], patients: Sequence[str] | None) -> NDArray[np.intp]:
    """(N,) the number of each image's study, by first appearance; one without is a study by itself.

    Studies are distinguished by patient too: some data sets count them from 1 for each patient.
    """
    keys = [
        (patient, name, "") if name else ("", "", str(row))
        for row, (patient, name) in enumerate(
            zip(patients or ("",) * len(studies), studies, strict=True)
        )
    ]
    place = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([place[key] for key in keys], dtype=np.intp)


def study_means(
    scores: NDArray[np.float64], studies: Sequence[str], patients: Sequence[str] | None
) -> NDArray[np.float64]:
    """Scores (N, K) with each image's replaced by its study's mean; failed ones (NaN) stay out."""
    number = study_numbers(studies, patients)
    good = np.isfinite(scores).all(axis=1)
    sums, means = np.zeros_like(scores), scores.copy()
    np.add.at(sums, number[good], scores[good])
    size = np.bincount(number[good], minlength=len(scores))
    means[good] = (sums / np.maximum(size, 1)[:, None])[number[good]]
    return means


def _merge_studies(
    joined: Joined,
    studies: tuple[str, ...] | None,
    weights: NDArray[np.float64] | None,
    where: object,
) -> Joined:
    """One row per study: the (weighted) mean of its scores, or the highest; its highest labels."""
    if studies is None:
        raise InputError(f"--by study: neither {where} nor the scores have a study column.")
    unit = study_numbers(studies, joined.patients)
    first = np.unique(unit, return_index=True)[1]
    shape = (len(first), len(joined.classes))
    scores, mask = np.zeros(shape), np.zeros(shape, bool)
    highest, lowest = np.full(shape, -1, np.float32), np.full(shape, 2, np.float32)
    if weights is None:
        np.maximum.at(scores, unit, joined.probabilities)
    else:
        weights = weights if len(weights) else np.ones(len(unit))
        size = np.bincount(unit, weights=weights)
        if not size.all():
            raise InputError("--fuse: a study whose images all have weight 0 has no score.")
        np.add.at(scores, unit, joined.probabilities * weights[:, None])
        # A mean of numbers up to 1 can exceed 1 by its last digit.
        scores = np.minimum(scores / size[:, None], 1.0)
    np.maximum.at(highest, unit, np.where(joined.mask, joined.targets, -1))
    np.minimum.at(lowest, unit, np.where(joined.mask, joined.targets, 2))
    np.logical_or.at(mask, unit, joined.mask)
    return replace(
        joined,
        probabilities=scores,
        targets=np.where(mask, highest, 0).astype(np.float32),
        mask=mask,
        patients=_take(joined.patients, first),
        images=tuple(joined.images[row] for row in first),
        differing=int((mask & (highest != lowest)).sum()),
    )


def select_classes(joined: Joined, classes: tuple[str, ...]) -> Joined:
    """The same rows with these of its classes, in this order."""
    columns = [joined.classes.index(name) for name in classes]
    return replace(
        joined,
        probabilities=joined.probabilities[:, columns],
        targets=joined.targets[:, columns],
        mask=joined.mask[:, columns],
        classes=classes,
    )
