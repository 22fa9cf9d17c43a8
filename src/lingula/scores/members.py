"""Members of an ensemble: their scores joined with each other and with labels, never by position.

Members need not have the same images: that is an error, or such images are left out, or their
scores are averaged over the members that have them (`MISSING`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores.intervals import unit_names
from lingula.scores.joining import join_several, select_classes
from lingula.scores.metrics import Floats
from lingula.scores.predictions import Predictions, align_rows, class_columns, failed
from lingula.settings.config import Data
from lingula.system.errors import InputError, examples
from lingula.tables.table import Table

MISSING = ("error", "intersect", "average")


@dataclass(frozen=True)
class Members:
    """Members by name; after `fill_rows` all have the same N images, blank where one has no row.

    `there` (N, M) says which of the M members had a row for an image; None: all must have all.
    """

    scores: Mapping[str, Predictions]
    there: NDArray[np.bool_] | None = None

    @property
    def complete(self) -> NDArray[np.bool_]:
        """(N,) whether all members had a row; only after `fill_rows`."""
        assert self.there is not None
        return np.asarray(self.there.all(axis=1))


@dataclass(frozen=True)
class Sample:
    """Scores of M members on N rows and K classes, with labels and the patients of the rows.

    Attributes:
        members: M names.
        classes: K names.
        scores: (M, N, K) probabilities, no NaN.
        positive: (N, K).
        mask: (N, K) known cells.
        units: N names; rows of one name (a patient) are never separated.
    """

    members: tuple[str, ...]
    classes: tuple[str, ...]
    scores: Floats
    positive: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    units: tuple[str, ...]

    def select(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Sample:
        """The sample of these rows."""
        units = np.array(self.units, dtype=object)[rows].tolist()
        labels = (self.positive[rows], self.mask[rows])
        return Sample(self.members, self.classes, self.scores[:, rows], *labels, tuple(units))


def first_of(members: Mapping[str, Predictions]) -> Predictions:
    """The first member; `InputError` without any."""
    if not members:
        raise InputError("An ensemble needs at least one member.")
    return next(iter(members.values()))


def same_rows(members: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """The members with the first one's rows and classes, in its order.

    Raises `InputError` naming the file for missing or extra images and classes.
    """
    first = first_of(members)
    result: dict[str, Predictions] = {}
    for name, member in members.items():
        rows = align_rows(member, first.images, first.ids)
        extra = set(range(len(member))) - set(rows.tolist())
        if extra:
            left = [member.images[i] for i in sorted(extra)]
            raise InputError(
                f"{member.origin} has images that {first.origin} lacks: {examples(left)}."
            )
        columns = _match_columns(member, first.classes, first.origin)
        values = member.probabilities[np.ix_(rows, columns)]
        texts = (first.ids, first.studies, first.patients)
        result[name] = Predictions(first.classes, first.images, values, *texts, member.origin)
    return result


def _match_columns(member: Predictions, classes: tuple[str, ...], others: str) -> NDArray[np.intp]:
    """The member's column of each class; `InputError` for missing and extra classes."""
    columns = class_columns(member, classes)
    extra = [name for k, name in enumerate(member.classes) if k not in set(columns.tolist())]
    if extra:
        raise InputError(f"{member.origin} has classes that {others} lacks: {examples(extra)}.")
    return columns


def fill_rows(members: Mapping[str, Predictions]) -> Members:
    """The members with all images that any of them has: the first one's, then what others add.

    Images join by name; by id where names differ and every member has ids. An image's id, study and
    patient are those of the first member that knows them.

    Raises:
        InputError: classes differ between members, or no image is in all of them.
    """
    names = _join_keys(members)
    place = {key: row for row, key in enumerate(dict.fromkeys(k for n in names for k in n))}
    rows = [np.array([place[key] for key in keys], dtype=np.intp) for keys in names]
    there = np.zeros((len(place), len(members)), dtype=bool)
    for column, there_rows in enumerate(rows):
        there[there_rows, column] = True
    if not there.all(axis=1).any():
        raise InputError(
            f"The members have no image in common: {', '.join(m.origin for m in members.values())}."
        )
    texts: dict[str, Any] = {
        field: _merge_texts(members, field, rows, len(place))
        for field in ("images", "ids", "studies", "patients")
    }
    first = first_of(members)
    filled = {}
    for (name, member), here in zip(members.items(), rows, strict=True):
        columns = _match_columns(member, first.classes, first.origin)
        values = np.full((len(place), len(first.classes)), np.nan)
        values[here] = member.probabilities[:, columns]
        filled[name] = Predictions(
            first.classes, probabilities=values, origin=member.origin, **texts
        )
    return Members(filled, there)


