"""Splits by patient: making one that gives every class positives everywhere, and checking one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lingula.data.table import SPLITS, Table, targets
from lingula.errors import InputError


def split_by_patient(
    table: Table,
    *,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    images_are_patients: bool = False,
) -> tuple[str, ...]:
    """A train / dev / test split (N names) in which no patient stands twice.

    Iterative stratification over patients (Sechidis et al. 2011): the class with the fewest
    patients left goes first, and each of its patients to the split that wants it most. The same
    table and seed give the same split.
    """
    if table.patients is None and not images_are_patients:
        raise InputError(
            f"{table.path} has no `patient` column, so a split might put one patient's images on "
            "both sides. Add the column; or, if every image is another patient, say "
            "data.images_are_patients=true."
        )
    names = table.images if table.patients is None else table.patients
    # A blank patient id says nothing, so such an image is a patient of its own.
    keys = [name or f"\0{table.images[i]}" for i, name in enumerate(names)]
    _, unit = np.unique(keys, return_inverse=True)
    values, _ = targets(table)
    patients = int(unit.max()) + 1
    has = np.zeros((patients, len(table.space)), dtype=bool)
    np.logical_or.at(has, unit, values >= 0.5)
    chosen = _stratified(has, np.bincount(unit), np.array(fractions), np.random.default_rng(seed))
    return tuple(SPLITS[i] for i in chosen[unit])


def _stratified(
    has: NDArray[np.bool_],
    sizes: NDArray[np.intp],
    fractions: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.intp]:
    """The split (0, 1, 2) of each patient."""
    chosen = np.full(len(has), -1, dtype=np.intp)
    wanted = fractions[:, None] * has.sum(0)[None]  # positives of each class still wanted
    room = fractions * sizes.sum()
    order = random.permutation(len(has))
    while True:
        free = chosen < 0
        left = has[free].sum(0)
        if not left.any():
            break
        rarest = int(np.argmin(np.where(left > 0, left, np.iinfo(left.dtype).max)))
        waiting = order[(has[:, rarest] & free)[order]]
        for position, patient in enumerate(waiting):
            lacking = np.array([not has[chosen == i, rarest].any() for i in range(len(room))])
            last = len(waiting) - position <= lacking.sum()
            # The last positives go where there are none yet; else to the split that wants the
            # class most; ties to the one with the most room.
            best = np.lexsort((-room, -wanted[:, rarest], ~lacking if last else 0 * room))[0]
            chosen[patient] = best
            wanted[best] -= has[patient]
            room[best] -= sizes[patient]
    for patient in order[(chosen < 0)[order]]:
        best = int(np.argmax(room))
        chosen[patient] = best
        room[best] -= sizes[patient]
    return chosen


def classes_missing(table: Table) -> dict[str, tuple[str, ...]]:
    """For each split that has rows, the classes without a positive in it."""
    if table.splits is None:
        return {}
    values, mask = targets(table)
    splits = np.array(table.splits)
    found = {}
    for split in SPLITS:
        here = splits == split
        if here.any():
            positives = ((values >= 0.5) & mask)[here].any(0)
            found[split] = tuple(table.space.classes[k] for k in np.flatnonzero(~positives))
    return found


def patients_in_two_splits(table: Table) -> dict[str, tuple[str, ...]]:
    """Patients that stand in more than one split, with those splits; empty where all is well."""
    if table.patients is None or table.splits is None:
        return {}
    return _shared(table.patients, table.splits)


def _shared(patients: Sequence[str], splits: Sequence[str]) -> dict[str, tuple[str, ...]]:
    seen: dict[str, set[str]] = {}
    for patient, split in zip(patients, splits, strict=True):
        if patient and split:
            seen.setdefault(patient, set()).add(split)
    return {
        p: tuple(s for s in SPLITS if s in found) for p, found in seen.items() if len(found) > 1
    }
