"""Splits and folds by patient, with positives of every class everywhere; and checks of a split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lingula.system.errors import InputError
from lingula.tables.table import SPLITS, Table, targets


def split_by_patient(
    table: Table,
    *,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    images_are_patients: bool = False,
) -> tuple[str, ...]:
    """A train / dev / test split (N names) in which each patient is in one split.

    Iterative stratification over patients (Sechidis et al. 2011): the class with the fewest
    patients left goes first, and each of its patients to the split that wants it most; where only
    as many are left as there are splits without one, each of those gets one. Where that leaves the
    shares (as with more rare classes than patients) by more than `_tolerance`, patients are moved,
    those first that no class needs where they are. The same patients, labels and seed give the same
    split, whatever the order of the rows.

    Args:
        table: with patients, unless `images_are_patients`.
        fractions: shares of the images in train, dev and test; one may be 0.
        seed: of the order in which patients are taken.
        images_are_patients: a row without a patient is one of its own; rows of one study stay
            together all the same.

    Raises:
        InputError: no patients, or blank ones, without `images_are_patients`; wrong fractions.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"The shares of train, dev and test must sum to 1, not {fractions}.")
    chosen = _assign(table, np.array(fractions), seed, images_are_patients)
    return tuple(SPLITS[i] for i in chosen)


def folds_by_patient(
    table: Table, folds: int, *, seed: int = 0, images_are_patients: bool = False
) -> NDArray[np.intp]:
    """The fold (N,), from 0 to `folds` - 1, of each row; each patient is in one fold.

    Folds are of the same size and are stratified over all classes as in `split_by_patient`.

    Raises:
        InputError: no patients, or fewer than folds; wrong number of folds.
    """
    if folds < 2:
        raise InputError(f"Cross-validation needs at least 2 folds, not {folds}.")
    chosen = _assign(table, np.full(folds, 1 / folds), seed, images_are_patients)
    if len(np.unique(chosen)) < folds:
        raise InputError(f"{table.path} has too few patients for {folds} folds: each needs one.")
    return chosen


def _assign(
    table: Table, shares: NDArray[np.float64], seed: int, images_are_patients: bool
) -> NDArray[np.intp]:
    """The part (N,) of each row, one part per share, by patient."""
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
        f"\0{name}" if kind == "image" else f"{source}\1{name}" + "\1" * (kind == "study")
        for kind, source, name in people(table)
    ]
    _, unit = np.unique(keys, return_inverse=True)
    has = np.zeros((int(unit.max()) + 1, len(table.space)), dtype=bool)
    np.logical_or.at(has, unit, table.labels >= 0.5)
    sizes = np.bincount(unit)
    chosen = _stratified(has, sizes, shares, np.random.default_rng(seed))
    chosen = _repaired(has, chosen, shares > 0)
    chosen = _evened(has, sizes, chosen, shares, np.random.default_rng([seed, 1]))
    return np.asarray(chosen[unit])


def check_parts(
    splits: Sequence[str], fractions: tuple[float, float, float], where: object
) -> None:
    """Refuse a split that was made, if one of its parts has nobody: there were too few patients."""
    wanted = [name for name, share in zip(SPLITS, fractions, strict=True) if share > 0]
    empty = [name for name in wanted if name not in splits]
    if empty:
        raise InputError(
            f"{where} has too few patients to split: there is none for {' and '.join(empty)}, and "
            f"{', '.join(wanted)} need one each at least. Add some, or give a `split` column."
        )


def _stratified(
    has: NDArray[np.bool_],
    sizes: NDArray[np.intp],
    fractions: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.intp]:
    """The part of each patient (P,), from what each has (P, K) and how many images (P,)."""
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


def _evened(
    has: NDArray[np.bool_],
    sizes: NDArray[np.intp],
    chosen: NDArray[np.intp],
    fractions: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.intp]:
    """Move single patients until each split has one, and its share of the images.

    From the fullest to the emptiest: first those by whose move the fewest classes are lost to a
    split, then those whose classes are too many in the one and too few in the other.
    """
    chosen, open_ = chosen.copy(), fractions > 0
    parts = range(len(open_))
    held = np.array([has[chosen == split].sum(0) for split in parts])
    over = np.array([sizes[chosen == split].sum() for split in parts]) - fractions * sizes.sum()
    wanted = fractions[:, None] * has.sum(0)[None]
    chance, allowed = random.permutation(len(has)), _tolerance(sizes)
    while True:
        people = np.bincount(chosen, minlength=len(open_))
        empty = open_ & (people == 0)
        if not empty.any() and np.abs(over).max() <= allowed:
            return chosen
        into = int(np.argmin(np.where(empty if empty.any() else open_, over, np.inf)))
        out_of = int(np.argmax(np.where(people > 1, over, -np.inf)))
        there = np.flatnonzero(chosen == out_of)
        # What is moved must bring the two nearer to their shares, unless a split has nobody.
        able = there if empty.any() else there[sizes[there] < over[out_of] - over[into]]
        if people[out_of] < 2 or out_of == into or not len(able):
            return chosen
        mine = has[able]
        lost = (mine & (held[out_of] == 1)).sum(1) - (mine & (held[into] == 0)).sum(1)
        excess = (held - wanted)[out_of] - (held - wanted)[into]
        order = np.lexsort((chance[able], -(mine @ excess), lost, sizes[able] * empty.any()))
        moved = able[order[0]]
        held[out_of] -= has[moved]
        held[into] += has[moved]
        over[out_of] -= sizes[moved]
        over[into] += sizes[moved]
        chosen[moved] = into


