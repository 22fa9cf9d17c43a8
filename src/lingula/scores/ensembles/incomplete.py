"""Members of an ensemble with unlike images: an error, left out, or averaged over who has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores.ensembles import weighting
from lingula.scores.ensembles.weighting import Ensemble
from lingula.scores.predictions import Predictions, class_columns, failed, picked
from lingula.system.errors import InputError, examples

MISSING = ("error", "intersect", "average")


@dataclass(frozen=True)
class Members:
    """Members by name; once `filled`, with the same N images, blank where one has no row.

    `there` (N, M) says which of the M members had a row of an image; None: all must have all.
    """

    scores: Mapping[str, Predictions]
    there: NDArray[np.bool_] | None = None

    @property
    def whole(self) -> NDArray[np.bool_]:
        """(N,) whether all members had a row; of filled members only."""
        assert self.there is not None
        return np.asarray(self.there.all(axis=1))


def filled(members: Mapping[str, Predictions]) -> Members:
    """The members with all images that any of them has: the first one's, then what others add.

    Images join by name; by id where names differ and every member has ids. What is known of an
    image (its id, study and patient) is what the first member that has it says.

    Raises:
        InputError: other classes in one than in another, or no image that all members have.
    """
    names = _keys(members)
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
        field: _known(members, field, rows, len(place)) for field in ("ids", "studies", "patients")
    }
    images = _known(members, "images", rows, len(place))
    assert images is not None
    classes = next(iter(members.values())).classes
    made = {}
    for (name, member), here in zip(members.items(), rows, strict=True):
        columns = class_columns(member, classes)
        if len(member.classes) > len(classes):
            extra = [c for k, c in enumerate(member.classes) if k not in set(columns.tolist())]
            raise InputError(f"{member.origin} has classes that others lack: {examples(extra)}.")
        values = np.full((len(place), len(classes)), np.nan)
        values[here] = member.probabilities[:, columns]
        made[name] = Predictions(classes, images, values, **texts, origin=member.origin)
    return Members(made, there)


def _keys(members: Mapping[str, Predictions]) -> list[tuple[str, ...]]:
    """By which the images of each member are joined: their names, or ids where those differ."""
    first, *others = members.values()
    known = set(first.images)
    apart = any(not known & set(member.images) for member in others)
    ids = [member.ids or member.images for member in members.values()]
    if apart and all(all(keys) and len(set(keys)) == len(keys) for keys in ids):
        return ids
    return [member.images for member in members.values()]


def _known(
    members: Mapping[str, Predictions], field: str, rows: list[NDArray[np.intp]], many: int
) -> tuple[str, ...] | None:
    """A column of all images, each cell by the first member that has it; None if none has any."""
    cells = [""] * many
    columns = [getattr(member, field) for member in members.values()]
    for column, here in zip(columns, rows, strict=True):
        for row, cell in zip(here.tolist(), column or (), strict=False):
            cells[row] = cells[row] or cell
    return tuple(cells) if any(column is not None for column in columns) else None


def mixed(ensemble: Ensemble, members: Members, missing: str) -> Predictions:
    """The ensemble's scores, by what is done with images that some members lack.

    `error`: as `weighting.apply`. `intersect`: of the images that all members have. `average`: of
    all images, over the members that have scores of them, with their weights made to sum to one; a
    class whose members all lack an image gets the plain mean of the others.
    """
    if missing == "average":
        return _averaged(ensemble, members.scores)
    found = weighting.apply(ensemble, members.scores)
    return found if missing == "error" else picked(found, np.flatnonzero(members.whole))


def _averaged(ensemble: Ensemble, members: Mapping[str, Predictions]) -> Predictions:
    """Of filled members, whose rows are the same: only the rows that one lacks are made anew."""
    found = weighting.apply(ensemble, members)  # also checks members and classes
    known = np.stack([~failed(members[name]) for name in ensemble.members], axis=1)
    part = known.any(axis=1) & ~known.all(axis=1)
    values = found.probabilities.copy()
    for k, name in enumerate(found.classes):
        shares = np.array([ensemble.weights[name].get(member, 0.0) for member in ensemble.members])
        weights = known[part] * shares
        weights = np.where(weights.any(axis=1, keepdims=True), weights, known[part])
        columns = [
            members[member].probabilities[part, class_columns(members[member], (name,))[0]]
            for member in ensemble.members
        ]
        scores = np.nan_to_num(np.stack(columns, axis=1))
        values[part, k] = (scores * weights).sum(axis=1) / weights.sum(axis=1)
    return replace(found, probabilities=values.clip(0, 1))


def counted(members: Members) -> NDArray[np.int64]:
    """(N,) how many members have scores of each image."""
    return np.asarray(np.sum([~failed(member) for member in members.scores.values()], axis=0))


def described(members: Members) -> dict[str, Any]:
    """How many images there are, how many of them in all members, and what each lacks."""
    assert members.there is not None
    lacking = (~members.there).sum(axis=0).tolist()
    return {
        "images": len(members.there),
        "in_all_members": int(members.whole.sum()),
        "lacking": dict(zip(members.scores, lacking, strict=True)),
    }