def _join_keys(members: Mapping[str, Predictions]) -> list[tuple[str, ...]]:
    """What the images of each member are joined by: their names, or ids where those differ."""
    first, *others = members.values()
    known = set(first.images)
    apart = any(not known & set(member.images) for member in others)
    ids = [member.ids or member.images for member in members.values()]
    if apart and all(all(keys) and len(set(keys)) == len(keys) for keys in ids):
        return ids
    return [member.images for member in members.values()]


def _merge_texts(
    members: Mapping[str, Predictions], field: str, rows: Sequence[NDArray[np.intp]], many: int
) -> tuple[str, ...] | None:
    """A column for all images, each cell from the first member that has it; None if none has."""
    cells = [""] * many
    columns = [getattr(member, field) for member in members.values()]
    for column, here in zip(columns, rows, strict=True):
        for row, cell in zip(here.tolist(), column or (), strict=False):
            cells[row] = cells[row] or cell
    return tuple(cells) if any(column is not None for column in columns) else None


def failed_in_any(members: Mapping[str, Predictions]) -> NDArray[np.bool_]:
    """(N,) True for images that failed in any of the members, which have the same rows."""
    return np.asarray(np.any([failed(member) for member in members.values()], axis=0))


def failures(members: Mapping[str, Predictions]) -> dict[str, tuple[str, ...]]:
    """The images without scores and the members that lack them, in the first member's order."""
    alike = same_rows(members)
    lacking = np.stack([failed(member) for member in alike.values()], axis=1)
    images = first_of(alike).images
    names = tuple(alike)
    return {
        images[row]: tuple(names[m] for m in np.flatnonzero(lacking[row]))
        for row in np.flatnonzero(lacking.any(axis=1))
    }


def count_members(members: Members) -> NDArray[np.int64]:
    """(N,) how many members have scores for each image."""
    return np.asarray(np.sum([~failed(member) for member in members.scores.values()], axis=0))


def describe_missing(members: Members) -> dict[str, Any]:
    """How many images there are, how many of them are in all members, and what each lacks."""
    assert members.there is not None
    lacking = (~members.there).sum(axis=0).tolist()
    return {
        "images": len(members.there),
        "in_all_members": int(members.complete.sum()),
        "lacking": dict(zip(members.scores, lacking, strict=True)),
    }


def join_members(members: Mapping[str, Predictions], part: Table, data: Data) -> Sample:
    """The members on the table's rows, with labels; images that failed in any member are left out.

    Unknown cells mean what `data` says; a target of at least 0.5 is positive. A row without a
    patient is a unit of its own, by its image's name. Raises `InputError` naming classes without
    labels and images without scores.
    """
    alike = same_rows(members)
    first = first_of(alike)
    unknown = [name for name in first.classes if name not in part.space]
    if unknown:
        raise InputError(
            f"{part.path} has no labels of {examples(unknown)}, which {first.origin} scores: "
            "members can't be chosen for them."
        )
    spelled = tuple(part.space.classes[part.space.index(name)] for name in first.classes)
    every = join_several(tuple(alike.values()), part, "image", data)
    joined = [select_classes(one, spelled) for one in every]
    return Sample(
        tuple(alike),
        first.classes,
        np.stack([one.probabilities for one in joined]),
        joined[0].targets >= 0.5,
        joined[0].mask,
        tuple(unit_names(joined[0].patients, joined[0].images)),
    )