def _tolerance(sizes: NDArray[np.intp]) -> float:
    """By how many images a split may miss its share: by two patients.

    By two usual ones; by two of the largest, if these have no more than 2 % of the images.
    """
    usual, largest = float(np.median(sizes)), float(sizes.max())
    return max(2 * usual, min(2 * largest, 0.02 * float(sizes.sum())))


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
    """Patients that are in more than one split, with those splits; empty where all is well.

    Who is one patient is what `people` says: studies of rows without a patient are named too, as
    `study 7`.
    """
    if table.splits is None:
        return {}
    seen: dict[Person, set[str]] = {}
    for person, split in _person_and_split(table):
        if split and person[0] != "image":
            seen.setdefault(person, set()).add(split)
    return {
        name if kind == "patient" else f"study {name}": tuple(s for s in SPLITS if s in found)
        for (kind, _, name), found in seen.items()
        if len(found) > 1
    }


# Words that one table writes before the number of a patient, and another does not.
_BEFORE = re.compile(r"(?:p|pt|pat|patient|s|sub|subject)[-_ ]?(\d+)", re.IGNORECASE)


def number_of(patient: str) -> str:
    """`10999999` for `p10999999` and for itself; any other id as it is."""
    before = _BEFORE.fullmatch(patient)
    return before[1] if before else patient


def patients_spelled_twice(table: Table) -> dict[str, tuple[str, ...]]:
    """Ids of one source that differ by a word before the number, with the splits that they are in.

    `p10999999 = 10999999`: most likely one patient, who would be taken for two.
    """
    spelled: dict[tuple[str, str], set[str]] = {}
    splits: dict[tuple[str, str], set[str]] = {}
    for (kind, source, name), split in _person_and_split(table):
        if kind == "patient":
            key = (source, number_of(name))
            spelled.setdefault(key, set()).add(name)
            splits.setdefault(key, set()).add(split)
    return {
        " = ".join(sorted(names, key=len, reverse=True)): tuple(s for s in SPLITS if s in splits[k])
        for k, names in spelled.items()
        if len(names) > 1
    }


# What a row is of: `patient`, `study` or `image`; its source, if that tells it apart; its id.
Person = tuple[str, str, str]


def _person_and_split(table: Table) -> Iterable[tuple[Person, str]]:
    """Who stands in which split; rows of neither patient nor study are one image without a name."""
    rows = distinct_rows(table, studies=not all(table.patients or ("",)))
    sources, patients, studies, splits = zip(*rows, strict=True) if rows else ((), (), (), ())
    return zip(people_of(sources, patients, studies, patients), splits, strict=True)


def distinct_rows(table: Table, studies: bool = True) -> list[tuple[str, str, str, str]]:
    """The different (source, patient, study, split) of a table; '' for a study unless `studies`.

    Many fewer than its images where all have a patient, so that studies need not be looked at.
    """
    none = ("",) * len(table)
    columns = (table.sources, table.patients, table.studies if studies else None, table.splits)
    return list(dict.fromkeys(zip(*(column or none for column in columns), strict=True)))


def people(table: Table) -> list[Person]:
    """For each of the N rows whose it is; rows of one person have equal entries.

    The patient `1` of one source is not the patient `1` of another. An id that stands anywhere
    without a source is one patient wherever it stands: two people must be told apart, not guessed.
    A row without a patient is that of its study's only patient, else its study's; a row without
    either is its image's.
    """
    none = ("",) * len(table)
    columns = (table.sources or none, table.patients or none, table.studies or none)
    return people_of(*columns, table.images)


def people_of(
    sources: Sequence[str], patients: Sequence[str], studies: Sequence[str], images: Sequence[str]
) -> list[Person]:
    """As `people`, for rows that may be of several tables; '' is a missing value."""
    persons = _told_apart(sources, patients)
    if all(patients):
        return [("patient", *person) for person in persons]
    visits = _told_apart(sources, studies)
    of_visit: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for person, visit in dict.fromkeys(zip(persons, visits, strict=True)):
        if person[1] and visit[1]:
            of_visit.setdefault(visit, set()).add(person)
    found: list[Person] = []
    for person, visit, image in zip(persons, visits, images, strict=True):
        owners = of_visit.get(visit, ())
        if person[1]:
            found.append(("patient", *person))
        elif len(owners) == 1:
            found.append(("patient", *next(iter(owners))))
        else:
            found.append(("study", *visit) if visit[1] else ("image", "", image))
    return found


def _told_apart(sources: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """(source, name) of each row; the source is '' for names that stand without one somewhere."""
    pairs = list(zip(sources, names, strict=True))
    if all(sources):
        return pairs
    bare = {name for source, name in dict.fromkeys(pairs) if not source}
    return [("" if name in bare else source, name) for source, name in pairs]
