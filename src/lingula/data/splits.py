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
    patients left goes first, and each of its patients to the split that wants it most; where only
    as many are left as there are splits without one, each of those gets one. The same patients,
    labels and seed give the same split, whatever the order of the rows.

    Args:
        table: with patients, unless `images_are_patients`.
        fractions: shares of the images in train, dev and test; one may be 0.
        seed: of the order in which patients are taken.
        images_are_patients: a row without a patient is a patient of its own.

    Raises:
        InputError: no patients, or blank ones, without `images_are_patients`; wrong fractions.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"The shares of train, dev and test must sum to 1, not {fractions}.")
    names = ("",) * len(table) if table.patients is None else table.patients
    blank = names.count("")
    if blank and not images_are_patients:
        lacks = "no `patient` column" if blank == len(table) else f"{blank} rows without a patient"
        raise InputError(
            f"{table.path} has {lacks}, so a split might put one patient's images on both sides. "
            "Add the ids; or, if each such image is another patient, say "
            "data.images_are_patients=true."
        )
    keys = [
        f"{source}\1{name}" if name else f"\0{image}"
        for source, name, image in zip(_sources(table), names, table.images, strict=True)
    ]
    _, unit = np.unique(keys, return_inverse=True)
    has = np.zeros((int(unit.max()) + 1, len(table.space)), dtype=bool)
    np.logical_or.at(has, unit, table.labels >= 0.5)
    chosen = _stratified(has, np.bincount(unit), np.array(fractions), np.random.default_rng(seed))
    chosen = _repaired(has, chosen, np.array(fractions) > 0)
    return tuple(SPLITS[i] for i in chosen[unit])


def _stratified(
    has: NDArray[np.bool_],
    sizes: NDArray[np.intp],
    fractions: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.intp]:
    """The split (0, 1, 2) of each patient (P,), from what each has (P, K) and its images (P,)."""
    chosen = np.full(len(has), -1, dtype=np.intp)
    open_ = fractions > 0
    wanted = fractions[:, None] * has.sum(0)[None]  # patients of each class still wanted
    room = fractions * sizes.sum()
    held = np.zeros(wanted.shape, dtype=np.intp)
    order = random.permutation(len(has))
    while (left := has[chosen < 0].sum(0)).any():
        rarest = int(np.argmin(np.where(left > 0, left, np.iinfo(left.dtype).max)))
        waiting = order[(has[:, rarest] & (chosen < 0))[order]]
        for position, patient in enumerate(waiting):
            lacking = open_ & (held[:, rarest] == 0)
            last = len(waiting) - position <= lacking.sum()
            able = lacking if last and lacking.any() else open_
            # Ties in what a split wants of this class go to the one with the most room.
            best = np.lexsort((-room, -wanted[:, rarest], ~able))[0]
            chosen[patient] = best
            wanted[best] -= has[patient]
            held[best] += has[patient]
            room[best] -= sizes[patient]
    room = np.where(open_, room, -np.inf)
    for patient in order[(chosen < 0)[order]]:
        best = int(np.argmax(room))
        chosen[patient] = best
        room[best] -= sizes[patient]
    return chosen


def _repaired(
    has: NDArray[np.bool_], chosen: NDArray[np.intp], open_: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Move single patients to splits that lack a class, where that takes none from another."""
    chosen = chosen.copy()
    held = np.array([has[chosen == split].sum(0) for split in range(len(open_))])
    for k in np.argsort(has.sum(0), kind="stable"):
        for split in np.flatnonzero(open_ & (held[:, k] == 0)):
            needed = held[chosen] == 1  # (P, K): the only one of its class in its split
            spare = np.flatnonzero(has[:, k] & ~(has & needed).any(1))
            if len(spare):
                moved = spare[np.argmin(has[spare].sum(1))]
                held[chosen[moved]] -= has[moved]
                held[split] += has[moved]
                chosen[moved] = split
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
    """Patients that stand in more than one split, with those splits; empty where all is well.

    The patient `1` of one source is not the patient `1` of another.
    """
    if table.patients is None or table.splits is None:
        return {}
    seen: dict[tuple[str, str], set[str]] = {}
    rows = zip(_sources(table), table.patients, table.splits, strict=True)
    for source, patient, split in dict.fromkeys(rows):
        if patient and split:
            seen.setdefault((source, patient), set()).add(split)
    return {
        patient: tuple(s for s in SPLITS if s in found)
        for (_, patient), found in seen.items()
        if len(found) > 1
    }


def _sources(table: Table) -> Sequence[str]:
    return ("",) * len(table) if table.sources is None else table.sources
